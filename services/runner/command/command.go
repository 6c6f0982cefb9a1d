package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/executor"
	"github.com/pullab/pullab/pkg/wire"
)

// Name of the executor in plans.
const Name = "command"

const (
	// killAfter SIGTERM comes SIGKILL.
	killAfter = 10 * time.Second
	// settle is how long after that the program's end is waited for.
	settle = 5 * time.Second
	// lockPoll and tick pace the looking at locks and output.
	lockPoll = 20 * time.Millisecond
	tick     = 100 * time.Millisecond
	// keep is how long the state of an ended program is kept for whoever adopts
	// its run, after its deadline.
	keep = 7 * 24 * time.Hour
)

// shepherd is run by timeout(1), and becomes the program. It first writes down
// who timeout is, so that this is known even if the runner dies right after the
// fork. The lock on descriptor 3 stays with timeout.
const shepherd = `cat "/proc/$PPID/stat" >"$1.tmp" && mv "$1.tmp" "$1" && shift && exec "$@" 3>&-`

// Executor runs a program per attempt.
type Executor struct {
	settings Settings
	program  string
	timeout  string
	// dir has a directory per attempt.
	dir, host string

	mu sync.Mutex
	// children were started by this process, which has to reap them.
	children map[string]*exec.Cmd
}

var _ executor.Executor = (*Executor)(nil)

// New opens the executor over dir, where it keeps its programs' state; other
// processes on host may share it.
func New(s Settings, dir, host string) (*Executor, error) {
	if s.Path == "" {
		return nil, errNoProgram
	}
	program, err := exec.LookPath(s.Path)
	if err != nil {
		return nil, fmt.Errorf("command.path: %w", err)
	}
	if program, err = filepath.Abs(program); err != nil {
		return nil, err
	}
	timeout, err := exec.LookPath("timeout")
	if err != nil {
		return nil, fmt.Errorf("the command executor needs timeout(1): install coreutils: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making %s: %w. Make runner.data_dir writable", dir, err)
	}
	return &Executor{settings: s, program: program, timeout: timeout, dir: dir, host: host, children: map[string]*exec.Cmd{}}, nil
}

// machine is an attempt's record on disk.
type machine struct {
	RunID    string    `json:"run_id"`
	Attempt  int       `json:"attempt"`
	Deadline time.Time `json:"deadline"`
	Started  time.Time `json:"started"`
	// Dir is the run's directory.
	Dir string `json:"dir"`
}

// Files of an attempt's directory.
const (
	recordFile  = "machine.json"
	inputFile   = "input.json"
	outputFile  = "output.jsonl"
	startLock   = "start"
	aliveLock   = "alive"
	statFile    = "stat"
	stoppedFile = "stopped"
)

func (x *Executor) path(id, file string) string { return filepath.Join(x.dir, id, file) }

func (x *Executor) handle(id string) executor.Handle {
	return executor.Handle{Executor: Name, ID: id, Host: x.host}
}

var legalID = regexp.MustCompile(`^[A-Za-z0-9_=-]+\.[0-9]+$`)

func idOf(run executor.Run) string {
	return wire.Token(run.Plan.GetRunId()) + "." + strconv.Itoa(run.Attempt)
}

// failure is the lab's, unless ctx ended.
func failure(ctx context.Context, reason string, err error, fix string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return &executor.LabError{Reason: reason, Err: err, Fix: fix}
}

// Start starts the program, or finds it started.
func (x *Executor) Start(ctx context.Context, run executor.Run, _ executor.Progress) (executor.Handle, error) {
	if ctx.Err() != nil {
		return executor.Handle{}, context.Cause(ctx)
	}
	id := idOf(run)
	if err := os.MkdirAll(filepath.Join(x.dir, id), 0o700); err != nil {
		return executor.Handle{}, failure(ctx, "disk", err, "Make runner.data_dir writable")
	}
	mutex, err := lock(ctx, x.path(id, startLock))
	if err != nil {
		return executor.Handle{}, failure(ctx, "disk", err, "Make runner.data_dir writable")
	}
	defer mutex.Close()
	started, err := x.started(id)
	if err == nil && !started {
		err = x.launch(ctx, id, run)
	}
	if err != nil {
		return executor.Handle{}, failure(ctx, "launch", err, "Look at runner.data_dir and command.path")
	}
	return x.handle(id), nil
}

// started tells whether the program was ever started. Between the fork and the
// shepherd's first act only the lock says so.
func (x *Executor) started(id string) (bool, error) {
	if _, err := os.Stat(x.path(id, statFile)); err == nil {
		return true, nil
	}
	return locked(x.path(id, aliveLock))
}

func (x *Executor) launch(ctx context.Context, id string, run executor.Run) error {
	dir, err := filepath.Abs(run.Dir)
	if err != nil {
		return err
	}
	m := machine{RunID: run.Plan.GetRunId(), Attempt: run.Attempt, Deadline: run.Deadline, Started: time.Now(), Dir: dir}
	plan, err := wire.Encode(run.Plan)
	if err != nil {
		return err
	}
	if err := errors.Join(
		writeJSON(x.path(id, recordFile), m),
		writeJSON(x.path(id, inputFile), Input{RunID: m.RunID, Attempt: m.Attempt, Deadline: m.Deadline, Dir: dir, Plan: plan}),
	); err != nil {
		return err
	}
	left := time.Until(run.Deadline)
	if left <= 0 {
		return errors.New("the deadline has passed already")
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), x.timeout, append([]string{
		"-k", seconds(killAfter), seconds(left), "/bin/sh", "-c", shepherd, "sh", x.path(id, statFile), x.program,
	}, x.settings.Args...)...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	alive, err := lock(ctx, x.path(id, aliveLock))
	if err != nil {
		return err
	}
	defer alive.Close()
	in, err1 := os.Open(x.path(id, inputFile))
	out, err2 := os.OpenFile(x.path(id, outputFile), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	log, err3 := os.OpenFile(filepath.Join(dir, logName(run.Attempt)), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	defer func() { in.Close(); out.Close(); log.Close() }()
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = in, out, log, []*os.File{alive}
	if err := cmd.Start(); err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.children[id] = cmd
	return nil
}

// logName of the program's standard error.
func logName(attempt int) string {
	if attempt == 1 {
		return "program.log"
	}
	return fmt.Sprintf("program-%d.log", attempt)
}

// seconds as timeout(1) takes them, for which 0 is for ever.
func seconds(d time.Duration) string {
	d = max(d, time.Millisecond)
	return strconv.FormatFloat(d.Seconds(), 'f', 3, 64) + "s"
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// reap takes leave of an ended child, if it is one of this process.
func (x *Executor) reap(id string) {
	x.mu.Lock()
	cmd := x.children[id]
	delete(x.children, id)
	x.mu.Unlock()
	if cmd != nil {
		// Its exit code is timeout's and says nothing that the output does not.
		_ = cmd.Wait()
	}
}

// Stop ends the program.
func (x *Executor) Stop(ctx context.Context, h executor.Handle) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	id := h.ID
	if h.Executor != Name || !legalID.MatchString(id) {
		return fmt.Errorf("%s %q is no machine of the command executor", h.Executor, id)
	}
	if _, err := os.Stat(x.path(id, recordFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	alive, err := locked(x.path(id, aliveLock))
	if err != nil || !alive {
		x.reap(id)
		return err
	}
	if err := os.WriteFile(x.path(id, stoppedFile), nil, 0o600); err != nil {
		return err
	}
	leader, err := x.leader(ctx, id)
	if err != nil {
		return err
	}
	return x.end(ctx, id, leader)
}

// leader is the timeout(1) over the program. The shepherd writes it down in its
// first moments.
func (x *Executor) leader(ctx context.Context, id string) (process, error) {
	for {
		b, err := os.ReadFile(x.path(id, statFile))
		if err == nil {
			return parseStat(b)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return process{}, err
		}
		if alive, err := locked(x.path(id, aliveLock)); err != nil || !alive {
			return process{}, err
		}
		if err := backoff.Sleep(ctx, lockPoll); err != nil {
			return process{}, err
		}
	}
}

// end signals the whole session: politely, then not.
func (x *Executor) end(ctx context.Context, id string, leader process) error {
	if !leader.runs() {
		x.reap(id)
		return nil
	}
	all := leader.members()
	for _, p := range all {
		p.signal(syscall.SIGTERM)
	}
	until := time.Now().Add(killAfter)
	for {
		if !slices.ContainsFunc(all, process.runs) {
			x.reap(id)
			return nil
		}
		if late := time.Since(until); late > settle {
			return fmt.Errorf("program %s survives SIGKILL: a process of session %d hangs in the kernel", id, leader.pid)
		} else if late > 0 {
			for _, p := range append(leader.members(), all...) {
				p.signal(syscall.SIGKILL)
			}
		}
		if err := backoff.Sleep(ctx, lockPoll); err != nil {
			return err
		}
	}
}

// List shows the programs that run.
func (x *Executor) List(ctx context.Context) ([]executor.Machine, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	entries, err := os.ReadDir(x.dir)
	if err != nil {
		return nil, err
	}
	var ms []executor.Machine
	var errs []error
	for _, e := range entries {
		id := e.Name()
		if !legalID.MatchString(id) {
			continue
		}
		alive, err := locked(x.path(id, aliveLock))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		m, err := x.record(id)
		switch {
		case alive:
			ms = append(ms, executor.Machine{
				Handle: x.handle(id), RunID: m.RunID, Attempt: m.Attempt, Deadline: m.Deadline, Started: m.Started, Ours: err == nil,
			})
		case err == nil && time.Since(m.Deadline) > keep:
			x.reap(id)
			errs = append(errs, os.RemoveAll(filepath.Join(x.dir, id)))
		default:
			x.reap(id)
		}
	}
	return ms, errors.Join(errs...)
}

// maxRecord bounds a state file, in bytes.
const maxRecord = 64 << 10

func (x *Executor) record(id string) (machine, error) {
	var m machine
	b, err := os.ReadFile(x.path(id, recordFile))
	if err != nil {
		return m, err
	}
	if len(b) > maxRecord {
		return m, fmt.Errorf("%s has %d bytes: it is not ours", x.path(id, recordFile), len(b))
	}
	return m, json.Unmarshal(b, &m)
}
