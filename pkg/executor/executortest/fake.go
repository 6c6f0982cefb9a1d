package executortest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/executor"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

// Verb is one of the executor's four calls.
type Verb string

// Verbs.
const (
	Start Verb = "start"
	Await Verb = "await"
	Stop  Verb = "stop"
	List  Verb = "list"
)

// Call is a moment in the life of a run at which a Fault may strike. RunID and
// Attempt are empty for List.
type Call struct {
	Verb    Verb
	RunID   string
	Attempt int
	// Done is false before the call has any effect, true when its effect has
	// happened and only the answer is missing.
	Done bool
}

// Script is how one attempt goes.
type Script struct {
	// Launch is how long Start takes, Takes how long from the launch to the
	// outcome. Both are fake time in a bubble; zero is at once.
	Launch, Takes time.Duration
	// StartErr is Start's failure; no machine then.
	StartErr *executor.LabError
	// AwaitErr is Await's failure, after Takes.
	AwaitErr *executor.LabError
	// Outcome otherwise. Started and Finished are filled in when zero.
	Outcome executor.Outcome
	// Console is written to console.log in the run's directory and added to the
	// outcome's files; empty writes nothing.
	Console string
}

// Passing is the script of a kernel that boots.
func Passing() Script {
	return Script{Outcome: executor.Outcome{
		Kernel: executor.KernelBooted, Release: "6.12.0-fake", Device: "fake",
		Rows: []*pullabv1.TestRow{{Path: "boot", Status: pullabv1.Status_STATUS_PASS, TestId: "boot"}},
	}}
}

// Panicking is the script of a kernel that fails to boot.
func Panicking() Script {
	const why = "Kernel panic - not syncing: VFS: Unable to mount root fs"
	return Script{Outcome: executor.Outcome{
		Kernel: executor.KernelFailed, KernelReason: why, Device: "fake",
		Rows: []*pullabv1.TestRow{{Path: "boot", Status: pullabv1.Status_STATUS_FAIL, LogExcerpt: why, Reason: why, TestId: "boot"}},
	}}
}

// Fake is a cloud of scripted machines. It is strict: what a real executor
// would be confused by fails the test. All methods may be called at any time.
type Fake struct {
	name string
	// Script says how an attempt goes; nil is Passing.
	Script func(run executor.Run) Script
	// Fault is asked before each call has its effect and again after it; an error
	// becomes the call's answer. nil never strikes.
	Fault func(ctx context.Context, c Call) error
	// Host is put into handles, for executors whose machines only their host
	// reaches.
	Host string

	t        testing.TB
	mu       sync.Mutex
	machines map[string]*machine   // by handle id
	runs     map[string][]*machine // by run id
	maxLive  map[string]int
}

type machine struct {
	run     executor.Run
	script  Script
	started time.Time
	// stopped is closed by Stop.
	stopped chan struct{}
	end     sync.Once
}

func (m *machine) stop() { m.end.Do(func() { close(m.stopped) }) }

// NewFake makes a cloud without machines. name is the executor's, as plans spell
// it.
func NewFake(t testing.TB, name string) *Fake {
	return &Fake{t: t, name: name, machines: map[string]*machine{}, runs: map[string][]*machine{}, maxLive: map[string]int{}}
}

// Executor is what one process holds of the cloud; another call plays another
// process.
func (f *Fake) Executor() executor.Executor { return (*fakeExecutor)(f) }

// Launched lists the attempts of a run for which a machine was made.
func (f *Fake) Launched(runID string) (attempts []int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.runs[runID] {
		attempts = append(attempts, m.run.Attempt)
	}
	slices.Sort(attempts)
	return attempts
}

// Live counts the machines that exist now.
func (f *Fake) Live() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, m := range f.machines {
		if m.live() {
			n++
		}
	}
	return n
}

// MaxLive is the most machines that a run ever had at one time.
func (f *Fake) MaxLive(runID string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.maxLive[runID]
}

func (m *machine) live() bool {
	select {
	case <-m.stopped:
		return false
	default:
		return !time.Now().After(m.run.Deadline)
	}
}

// fakeExecutor keeps the verbs off Fake, whose fields are the test's.
type fakeExecutor Fake

func (x *fakeExecutor) fault(ctx context.Context, c Call) error {
	if x.Fault == nil {
		return nil
	}
	return x.Fault(ctx, c)
}

func (x *fakeExecutor) Start(ctx context.Context, run executor.Run, progress executor.Progress) (executor.Handle, error) {
	if ctx.Err() != nil {
		return executor.Handle{}, context.Cause(ctx)
	}
	if run.Plan.GetRunId() == "" || run.Attempt < 1 || run.Deadline.IsZero() || progress == nil {
		x.t.Errorf("Start was called with an incomplete run: %+v", run)
	}
	call := Call{Verb: Start, RunID: run.Plan.GetRunId(), Attempt: run.Attempt}
	if err := x.fault(ctx, call); err != nil {
		return executor.Handle{}, err
	}
	m, err := x.launch(ctx, run)
	if err != nil {
		return executor.Handle{}, err
	}
	call.Done = true
	if err := x.fault(ctx, call); err != nil {
		return executor.Handle{}, err
	}
	return x.handle(m.run), nil
}

func (x *fakeExecutor) launch(ctx context.Context, run executor.Run) (*machine, error) {
	script := Passing()
	if x.Script != nil {
		script = x.Script(run)
	}
	id, runID := x.handle(run).ID, run.Plan.GetRunId()
	x.mu.Lock()
	m := x.machines[id]
	x.mu.Unlock()
	if m != nil {
		return m, nil
	}
	if script.Launch > 0 {
		if err := backoff.Sleep(ctx, script.Launch); err != nil {
			return nil, err
		}
	}
	if script.StartErr != nil {
		return nil, script.StartErr
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if m := x.machines[id]; m != nil {
		return m, nil
	}
	m = &machine{run: run, script: script, started: time.Now(), stopped: make(chan struct{})}
	x.machines[id] = m
	x.runs[runID] = append(x.runs[runID], m)
	live := 0
	for _, other := range x.runs[runID] {
		if other.live() {
			live++
		}
	}
	x.maxLive[runID] = max(x.maxLive[runID], live)
	return m, nil
}

func (x *fakeExecutor) handle(run executor.Run) executor.Handle {
	return executor.Handle{
		Executor: x.name, ID: fmt.Sprintf("%s/%d", run.Plan.GetRunId(), run.Attempt), Host: x.Host,
	}
}

func (x *fakeExecutor) find(h executor.Handle) *machine {
	if h.Executor != x.name {
		x.t.Errorf("executor %s was given a handle of %q", x.name, h.Executor)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.machines[h.ID]
}

func (x *fakeExecutor) Await(ctx context.Context, run executor.Run, h executor.Handle, _ executor.Progress) (executor.Outcome, error) {
	if ctx.Err() != nil {
		return executor.Outcome{}, context.Cause(ctx)
	}
	call := Call{Verb: Await, RunID: run.Plan.GetRunId(), Attempt: run.Attempt}
	if err := x.fault(ctx, call); err != nil {
		return executor.Outcome{}, err
	}
	m := x.find(h)
	if m == nil {
		return executor.Outcome{}, &executor.LabError{Reason: "lost", Fix: "The fake has no machine " + h.ID}
	}
	if m.run.Plan.GetRunId() != run.Plan.GetRunId() || m.run.Attempt != run.Attempt || !m.run.Deadline.Equal(run.Deadline) {
		x.t.Errorf("Await of %s attempt %d until %v with the machine of %s attempt %d until %v", run.Plan.GetRunId(), run.Attempt,
			run.Deadline, m.run.Plan.GetRunId(), m.run.Attempt, m.run.Deadline)
	}
	o, err := x.outcome(ctx, m)
	if err != nil {
		return executor.Outcome{}, err
	}
	call.Done = true
	if err := x.fault(ctx, call); err != nil {
		return executor.Outcome{}, err
	}
	return o, nil
}

// outcome comes when the script says so, or at the deadline.
func (x *fakeExecutor) outcome(ctx context.Context, m *machine) (executor.Outcome, error) {
	end := m.started.Add(m.script.Takes)
	hung := end.After(m.run.Deadline)
	if hung {
		end = m.run.Deadline
	}
	over := time.NewTimer(time.Until(end))
	defer over.Stop()
	select {
	case <-m.stopped:
		// Also when the outcome was told before: who needs it again must not stop
		// the machine.
		return executor.Outcome{}, &executor.LabError{Reason: "lost", Fix: "The machine was stopped"}
	default:
	}
	select {
	case <-ctx.Done():
		return executor.Outcome{}, context.Cause(ctx)
	case <-m.stopped:
		return executor.Outcome{}, &executor.LabError{Reason: "lost", Fix: "The machine was stopped"}
	case <-over.C:
		return m.answer(end, hung)
	}
}

func (m *machine) answer(end time.Time, hung bool) (executor.Outcome, error) {
	if m.script.AwaitErr != nil {
		return executor.Outcome{}, m.script.AwaitErr
	}
	o := m.script.Outcome
	if hung {
		o = Panicking().Outcome
		o.Kernel, o.KernelReason = executor.KernelHung, "silent until its deadline"
	}
	if o.Started.IsZero() {
		o.Started, o.Finished = m.started, end
	}
	rows := make([]*pullabv1.TestRow, len(o.Rows))
	for i, r := range o.Rows {
		rows[i] = proto.CloneOf(r)
		if rows[i].StartTime == nil {
			rows[i].StartTime = timestamppb.New(m.started)
		}
	}
	o.Rows = rows
	if m.script.Console != "" {
		if err := os.WriteFile(filepath.Join(m.run.Dir, "console.log"), []byte(m.script.Console), 0o600); err != nil {
			return executor.Outcome{}, &executor.LabError{Reason: "disk", Err: err, Fix: "Make the run's directory writable"}
		}
		o.Files = append(slices.Clone(o.Files), executor.File{Name: "console.log", Log: true})
	}
	return o, nil
}

func (x *fakeExecutor) Stop(ctx context.Context, h executor.Handle) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	m := x.find(h)
	call := Call{Verb: Stop}
	if m != nil {
		call.RunID, call.Attempt = m.run.Plan.GetRunId(), m.run.Attempt
	}
	if err := x.fault(ctx, call); err != nil {
		return err
	}
	if m != nil {
		m.stop()
	}
	call.Done = true
	return x.fault(ctx, call)
}

func (x *fakeExecutor) List(ctx context.Context) ([]executor.Machine, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := x.fault(ctx, Call{Verb: List}); err != nil {
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	var ms []executor.Machine
	for _, m := range x.machines {
		if m.live() {
			ms = append(ms, executor.Machine{
				Handle: x.handle(m.run), RunID: m.run.Plan.GetRunId(), Attempt: m.run.Attempt, Deadline: m.run.Deadline, Started: m.started, Ours: true,
			})
		}
	}
	return ms, nil
}
