package qemu

import (
	"os"
	"path/filepath"
	"testing"
)

// A binary is asked once, and again when it was replaced. Not in parallel: a
// test that starts a program meanwhile would hold the file open for writing
// for a moment, and a file held so cannot be run.
func TestVersions(t *testing.T) {
	dir := t.TempDir()
	binary, asked := filepath.Join(dir, "qemu"), filepath.Join(dir, "asked")
	install := func(version string) {
		script := "#!/bin/sh\necho >> " + asked + "\necho QEMU emulator version " + version + " '(Debian)'\n"
		if err := os.WriteFile(binary+".new", []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(binary+".new", binary); err != nil {
			t.Fatal(err)
		}
	}
	var v versions
	for i, want := range []string{"7.2.22", "7.2.22", "10.0.0"} {
		if i != 1 {
			install(want)
		}
		if got, err := v.of(t.Context(), binary); got != want || err != nil {
			t.Errorf("%d: got %q, %v, want %s", i, got, err, want)
		}
	}
	if n, err := os.Stat(asked); err != nil || n.Size() != 2 {
		t.Errorf("asked %v times, %v", n, err)
	}
	if got, err := v.of(t.Context(), filepath.Join(dir, "gone")); err == nil {
		t.Errorf("no binary gave %q", got)
	}
}
