package app_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/app"
	"github.com/pullab/pullab/pkg/config"
)

type demoConfig struct {
	KernelCI config.KernelCI `section:"kernelci"`
}

// demo is a command that does what its flag says.
type demo struct {
	Do string `default:"load" help:"What to do."`
}

func (d *demo) Run(ctx context.Context, env *app.Env) error {
	zerolog.Ctx(ctx).Debug().Msg("a debug line")
	switch d.Do {
	case "fail":
		return errors.New("it broke. Mend it")
	case "exit":
		return app.ExitError(7)
	}
	var c demoConfig
	if err := env.Load(ctx, &c); err != nil {
		return err
	}
	_, err := env.Stdout.Write([]byte(c.KernelCI.RuntimeName))
	return err
}

func TestRun(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "c.json")
	if err := os.WriteFile(file, []byte(`{"kernelci":{"runtime_name":"lab-x"},"ecs":{}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string
	}{
		{"works", []string{"-c", file}, 0, "lab-x", "predecessor"},
		{"flag wins", []string{"-c", file, "--set", "kernelci.runtime_name=lab-y"}, 0, "lab-y", ""},
		{"debug in capitals", []string{"--log-level", "DEBUG"}, 0, "pull-labs-aws-ec2", "a debug line"},
		{"fails", []string{"--do", "fail"}, 1, "", "demo: it broke. Mend it"},
		{"own code", []string{"--do=exit"}, 7, "", ""},
		{"no such flag", []string{"--nonsense"}, 2, "", "unknown flag --nonsense"},
		{"no such level", []string{"--log-level", "loud"}, 2, "", "write debug, info, warn or error"},
		{"bad configuration", []string{"--set", "kernelci.runtime=x"}, 2, "", `did you mean "runtime_name"?`},
		{"help", []string{"--help"}, 0, "What to do.", ""},
		{"version", []string{"--version"}, 0, "demo ", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var out, errs bytes.Buffer
			env := &app.Env{Stdout: &out, Stderr: &errs, LookupEnv: func(string) (string, bool) { return "", false }}
			if code := app.Run(t.Context(), env, "demo", "A demonstration.", &demo{}, c.args); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			if !strings.Contains(out.String(), c.stdout) {
				t.Errorf("stdout %q, want %q in it", out.String(), c.stdout)
			}
			if !strings.Contains(errs.String(), c.stderr) {
				t.Errorf("stderr %q, want %q in it", errs.String(), c.stderr)
			}
		})
	}
}
