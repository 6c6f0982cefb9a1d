package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/executor"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/runner/fetch"
	"github.com/pullab/pullab/services/runner/qemu/internal/derived"
	"github.com/pullab/pullab/services/runner/qemu/internal/proc"
)

// Name is the executor's in plans.
const Name = "qemu"

// Executor boots kernels on this host.
type Executor struct {
	settings Settings
	machines string
	host     string
	fetcher  *fetch.Fetcher
	derived  *derived.Cache
	accel    accelerators
	versions versions
}

var _ executor.Executor = (*Executor)(nil)

// Option changes an Executor.
type Option func(*fetch.Options)

// WithTransport makes downloads go through rt.
func WithTransport(rt http.RoundTripper) Option {
	return func(o *fetch.Options) { o.Transport = rt }
}

// New opens the executor's data directory. Machines that another process
// started there are this executor's too.
func New(s Settings, opts ...Option) (*Executor, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(s.DataDir)
	if err != nil {
		return nil, err
	}
	e := &Executor{settings: s, machines: filepath.Join(dir, "machines")}
	// The machines' initial file systems hold keys.
	if err := os.MkdirAll(e.machines, 0o700); err != nil {
		return nil, fmt.Errorf("preparing qemu.data_dir: %w", err)
	}
	if e.host, err = os.Hostname(); err != nil {
		return nil, err
	}
	fo := fetch.Options{AllowFile: s.AllowFile, MaxFile: int64(s.DownloadGiB) << 30, MaxCache: int64(s.CacheGiB) << 30}
	for _, o := range opts {
		o(&fo)
	}
	if e.fetcher, err = fetch.New(filepath.Join(dir, "downloads"), fo); err != nil {
		return nil, err
	}
	if e.derived, err = derived.New(filepath.Join(dir, "derived"), int64(s.CacheGiB)<<30); err != nil {
		return nil, err
	}
	e.accel.memo = filepath.Join(dir, "kvm-hung.json")
	e.sweep()
	return e, nil
}

// state is what a machine's directory says of it: all that another process
// needs to go on.
type state struct {
	RunID    string    `json:"run_id"`
	Attempt  int       `json:"attempt"`
	Deadline time.Time `json:"deadline"`
	Host     string    `json:"host"`
	// RunDir is absolute; the logs in it have the names below.
	RunDir  string `json:"run_dir"`
	Console string `json:"console"`
	Channel string `json:"channel"`
	Log     string `json:"log"`
	// Key of the channel.
	Key         string            `json:"key"`
	Releases    []string          `json:"releases"`
	BootTimeout time.Duration     `json:"boot_timeout_ns"`
	Grace       time.Duration     `json:"grace_ns"`
	Facts       map[string]string `json:"facts"`
}

const (
	stateFile = "state.json"
	endedFile = "ended.json"
	lockFile  = "lock"
)

var legalID = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}$`)

func machineID(run executor.Run) (string, error) {
	id := run.Plan.GetRunId() + "-" + strconv.Itoa(run.Attempt)
	if !legalID.MatchString(id) {
		return "", labError("launch", true, fmt.Errorf("run id %q cannot name a directory", run.Plan.GetRunId()), "Plan the job again.")
	}
	return id, nil
}

func (e *Executor) dir(id string) string { return filepath.Join(e.machines, id) }

func (e *Executor) handle(id string) executor.Handle {
	return executor.Handle{Executor: Name, ID: id, Host: e.host}
}

// Start implements executor.Executor.
func (e *Executor) Start(ctx context.Context, run executor.Run, progress executor.Progress) (executor.Handle, error) {
	if ctx.Err() != nil {
		return executor.Handle{}, context.Cause(ctx)
	}
	id, err := machineID(run)
	if err != nil {
		return executor.Handle{}, err
	}
	dir := e.dir(id)
	unlock, err := lock(ctx, dir)
	if err != nil {
		return executor.Handle{}, e.failed(ctx, err)
	}
	defer unlock()
	if _, ok := proc.Find(dir); ok {
		return e.handle(id), nil
	}
	if err := e.launch(ctx, run, dir, progress); err != nil {
		// Unless the process got as far as to take the directory.
		if _, ok := proc.Find(dir); !ok {
			_ = os.RemoveAll(dir)
		}
		return executor.Handle{}, e.failed(ctx, err)
	}
	return e.handle(id), nil
}

// errLate ends a preparation that takes longer than the run.
var errLate = errors.New("the run's deadline passed before its machine could start")

func (e *Executor) launch(ctx context.Context, run executor.Run, dir string, progress executor.Progress) error {
	if err := clear(dir); err != nil {
		return err
	}
	early, cancel := context.WithDeadlineCause(ctx, run.Deadline, errLate)
	defer cancel()
	p := &preparation{e: e, run: run, dir: dir, progress: progress}
	st, args, err := p.do(early)
	if err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, stateFile), st); err != nil {
		return err
	}
	log := filepath.Join(st.RunDir, st.Log)
	if err := os.WriteFile(log, []byte(shellLine(args)+"\n"), 0o644); err != nil {
		return err
	}
	progress(pullabv1.RunPhase_RUN_PHASE_LAUNCHING, "starting QEMU ("+st.Facts["accelerator"]+")")
	return proc.Launch(early, proc.Spec{Dir: dir, Log: log, Limit: time.Until(run.Deadline), Args: args})
}

// failed makes err what the contract wants: the context's cause or a LabError.
func (e *Executor) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, ok := errors.AsType[*executor.LabError](err); ok {
		return err
	}
	fix := "Look at the host: disk space and rights below " + e.settings.DataDir + "."
	if errors.Is(err, errLate) {
		fix = "Give the job more time or make its inputs faster to fetch."
	}
	return labError("launch", false, err, fix)
}

func labError(reason string, permanent bool, err error, fix string) error {
	return &executor.LabError{Reason: reason, Permanent: permanent, Err: err, Fix: fix}
}

// lock makes dir and takes it for this caller alone. A lock whose file was
// removed with the directory meanwhile is taken anew.
func lock(ctx context.Context, dir string) (func(), error) {
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		path := filepath.Join(dir, lockFile)
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil && names(path, f) {
			return func() { f.Close() }, nil
		}
		f.Close()
		if err := backoff.Sleep(ctx, 20*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// names says whether path still leads to the open file f.
func names(path string, f *os.File) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// clear removes what a preparation left that did not come to its end.
func clear(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() != lockFile {
			if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// Stop implements executor.Executor. The machine's directory goes; what Await
// would say of it afterwards is that it is lost.
func (e *Executor) Stop(ctx context.Context, h executor.Handle) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !legalID.MatchString(h.ID) {
		return labError("lost", true, fmt.Errorf("machine id %q is not one of ours", h.ID), "Look at the ledger entry.")
	}
	dir := e.dir(h.ID)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := lock(ctx, dir)
	if err != nil {
		return e.failed(ctx, err)
	}
	defer unlock()
	if p, ok := proc.Find(dir); ok {
		if err := p.Kill(ctx); err != nil {
			return e.failed(ctx, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return e.failed(ctx, err)
	}
	return nil
}

// List implements executor.Executor. Only machines whose processes this host
// can see are told.
func (e *Executor) List(ctx context.Context) ([]executor.Machine, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	entries, err := os.ReadDir(e.machines)
	if err != nil {
		return nil, e.failed(ctx, err)
	}
	var all []executor.Machine
	for _, entry := range entries {
		dir := e.dir(entry.Name())
		p, ok := proc.Find(dir)
		if !ok || !p.Alive() {
			continue
		}
		m := executor.Machine{Handle: e.handle(entry.Name()), Started: p.Started}
		if st, err := load(dir); err == nil {
			m.RunID, m.Attempt, m.Deadline, m.Ours = st.RunID, st.Attempt, st.Deadline, true
		}
		all = append(all, m)
	}
	return all, nil
}

// forgetAfter is how long the directory of a machine that nobody stopped stays
// after its deadline.
const forgetAfter = 24 * time.Hour

// sweep removes directories that nobody will ask for any more.
func (e *Executor) sweep() {
	entries, err := os.ReadDir(e.machines)
	if err != nil {
		return
	}
	for _, entry := range entries {
		dir := e.dir(entry.Name())
		end := time.Time{}
		if st, err := load(dir); err == nil {
			end = st.Deadline
		} else if info, err := entry.Info(); err == nil {
			end = info.ModTime()
		}
		if p, ok := proc.Find(dir); time.Since(end) > forgetAfter && (!ok || !p.Alive()) {
			_ = os.RemoveAll(dir)
		}
	}
}

func load(dir string) (state, error) {
	var st state
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal(b, &st)
}

// writeJSON writes a file that only its owner may read, whole or not at all.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
