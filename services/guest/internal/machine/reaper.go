//go:build linux

package machine

import (
	"os"
	"os/exec"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reaper is PID 1's duty beside its own children: orphans are given to it and
// stay zombies until it waits for them. A plain wait for any child would take
// the exit status of a test from exec.Cmd, so the Reaper looks first (WNOWAIT)
// and leaves what was started through it alone.
type Reaper struct {
	mu   sync.Mutex
	ours map[int]bool
	kick chan struct{}
}

// NewReaper needs Run.
func NewReaper() *Reaper {
	return &Reaper{ours: map[int]bool{}, kick: make(chan struct{}, 1)}
}

// Start is cmd.Start.
func (r *Reaper) Start(cmd *exec.Cmd) error {
	// Held over the fork, or a child that dies at once would be taken for an
	// orphan.
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	r.ours[cmd.Process.Pid] = true
	return nil
}

// Wait is cmd.Wait.
func (r *Reaper) Wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	r.mu.Lock()
	delete(r.ours, cmd.Process.Pid)
	r.mu.Unlock()
	// While it lay there dead, it hid the orphans behind it.
	select {
	case r.kick <- struct{}{}:
	default:
	}
	return err
}

// Run reaps orphans at every signal until the channel is closed. SIGCHLD alone
// would do; any other finds nothing.
func (r *Reaper) Run(signals <-chan os.Signal) {
	for {
		select {
		case _, ok := <-signals:
			if !ok {
				return
			}
		case <-r.kick:
		}
		for r.reapOne() {
		}
	}
}

// reapOne waits for one dead orphan; false when there is none to be seen.
func (r *Reaper) reapOne() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid := deadChild()
	if pid <= 0 || r.ours[pid] {
		return false
	}
	_, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
	return err == nil
}

// deadChild is the pid of a child that waits to be waited for, else 0.
func deadChild() int {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	if err != nil || info.Signo != int32(unix.SIGCHLD) {
		return 0
	}
	// si_pid opens the union, which lies at byte 16 on 64-bit machines
	// (include/uapi/asm-generic/siginfo.h); x/sys does not name it.
	const unionAt = 16
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), unionAt)))
}
