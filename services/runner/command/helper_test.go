package command_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/pullab/pullab/pkg/executor"
	"github.com/pullab/pullab/services/runner/command"
)

// TestMain plays a runner that is about to die when asked to.
func TestMain(m *testing.M) {
	if dir := os.Getenv("COMMAND_TEST_STATE"); dir != "" {
		if err := play(dir); err != nil {
			panic(err)
		}
		select {}
	}
	m.Run()
}

func play(dir string) error {
	x, err := command.New(command.Settings{Path: "testdata/lab.sh"}, dir, "here")
	if err != nil {
		return err
	}
	ns, err := strconv.ParseInt(os.Getenv("COMMAND_TEST_DEADLINE"), 10, 64)
	if err != nil {
		return err
	}
	_, err = x.Start(context.Background(), executor.Run{
		Plan: plan("hang"), Attempt: 1, Deadline: time.Unix(0, ns), Dir: os.Getenv("COMMAND_TEST_DIR"),
	}, quiet)
	return err
}

func helperProcess(t *testing.T, state string, r executor.Run) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), "COMMAND_TEST_STATE="+state, "COMMAND_TEST_DIR="+r.Dir,
		fmt.Sprintf("COMMAND_TEST_DEADLINE=%d", r.Deadline.UnixNano()))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}
