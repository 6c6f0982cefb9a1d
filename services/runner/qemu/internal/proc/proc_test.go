package proc

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pullab/pullab/pkg/backoff"
)

func spec(t *testing.T, args ...string) Spec {
	dir := t.TempDir()
	return Spec{Dir: dir, Log: filepath.Join(dir, "log"), Limit: time.Minute, Args: args}
}

// sleeper names its directory in its arguments, as QEMU does.
func sleeper(t *testing.T) Spec {
	s := spec(t)
	s.Args = []string{"sh", "-c", "sleep 1000; :", s.Dir}
	return s
}

func launch(t *testing.T, s Spec) Process {
	t.Helper()
	if err := Launch(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	p, ok := Find(s.Dir)
	if !ok {
		t.Fatal("not found after Launch")
	}
	t.Cleanup(func() {
		if err := p.Kill(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return p
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
		if err := backoff.Sleep(t.Context(), 10*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}

func TestExitStatus(t *testing.T) {
	t.Parallel()
	s := spec(t, "sh", "-c", "echo hello; env; exit 7")
	t.Logf("%v", s.Dir)
	p := launch(t, s)
	until(t, "ends", func() bool { return !p.Alive() })
	if e, ok := Status(s.Dir); !ok || e.Code != 7 || time.Since(e.At) > time.Minute {
		t.Errorf("exit %+v, %v", e, ok)
	}
	log, err := os.ReadFile(s.Log)
	if err != nil || !strings.HasPrefix(string(log), "hello\n") || !strings.Contains(string(log), "exit status 7") {
		t.Errorf("log %q, %v", log, err)
	}
	if strings.Contains(string(log), "HOME=") {
		t.Error("the runner's environment leaked into the machine")
	}
}

func TestOneProgramPerDirectory(t *testing.T) {
	t.Parallel()
	s := sleeper(t)
	p := launch(t, s)
	// A second launch, as by a runner that does not know of the first.
	if err := Launch(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	until(t, "second shell is gone", func() bool {
		shells := 0
		entries, _ := os.ReadDir("/proc")
		for _, e := range entries {
			args, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
			if strings.Contains(string(args), "pullab-machine\x00"+s.Dir) {
				shells++
			}
		}
		return shells == 1
	})
	again, _ := Find(s.Dir)
	if again != p || !p.Alive() {
		t.Errorf("found %+v, started %+v", again, p)
	}
}

func TestWatchdog(t *testing.T) {
	t.Parallel()
	s := sleeper(t)
	s.Limit = time.Second
	p := launch(t, s)
	until(t, "watchdog strikes", func() bool { return !p.Alive() })
	if e, ok := Status(s.Dir); !ok || e.Code != 124 {
		t.Errorf("exit %+v, %v", e, ok)
	}
}

// Somebody kills the shell alone: the rest is still found and can be ended.
func TestOrphans(t *testing.T) {
	t.Parallel()
	s := sleeper(t)
	p := launch(t, s)
	until(t, "three processes", func() bool { return len(p.members()) >= 3 })
	if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "shell gone", func() bool { reap(p.pid); _, err := readStat(p.pid); return err != nil })
	if !p.Alive() {
		t.Fatal("the orphans were not seen")
	}
	if err := p.Kill(t.Context()); err != nil || p.Alive() {
		t.Errorf("still alive: %v", err)
	}
	if _, ok := Status(s.Dir); ok {
		t.Error("a status although nobody could write one")
	}
}

// A process id that now belongs to someone else is neither alive nor killed.
func TestReusedProcessID(t *testing.T) {
	t.Parallel()
	s := sleeper(t)
	other := launch(t, s)
	impostor := Process{dir: t.TempDir(), pid: other.pid, ticks: other.ticks - 1}
	if impostor.Alive() {
		t.Error("a reused id counts as alive")
	}
	if err := impostor.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if !other.Alive() {
		t.Error("killed a stranger")
	}
}

func TestMissingProgram(t *testing.T) {
	t.Parallel()
	s := spec(t, "/nonexistent/qemu")
	p := launch(t, s)
	until(t, "ends", func() bool { return !p.Alive() })
	if e, ok := Status(s.Dir); !ok || e.Code != 127 {
		t.Errorf("exit %+v", e)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("12 (a) b) S 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 5555 1 1"))
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseStat(b); err == nil && s.pid <= 0 {
			t.Errorf("%+v", s)
		}
	})
}
