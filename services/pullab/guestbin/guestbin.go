// Package guestbin carries the guest program inside the pullab binary. `make
// guest` puts one executable per arch into bin/ before the build; a binary
// built without them says so when it needs one.
package guestbin

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

//go:embed bin
var files embed.FS

// ErrMissing: this build carries no guest program.
var ErrMissing = errors.New("this pullab was built without the guest program: run `make build`, or set qemu.guest_dir to a folder that holds pullab-guest-amd64 and pullab-guest-arm64")

// Unpack writes the guest programs below dir and returns the folder. Files that
// are there already with the right content are left alone.
func Unpack(dir string) (string, error) {
	names, err := fs.Glob(files, "bin/pullab-guest-*")
	if err != nil || len(names) == 0 {
		return "", errors.Join(ErrMissing, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("unpacking the guest program: %w", err)
	}
	for _, name := range names {
		b, err := files.ReadFile(name)
		if err != nil {
			return "", err
		}
		if err := place(filepath.Join(dir, filepath.Base(name)), b); err != nil {
			return "", fmt.Errorf("unpacking the guest program: %w. Make %s writable", err, dir)
		}
	}
	return dir, nil
}

// place writes through a temporary file, so that a reader never sees half of it.
func place(path string, b []byte) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == string(b) {
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".guest-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after the rename
	if _, err := tmp.Write(b); err != nil {
		tmp.Close()
		return err
	}
	if err := errors.Join(tmp.Chmod(0o755), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
