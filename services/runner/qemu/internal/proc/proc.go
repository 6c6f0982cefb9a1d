// Package proc starts a program that outlives the one who started it, under a
// watchdog that ends it in time, and finds it again.
//
// What is started is a session of three processes: a shell that records its
// identity and the exit status, coreutils' timeout as the watchdog, and the
// program. The shell puts its identity down by making a hard link, which only
// one process can do, so that a directory has at most one program, whoever
// crashed in between.
//
// A process is known by its id together with its start time, or, when the
// shell was killed and left the others behind, by its session together with the
// directory's name in its arguments: a reused process id is not taken for ours.
package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pullab/pullab/pkg/backoff"
)

// Names of the files in a machine's directory.
const (
	startedFile = "started"
	statusFile  = "status"
)

// script takes the directory, the limit in seconds, the log, and the program.
const script = `
dir=$1 limit=$2 log=$3
shift 3
cat /proc/$$/stat > "$dir/started.$$" && ln "$dir/started.$$" "$dir/started" || exit 1
rm -f "$dir/started.$$"
TMPDIR=$dir timeout -k 5 "$limit" "$@" >> "$log" 2>&1 < /dev/null
code=$?
echo "pullab: exit status $code" >> "$log"
echo "$code" > "$dir/status.new" && mv "$dir/status.new" "$dir/status"
`

// Spec is a program to start.
type Spec struct {
	// Dir is the machine's directory: absolute, and named in Args.
	Dir string
	// Log gets what the program prints.
	Log string
	// Limit is how long it may run.
	Limit time.Duration
	Args  []string
}

// startWait is how long the shell may take to put its identity down.
const startWait = 20 * time.Second

// Launch starts it and waits until Find would find it.
func Launch(ctx context.Context, s Spec) error {
	seconds := max(1, int64((s.Limit+time.Second-1)/time.Second))
	args := append([]string{"-c", script, "pullab-machine", s.Dir, strconv.FormatInt(seconds, 10), s.Log}, s.Args...)
	cmd := exec.Command("/bin/sh", args...) //nolint:noctx // it outlives the caller
	cmd.Dir = s.Dir
	// Nothing of the runner's environment: it may hold secrets.
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	if path := os.Getenv("PATH"); path != "" {
		cmd.Env[0] = "PATH=" + path
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	logFile, err := os.OpenFile(s.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer logFile.Close()
	cmd.Stdout, cmd.Stderr = logFile, logFile
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting /bin/sh: %w", err)
	}
	pid := cmd.Process.Pid
	if err := cmd.Process.Release(); err != nil {
		return err
	}
	for deadline := time.Now().Add(startWait); ; {
		if _, ok := Find(s.Dir); ok {
			return nil
		}
		reap(pid)
		if st, err := readStat(pid); err != nil || st.state == 'Z' || time.Now().After(deadline) {
			if _, ok := Find(s.Dir); ok {
				return nil
			}
			return fmt.Errorf("the machine's shell ended before it began; see %s", s.Log)
		}
		if err := backoff.Sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
}

// Process is a program that was started in a directory.
type Process struct {
	dir   string
	pid   int
	ticks uint64
	// Started is when.
	Started time.Time
}

// Find gives the program that was started in dir, running or not.
func Find(dir string) (Process, bool) {
	path := filepath.Join(dir, startedFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return Process{}, false
	}
	st, err := parseStat(b)
	if err != nil {
		return Process{}, false
	}
	info, err := os.Stat(path)
	if err != nil {
		return Process{}, false
	}
	return Process{dir: dir, pid: st.pid, ticks: st.ticks, Started: info.ModTime()}, true
}

// PID of the session's leader.
func (p Process) PID() int { return p.pid }

// Alive says whether any process of it runs.
func (p Process) Alive() bool {
	reap(p.pid)
	if st, err := readStat(p.pid); err == nil && st.ticks == p.ticks && st.state != 'Z' && st.state != 'X' {
		return true
	}
	return len(p.members()) > 0
}

// Kill ends it and waits until it is gone. It is no error if it was.
func (p Process) Kill(ctx context.Context) error {
	for {
		members := p.members()
		if len(members) == 0 {
			return nil
		}
		for _, m := range members {
			if err := p.kill(m); err != nil {
				return err
			}
		}
		reap(p.pid)
		if err := backoff.Sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
}

// kill holds the process by a descriptor while it looks again whether it is the
// one, so that the signal cannot hit a successor of the same number.
func (p Process) kill(m stat) error {
	proc, err := os.FindProcess(m.pid)
	if err != nil {
		return err
	}
	defer func() { _ = proc.Release() }()
	if now, err := readStat(m.pid); err != nil || now.ticks != m.ticks || now.session != p.pid {
		return nil
	}
	if err := proc.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("ending process %d: %w", m.pid, err)
	}
	return nil
}

// members are the running processes of the session that name its directory.
func (p Process) members() (all []stat) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		st, err := readStat(pid)
		if err != nil || st.session != p.pid || st.state == 'Z' || st.state == 'X' || st.ticks < p.ticks {
			continue
		}
		args, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && bytes.Contains(args, []byte(p.dir)) {
			all = append(all, st)
		}
	}
	return all
}

// reap takes the exit of our own child away, if it is one, so that it does not
// stay as a zombie of a runner that lives long.
func reap(pid int) {
	_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
}

// Exit is how it ended.
type Exit struct {
	// Code as a shell gives it: 128+n for signal n, 124 from the watchdog.
	Code int
	At   time.Time
}

// Status reads how the program in dir ended; false while it runs, and for ever
// when its shell was killed.
func Status(dir string) (Exit, bool) {
	path := filepath.Join(dir, statusFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return Exit{}, false
	}
	info, err := os.Stat(path)
	if err != nil {
		return Exit{}, false
	}
	code, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return Exit{}, false
	}
	return Exit{Code: code, At: info.ModTime()}, true
}

// stat is what is used of /proc/<pid>/stat (proc(5)).
type stat struct {
	pid, session int
	state        byte
	// ticks since the host's boot at which it started.
	ticks uint64
}

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, err
	}
	return parseStat(b)
}

var errStat = errors.New("not the content of /proc/<pid>/stat")

// parseStat: the command's name is in brackets and may hold blanks and brackets.
func parseStat(b []byte) (stat, error) {
	text := string(b)
	first, _, ok := strings.Cut(text, " ")
	end := strings.LastIndexByte(text, ')')
	if !ok || end < 0 {
		return stat{}, errStat
	}
	pid, err := strconv.Atoi(first)
	f := strings.Fields(text[end+1:])
	if err != nil || pid <= 0 || len(f) < 20 || len(f[0]) != 1 {
		return stat{}, errStat
	}
	session, err := strconv.Atoi(f[3])
	if err != nil {
		return stat{}, errStat
	}
	ticks, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return stat{}, errStat
	}
	return stat{pid: pid, session: session, state: f[0][0], ticks: ticks}, nil
}
