package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pullab/pullab/pkg/backoff"
)

// process is a line of /proc/<pid>/stat (proc(5)): number and start time name a
// process for good, until the next boot of the host.
type process struct {
	pid, session int
	// start is in clock ticks since boot.
	start string
	// zombie: it has ended, and only its number is still taken.
	zombie bool
}

// parseStat reads a stat line. The command's name, in parentheses, may hold
// anything.
func parseStat(b []byte) (process, error) {
	bad := fmt.Errorf("not a line of /proc/<pid>/stat: %.80q", b)
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return process{}, bad
	}
	pid, _, _ := bytes.Cut(b, []byte(" "))
	rest := bytes.Fields(b[i+1:])
	// Fields from the third on: state ppid pgrp session ...; starttime is the
	// 22nd.
	if len(rest) < 20 {
		return process{}, bad
	}
	var p process
	var err1, err2 error
	p.pid, err1 = strconv.Atoi(string(pid))
	p.session, err2 = strconv.Atoi(string(rest[3]))
	p.start = string(rest[19])
	p.zombie = rest[0][0] == 'Z'
	if err1 != nil || err2 != nil || p.pid <= 1 {
		return process{}, bad
	}
	return p, nil
}

// lookup reads the process that has this number now.
func lookup(pid int) (process, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return process{}, err
	}
	return parseStat(b)
}

// runs tells whether p still is the process that it was, and has not ended.
func (p process) runs() bool {
	now, err := lookup(p.pid)
	return err == nil && now.start == p.start && !now.zombie
}

// members are the processes of p's session, p included.
func (p process) members() []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var ms []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if m, err := lookup(pid); err == nil && m.session == p.pid {
			ms = append(ms, m)
		}
	}
	return ms
}

// signal reaches p only if it still is the process that it was.
func (p process) signal(s syscall.Signal) {
	if p.runs() {
		// It may end in this moment: then there is nothing to signal.
		_ = syscall.Kill(p.pid, s)
	}
}

// lock takes an open file description lock (fcntl(2)) on path: children that
// inherit the file hold it too, and it ends with the last of them, however they
// die.
func lock(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		if err := backoff.Sleep(ctx, lockPoll); err != nil {
			f.Close()
			return nil, err
		}
	}
}

// locked tells whether somebody holds the lock, without touching it.
func locked(path string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
		return false, fmt.Errorf("looking at the lock of %s: %w", path, err)
	}
	return l.Type != unix.F_UNLCK, nil
}
