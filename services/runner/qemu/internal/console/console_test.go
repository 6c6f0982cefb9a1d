package console

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestFind(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, text, line string
		panics           bool
	}{
		{"nothing", "", "", false},
		{"blank", "\n \x00\r\n", "", false},
		{"booted", "[    0.000000] Linux version 6.1\n[    1.0] ok\n", "", false},
		{"no root", "[    2.1] List of all partitions:\r\n[    2.2] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n[    2.3] CPU: 0\r\n",
			"Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)", true},
		{"panic wins over its oops", "[    1.0] BUG: kernel NULL pointer dereference, address: 0\n[    1.1] Oops: 0002 [#1] SMP\n[    1.2][    T1] Kernel panic - not syncing: Fatal exception\n",
			"Kernel panic - not syncing: Fatal exception", true},
		{"oops alone", "[    1.0] BUG: kernel NULL pointer dereference, address: 0\n[    1.1] Oops: 0002 [#1] SMP\n", "Oops: 0002 [#1] SMP", false},
		{"colours", "\x1b[1;31m[    1.0] kernel BUG at mm/slub.c:1!\x1b[0m\n", "kernel BUG at mm/slub.c:1!", false},
		{"word inside another", "Oopsie daisy\n", "", false},
	}
	for _, tt := range tests {
		f := Find([]byte(tt.text))
		if f.Line != tt.line || f.Panic != tt.panics {
			t.Errorf("%s: line %q, panic %v; want %q, %v", tt.name, f.Line, f.Panic, tt.line, tt.panics)
		}
		if tt.line != "" && !strings.Contains(f.Excerpt, tt.line) {
			t.Errorf("%s: the excerpt lacks the line: %q", tt.name, f.Excerpt)
		}
		if f.Excerpt == "" {
			t.Errorf("%s: empty excerpt", tt.name)
		}
	}
}

func TestLongConsole(t *testing.T) {
	t.Parallel()
	noise := strings.Repeat("[    1.0] messages of a long boot é\n", 100_000)
	file := filepath.Join(t.TempDir(), "console.log")
	if err := os.WriteFile(file, []byte(noise+"Kernel panic - not syncing: x\n"+strings.Repeat("trace\n", 50_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	f := Read(file)
	if !f.Panic || !strings.Contains(f.Excerpt, "not syncing: x") || !strings.Contains(f.Excerpt, "trace") ||
		!strings.HasPrefix(f.Excerpt, "[") || utf8.RuneCountInString(f.Excerpt) > MaxExcerpt {
		t.Errorf("panic %v, %d runes: %.100q", f.Panic, utf8.RuneCountInString(f.Excerpt), f.Excerpt)
	}
	if got := Read(file + ".missing"); got.Excerpt != Empty {
		t.Errorf("no console gave %q", got.Excerpt)
	}
}

func FuzzFind(f *testing.F) {
	f.Add([]byte("[    2.2] Kernel panic - not syncing: x\n"))
	f.Add([]byte("\x1b[0m\xff\x00BUG: \n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := Find(b)
		if got.Excerpt == "" || strings.ContainsRune(got.Excerpt, 0) || !utf8.ValidString(got.Excerpt) ||
			utf8.RuneCountInString(got.Excerpt) > MaxExcerpt {
			t.Errorf("excerpt %q", got.Excerpt)
		}
	})
}
