//go:build linux

package machine

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// FindDisk gives the device node of the disk with a serial number: virtio-blk
// (serial), NVMe (device/serial), SCSI and ATA (device/vpd_pg80, whose first
// four bytes are a header).
func FindDisk(serial string) (string, error) {
	disks, err := filepath.Glob("/sys/block/*")
	if err != nil {
		return "", err
	}
	var seen []string
	for _, d := range disks {
		name := filepath.Base(d)
		for _, f := range []string{"serial", "device/serial", "device/vpd_pg80"} {
			b, err := os.ReadFile(filepath.Join(d, f))
			if err != nil {
				continue
			}
			if f == "device/vpd_pg80" {
				b = b[min(4, len(b)):]
			}
			if sameSerial(string(bytes.Trim(b, " \n\x00")), serial) {
				return filepath.Join("/dev", name), nil
			}
		}
		seen = append(seen, name)
	}
	return "", fmt.Errorf("no disk has the serial number %s; the disks here: %s: %w", serial, strings.Join(seen, " "), fs.ErrNotExist)
}

// sameSerial: virtio-blk has room for 20 bytes (VIRTIO_BLK_ID_BYTES).
func sameSerial(got, want string) bool {
	const room = 20
	return got == want || len(got) == room && strings.HasPrefix(want, got)
}

// Root is the job's root file system, in which tests run.
type Root struct {
	dir    string
	reaper *Reaper
}

// MountRoot mounts the ext4 file system on a disk, with the system's file
// systems in it and the job's modules where modprobe looks for them.
func MountRoot(node, dir, release string, reaper *Reaper) (*Root, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount(node, dir, "ext4", 0, ""); err != nil {
		return nil, fmt.Errorf("mounting the root file system on %s as ext4: %w", node, err)
	}
	if err := mountAll(dir, append(system, tracing...)); err != nil {
		return nil, err
	}
	r := &Root{dir: dir, reaper: reaper}
	modules := filepath.Join("/lib/modules", release)
	if _, err := os.Stat(modules); err == nil {
		// Without it only tests that load modules suffer, and they say so.
		_ = r.bind(modules)
	}
	return r, nil
}

// bind shows a directory of the initramfs at the same place in the root, where
// /lib may be a link to /usr/lib.
func (r *Root) bind(dir string) error {
	target := filepath.Join(r.dir, dir)
	if info, err := os.Lstat(filepath.Join(r.dir, "lib")); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		target = filepath.Join(r.dir, "usr", dir)
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	return unix.Mount(dir, target, "", unix.MS_BIND, "")
}

// Open opens a file as a program in the root would, links included.
func (r *Root) Open(name string) (fs.File, error) {
	fd, err := unix.Open(r.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT}
	got, err := unix.Openat2(fd, name, &how)
	switch {
	case errors.Is(err, unix.ENOSYS): // before Linux 5.6
		return os.Open(filepath.Join(r.dir, name))
	case err != nil:
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(got), name), nil
}

// Command is a program in the root, in a session of its own.
func (r *Root) Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...) //nolint:noctx // the caller ends the whole session, which a context would not
	cmd.Dir = "/"
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb", "LTPROOT=/opt/ltp",
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Chroot: r.dir, Setsid: true}
	return cmd
}

// Start starts a command of Command.
func (r *Root) Start(cmd *exec.Cmd) error { return r.reaper.Start(cmd) }

// Wait waits for a command started with Start.
func (r *Root) Wait(cmd *exec.Cmd) error { return r.reaper.Wait(cmd) }

// Kill ends a command with all its session's group.
func (r *Root) Kill(cmd *exec.Cmd) { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }

// Sweep ends every process but PID 1: what a test left behind would run into
// the next one's results. Elsewhere than in PID 1 it does nothing: there the
// machine is not ours.
func (r *Root) Sweep() {
	if os.Getpid() == 1 {
		_ = unix.Kill(-1, unix.SIGKILL)
	}
}
