package derived

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

type note struct{ Text string }

func writer(body string, builds *atomic.Int32) func(*os.File) (note, error) {
	return func(f *os.File) (note, error) {
		builds.Add(1)
		_, err := f.WriteString(body)
		return note{Text: body}, err
	}
}

func TestBuiltOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var builds atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			c, err := New(dir, 1<<20)
			if err != nil {
				t.Error(err)
				return
			}
			path, meta, release, err := Get(t.Context(), c, "k", writer("body", &builds))
			if err != nil {
				t.Error(err)
				return
			}
			defer release()
			if b, err := os.ReadFile(path); err != nil || string(b) != "body" || meta.Text != "body" {
				t.Errorf("%q, %+v, %v", b, meta, err)
			}
		})
	}
	wg.Wait()
	if builds.Load() != 1 {
		t.Errorf("built %d times", builds.Load())
	}
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	t.Parallel()
	c, err := New(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	_, _, _, err = Get(t.Context(), c, "k", func(f *os.File) (note, error) {
		f.WriteString("half")
		return note{}, broken
	})
	if !errors.Is(err, broken) {
		t.Fatal(err)
	}
	var builds atomic.Int32
	_, _, release, err := Get(t.Context(), c, "k", writer("whole", &builds))
	if err != nil || builds.Load() != 1 {
		t.Fatal(err, builds.Load())
	}
	release()
}

func TestEviction(t *testing.T) {
	t.Parallel()
	c, err := New(t.TempDir(), 5000)
	if err != nil {
		t.Fatal(err)
	}
	var builds atomic.Int32
	held, _, release, err := Get(t.Context(), c, "held", writer("1", &builds))
	if err != nil {
		t.Fatal(err)
	}
	idle, _, done, err := Get(t.Context(), c, "idle", writer("2", &builds))
	if err != nil {
		t.Fatal(err)
	}
	done()
	for path, age := range map[string]time.Duration{held: 2 * time.Hour, idle: time.Hour} {
		at := time.Now().Add(-age)
		os.Chtimes(path, at, at)
	}
	_, _, done, err = Get(t.Context(), c, "new", writer("3", &builds))
	if err != nil {
		t.Fatal(err)
	}
	done()
	if _, err := os.Stat(held); err != nil {
		t.Error("a held file was evicted")
	}
	if _, err := os.Stat(idle); err == nil {
		t.Error("an idle file stayed over the limit")
	}
	release()
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	os.WriteFile(path, []byte("a"), 0o600)
	one, err := Identity(path)
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(path, []byte("ab"), 0o600)
	if two, _ := Identity(path); one == two {
		t.Error("a changed file has the same identity")
	}
}
