//go:build linux

// Package machine is the bare machine around the guest: file systems, the
// report port, the disk, dead children, power.
package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pullab/pullab/pkg/backoff"
)

// Kernel is what the running kernel calls itself (uname(2)).
type Kernel struct{ Release, Version, Machine string }

// Running asks the kernel.
func Running() (Kernel, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Kernel{}, fmt.Errorf("uname: %w", err)
	}
	text := unix.ByteSliceToString
	return Kernel{Release: text(u.Release[:]), Version: text(u.Version[:]), Machine: text(u.Machine[:])}, nil
}

// Uptime is the time since the kernel started.
func Uptime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
	// optional: kernels may be built without it.
	optional bool
}

const noExec = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// system are the file systems below a root, the same for the initramfs and for
// the job's root file system.
var system = []mount{
	{"proc", "proc", "proc", noExec, "", false},
	{"sysfs", "sys", "sysfs", noExec, "", false},
	{"devtmpfs", "dev", "devtmpfs", unix.MS_NOSUID, "mode=0755", false},
	{"devpts", "dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "ptmxmode=0666,mode=0620,gid=5", true},
	{"tmpfs", "dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777", true},
	{"tmpfs", "run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755", true},
	{"tmpfs", "tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777", true},
}

// tracing are the file systems that tests look at.
var tracing = []mount{
	{"cgroup2", "sys/fs/cgroup", "cgroup2", noExec, "", true},
	{"debugfs", "sys/kernel/debug", "debugfs", noExec, "", true},
	{"tracefs", "sys/kernel/tracing", "tracefs", noExec, "", true},
	{"securityfs", "sys/kernel/security", "securityfs", noExec, "", true},
}

// Mount mounts proc, sys, dev, run and tmp below root; what is mounted already
// stays.
func Mount(root string) error { return mountAll(root, system) }

func mountAll(root string, mounts []mount) error {
	for _, m := range mounts {
		target := filepath.Join(root, m.target)
		err := os.MkdirAll(target, 0o755)
		if err == nil {
			err = unix.Mount(m.source, target, m.kind, m.flags, m.data)
		}
		if err != nil && !errors.Is(err, unix.EBUSY) && !m.optional {
			return fmt.Errorf("mounting %s on %s: %w", m.kind, target, err)
		}
	}
	for link, to := range map[string]string{
		"dev/fd": "/proc/self/fd", "dev/stdin": "/proc/self/fd/0", "dev/stdout": "/proc/self/fd/1", "dev/stderr": "/proc/self/fd/2",
	} {
		// There already, or a test will say that it misses it.
		_ = os.Symlink(to, filepath.Join(root, link))
	}
	return nil
}

// look is how often a device is looked for.
const look = 100 * time.Millisecond

// Await calls find until it succeeds or the time is over, whose error it then
// gives. Devices appear when their drivers have probed them, at no signal that
// a bare initramfs could hear.
func Await[T any](ctx context.Context, limit time.Duration, find func() (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		found, err := find()
		if err == nil || backoff.Sleep(ctx, look) != nil {
			return found, err
		}
	}
}

// Loopback brings the interface lo up; network tests expect it.
func Loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// syncLimit bounds the last sync: a file system that hangs must not keep the
// machine.
const syncLimit = 10 * time.Second

// PowerOff ends the machine. It returns only when the kernel would not.
func PowerOff() error {
	synced := make(chan struct{})
	go func() {
		unix.Sync()
		close(synced)
	}()
	select {
	case <-synced:
	case <-time.After(syncLimit):
	}
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	return errors.Join(err, unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
}
