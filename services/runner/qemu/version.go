package qemu

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"sync"
	"time"

	"github.com/pullab/pullab/services/runner/qemu/internal/derived"
)

var versionForm = regexp.MustCompile(`version (\S+)`)

// versions remembers what binaries said for as long as their files stay as they
// are: asking takes as long as everything else before a start.
type versions struct {
	mu    sync.Mutex
	known map[string]string
}

func (v *versions) of(ctx context.Context, binary string) (string, error) {
	key, err := fileKey(binary)
	if err != nil {
		// What is wrong with it is better told by trying.
		return qemuVersion(ctx, binary)
	}
	v.mu.Lock()
	got := v.known[key]
	v.mu.Unlock()
	if got != "" {
		return got, nil
	}
	if got, err = qemuVersion(ctx, binary); err != nil {
		return "", err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.known == nil {
		v.known = map[string]string{}
	}
	v.known[key] = got
	return got, nil
}

// fileKey names a program's file as it is now.
func fileKey(binary string) (string, error) {
	path, err := exec.LookPath(binary)
	if err != nil {
		return "", err
	}
	return derived.Identity(path)
}

// qemuVersion asks the binary, which also shows that it is there.
func qemuVersion(ctx context.Context, binary string) (string, error) {
	timed, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(timed, binary, "--version").Output()
	if err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", labError("launch", false, fmt.Errorf("%s does not run: %w", binary, err),
			"Install QEMU (Debian: qemu-system-x86 and qemu-system-arm) or set its path in the qemu section.")
	}
	m := versionForm.FindSubmatch(out)
	if m == nil {
		return "unknown", nil
	}
	return string(m[1]), nil
}
