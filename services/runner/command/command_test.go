package command_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/executor"
	"github.com/pullab/pullab/pkg/executor/executortest"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/runner/command"
)

func quiet(pullabv1.RunPhase, string) {}

func open(t testing.TB, dir string) executor.Executor {
	t.Helper()
	x, err := command.New(command.Settings{Path: "testdata/lab.sh"}, dir, "here")
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func plan(scenario string) *pullabv1.RunPlanned {
	return &pullabv1.RunPlanned{
		RunId: "run_pulllab-x86_64-local-1_20260101_000000", Arch: "x86_64", Executor: command.Name,
		Parameters: map[string]string{"scenario": scenario},
	}
}

func run(t *testing.T, scenario string, limit time.Duration) executor.Run {
	return executor.Run{Plan: plan(scenario), Attempt: 1, Deadline: time.Now().Add(limit), Dir: t.TempDir()}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	executortest.Suite(t, func(t *testing.T) executortest.Harness {
		dir := t.TempDir()
		return executortest.Harness{
			New:  func(t testing.TB) executor.Executor { return open(t, dir) },
			Hang: time.Second,
			Plan: func(_ testing.TB, s executortest.Scenario) *pullabv1.RunPlanned {
				return plan(map[executortest.Scenario]string{
					executortest.Boots: "boot", executortest.Panics: "panic", executortest.Hangs: "hang", executortest.Breaks: "break",
				}[s])
			},
		}
	})
}

func await(t *testing.T, x executor.Executor, r executor.Run) (executor.Handle, executor.Outcome, error) {
	t.Helper()
	h, err := x.Start(t.Context(), r, quiet)
	if err != nil {
		t.Fatal(err)
	}
	o, err := x.Await(t.Context(), r, h, quiet)
	if err := x.Stop(t.Context(), h); err != nil {
		t.Error(err)
	}
	return h, o, err
}

func TestOutcome(t *testing.T) {
	t.Parallel()
	r := run(t, "boot", time.Minute)
	_, o, err := await(t, open(t, t.TempDir()), r)
	if err != nil {
		t.Fatal(err)
	}
	if o.Release != "6.12.0-lab" || o.Device != "board-1" || o.Facts["firmware"] != "2.1" || len(o.Files) != 2 ||
		o.Rows[0].GetDuration().AsDuration() != time.Second/2 || o.Rows[0].GetStartTime() == nil {
		t.Errorf("%+v", o)
	}
	b, err := os.ReadFile(filepath.Join(r.Dir, "program.log"))
	if err != nil || !strings.Contains(string(b), "attempt of a run") {
		t.Errorf("%q %v", b, err)
	}
}

func TestKernelFailureHasItsConsole(t *testing.T) {
	t.Parallel()
	_, o, err := await(t, open(t, t.TempDir()), run(t, "panic", time.Minute))
	if err != nil || len(o.Rows) != 1 || !strings.Contains(o.Rows[0].GetLogExcerpt(), "Attempted to kill init") {
		t.Errorf("%v %v", err, o.Rows)
	}
}

func TestLabErrors(t *testing.T) {
	t.Parallel()
	for scenario, want := range map[string]struct {
		reason, text string
		permanent    bool
	}{
		"break":   {"power", "the board does not answer", false},
		"quit":    {"program", "segmentation fault, or so", false},
		"garbage": {"protocol", "line 2, at byte 57", true},
		"hang":    {"deadline", "was not done at its deadline", false},
	} {
		t.Run(scenario, func(t *testing.T) {
			t.Parallel()
			limit := time.Minute
			if scenario == "hang" {
				limit = time.Second
			}
			_, _, err := await(t, open(t, t.TempDir()), run(t, scenario, limit))
			lab, ok := errors.AsType[*executor.LabError](err)
			if !ok || lab.Reason != want.reason || lab.Permanent != want.permanent || !strings.Contains(err.Error(), want.text) {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestStubborn: a program that does not hear SIGTERM is gone ten seconds later,
// with everything it started.
func TestStubborn(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT RUN: waits ten real seconds for SIGKILL; run without -short")
	}
	t.Parallel()
	x, dir := open(t, t.TempDir()), t.TempDir()
	r := run(t, "stubborn", time.Minute)
	h, err := x.Start(t.Context(), r, quiet)
	if err != nil {
		t.Fatal(err)
	}
	wait(t, func() bool {
		b, _ := os.ReadFile(filepath.Join(r.Dir, "program.log"))
		return strings.Contains(string(b), "deaf")
	})
	if err := open(t, dir).Stop(t.Context(), h); err != nil {
		t.Errorf("Stop of another lab's machine: %v", err)
	}
	begun := time.Now()
	if err := x.Stop(t.Context(), h); err != nil || time.Since(begun) < 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(begun))
	}
	if ms, err := x.List(t.Context()); err != nil || len(ms) != 0 {
		t.Error(ms, err)
	}
}

func wait(t *testing.T, done func() bool) {
	t.Helper()
	for !done() {
		if err := backoff.Sleep(t.Context(), 10*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRunnerDies starts a program from a process of its own and kills that
// process. The program goes on, another process adopts it, and the deadline
// holds.
func TestRunnerDies(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	r := run(t, "hang", 3*time.Second)
	helper := helperProcess(t, state, r)
	x := open(t, state)
	wait(t, func() bool { ms, _ := x.List(t.Context()); return len(ms) == 1 })
	if err := helper.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = helper.Wait()
	ms, err := x.List(t.Context())
	if err != nil || len(ms) != 1 || ms[0].RunID != r.Plan.GetRunId() || !ms[0].Ours {
		t.Fatalf("the program died with its runner: %v %v", ms, err)
	}
	h, err := x.Start(t.Context(), r, quiet)
	if err != nil || h.ID != ms[0].Handle.ID {
		t.Fatalf("%v, %v is not %v", err, h, ms[0].Handle)
	}
	_, err = x.Await(t.Context(), r, h, quiet)
	if lab, ok := errors.AsType[*executor.LabError](err); !ok || lab.Reason != "deadline" {
		t.Error(err)
	}
	if late := time.Since(r.Deadline); late > 5*time.Second {
		t.Errorf("the program ended %v after its deadline", late)
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	for _, s := range []command.Settings{{}, {Path: "testdata/none.sh"}} {
		if _, err := command.New(s, t.TempDir(), "here"); err == nil || !strings.Contains(err.Error(), "command.path") {
			t.Errorf("%+v: %v", s, err)
		}
	}
}

func TestForeignHandles(t *testing.T) {
	t.Parallel()
	x := open(t, t.TempDir())
	for _, id := range []string{"", "..", "../../etc", "a/b.1", "x.1"} {
		h := executor.Handle{Executor: command.Name, ID: id}
		if _, err := x.Await(t.Context(), run(t, "boot", time.Minute), h, quiet); err == nil {
			t.Errorf("Await of %q", id)
		}
		if err := x.Stop(context.WithoutCancel(t.Context()), h); (err == nil) != (id == "x.1") {
			t.Errorf("Stop of %q: %v", id, err)
		}
	}
}
