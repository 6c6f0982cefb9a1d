package executortest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/executor"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

// Scenario is how a run is to go.
type Scenario int

const (
	// Boots: the kernel boots, says so with a boot row that is PASS, and the
	// machine ends by itself within Harness.Takes.
	Boots Scenario = iota + 1
	// Panics: the kernel under test fails, within Harness.Takes.
	Panics
	// Hangs: only Stop or the deadline ends the machine.
	Hangs
	// Breaks: the lab itself fails, in Start or in Await, within Harness.Takes.
	Breaks
)

// Harness is an executor under test.
type Harness struct {
	// New opens the executor as a process does that has just started. Every call
	// sees the same machines.
	New func(t testing.TB) executor.Executor
	// Plan gives a plan that goes as s says. The suite overwrites its run id, node
	// id and timeout. nil skips the scenario, loudly.
	Plan func(t testing.TB, s Scenario) *pullabv1.RunPlanned
	// Takes is more than any run needs that ends by itself. Zero is 30 s.
	Takes time.Duration
	// Hang is the deadline, from now, of machines that are left to run into it:
	// long enough to start one. Zero is 2 s.
	Hang time.Duration
	// Grace is how long after its deadline a machine may be seen. Zero is 15 s;
	// more than 2 minutes is against invariant 3.
	Grace time.Duration
}

// Suite runs the conformance suite. open is called once per subtest.
func Suite(t *testing.T, open func(t *testing.T) Harness) {
	for _, c := range []struct {
		name string
		run  func(b *bench)
	}{
		{"Boots", (*bench).boots},
		{"KernelFails", (*bench).kernelFails},
		{"LabFails", (*bench).labFails},
		{"StartAgain", (*bench).startAgain},
		{"StartTogether", (*bench).startTogether},
		{"StartEnded", (*bench).startEnded},
		{"AwaitAgain", (*bench).awaitAgain},
		{"AwaitStopped", (*bench).awaitStopped},
		{"StopAgain", (*bench).stopAgain},
		{"Deadline", (*bench).deadline},
		{"DeadlineAlone", (*bench).deadlineAlone},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := open(t)
			if h.Takes == 0 {
				h.Takes = 30 * time.Second
			}
			if h.Hang == 0 {
				h.Hang = 2 * time.Second
			}
			if h.Grace == 0 {
				h.Grace = 15 * time.Second
			}
			c.run(&bench{T: t, h: h, ctx: t.Context()})
		})
	}
}

// bench is one subtest at work.
type bench struct {
	*testing.T
	h   Harness
	ctx context.Context
}

// quiet takes progress and keeps nothing.
func quiet(pullabv1.RunPhase, string) {}

func (b *bench) plan(s Scenario, limit time.Duration) executor.Run {
	b.Helper()
	p := b.h.Plan(b, s)
	if p == nil {
		b.Skipf("NOT RUN: the harness has no plan for scenario %d, so this rule was not checked", s)
	}
	p = proto.CloneOf(p)
	if p.Origin == nil {
		p.Origin = &pullabv1.Origin{}
	}
	p.Origin.NodeId = fmt.Sprintf("local-%x", time.Now().UnixNano())
	p.RunId = "run_pulllab-" + p.GetArch() + "-" + p.Origin.NodeId + "_20260101_000000"
	p.RunTimeout = durationpb.New(limit)
	return executor.Run{Plan: p, Attempt: 1, Deadline: time.Now().Add(limit), Dir: b.TempDir()}
}

// started starts a machine and sees to its end.
func (b *bench) started(ex executor.Executor, run executor.Run) executor.Handle {
	b.Helper()
	h, err := ex.Start(b.ctx, run, quiet)
	if err != nil {
		b.Fatalf("Start: %v", err)
	}
	b.stopAtEnd(ex, h)
	return b.kept(h)
}

func (b *bench) stopAtEnd(ex executor.Executor, h executor.Handle) {
	b.Cleanup(func() {
		if err := ex.Stop(context.WithoutCancel(b.ctx), h); err != nil {
			b.Errorf("Stop at the end: %v", err)
		}
	})
}

// kept is the handle as it comes back out of the ledger.
func (b *bench) kept(h executor.Handle) executor.Handle {
	b.Helper()
	if h.Executor == "" || h.ID == "" {
		b.Fatalf("a handle must name its executor and its machine: %+v", h)
	}
	text, err := json.Marshal(h)
	if err != nil {
		b.Fatalf("the handle cannot be kept in the ledger: %v", err)
	}
	var back executor.Handle
	if err := json.Unmarshal(text, &back); err != nil {
		b.Fatal(err)
	}
	return back
}

// listed counts the machines of run that exist.
func (b *bench) listed(ex executor.Executor, run executor.Run) (n int) {
	b.Helper()
	ms, err := ex.List(b.ctx)
	if err != nil {
		b.Fatalf("List: %v", err)
	}
	for _, m := range ms {
		if m.RunID != run.Plan.GetRunId() || m.Attempt != run.Attempt {
			continue
		}
		n++
		if !m.Ours {
			b.Errorf("List calls our own machine foreign: %+v", m)
		}
		if d := m.Deadline.Sub(run.Deadline); d < -time.Second || d > time.Second {
			b.Errorf("List says deadline %v, Start was told %v", m.Deadline, run.Deadline)
		}
	}
	return n
}

func (b *bench) gone(ex executor.Executor, run executor.Run) {
	b.Helper()
	until := time.Now().Add(b.h.Grace)
	for b.listed(ex, run) > 0 {
		if time.Now().After(until) {
			b.Fatalf("the machine still exists %v after it had to be gone", b.h.Grace)
		}
		if err := backoff.Sleep(b.ctx, 50*time.Millisecond); err != nil {
			b.Fatal(err)
		}
	}
}

func (b *bench) boots() {
	ex := b.h.New(b)
	run := b.plan(Boots, b.h.Takes)
	h := b.started(ex, run)
	o, err := ex.Await(b.ctx, run, h, quiet)
	if err != nil {
		b.Fatalf("Await: %v", err)
	}
	b.legal(run, o)
	if o.Kernel != executor.KernelBooted {
		b.Errorf("kernel fate %d, want booted: %s", o.Kernel, o.KernelReason)
	}
	if r := bootRow(o); r.GetStatus() != pullabv1.Status_STATUS_PASS {
		b.Errorf("no PASS of boot: %v", o.Rows)
	}
	if err := ex.Stop(b.ctx, h); err != nil {
		b.Errorf("Stop after the end: %v", err)
	}
	b.gone(ex, run)
	b.files(run, o)
}

func (b *bench) kernelFails() {
	ex := b.h.New(b)
	run := b.plan(Panics, b.h.Takes)
	h := b.started(ex, run)
	o, err := ex.Await(b.ctx, run, h, quiet)
	if err != nil {
		b.Fatalf("a kernel that fails is an Outcome, not an error: %v", err)
	}
	b.legal(run, o)
	if o.Kernel != executor.KernelFailed && o.Kernel != executor.KernelHung {
		b.Errorf("kernel fate %d, want failed or hung", o.Kernel)
	}
	if r := bootRow(o); r.GetStatus() != pullabv1.Status_STATUS_FAIL || r.GetLogExcerpt() == "" {
		b.Errorf("a failed kernel needs a boot row FAIL with an excerpt, not %v", r)
	}
	if o.KernelReason == "" {
		b.Error("KernelReason is empty")
	}
}

func (b *bench) labFails() {
	ex := b.h.New(b)
	run := b.plan(Breaks, b.h.Takes)
	h, err := ex.Start(b.ctx, run, quiet)
	if err == nil {
		_, err = ex.Await(b.ctx, run, b.kept(h), quiet)
		if err := ex.Stop(b.ctx, h); err != nil {
			b.Errorf("Stop: %v", err)
		}
	}
	var lab *executor.LabError
	if !errors.As(err, &lab) {
		b.Fatalf("the lab's own failure must be a *LabError, not %v", err)
	}
	if !regexp.MustCompile(`^[a-z][a-z-]*$`).MatchString(lab.Reason) || lab.Err == nil && lab.Fix == "" {
		b.Errorf("a LabError needs a short word and a sentence: %+v", lab)
	}
	b.gone(ex, run)
}

func (b *bench) startAgain() {
	run := b.plan(Hangs, b.h.Takes)
	ex := b.h.New(b)
	h := b.started(ex, run)
	for _, again := range []executor.Executor{ex, b.h.New(b)} {
		h2, err := again.Start(b.ctx, run, quiet)
		if err != nil {
			b.Fatalf("Start again: %v", err)
		}
		if h2.ID != h.ID {
			b.Errorf("Start again gave another machine: %q, first %q", h2.ID, h.ID)
		}
		if n := b.listed(again, run); n != 1 {
			b.Errorf("%d machines of one attempt", n)
		}
	}
	second := run
	second.Attempt = 2
	h2 := b.started(ex, second)
	if h2.ID == h.ID {
		b.Error("a new attempt was given the old machine")
	}
}

func (b *bench) startTogether() {
	run := b.plan(Hangs, b.h.Takes)
	var handles [2]executor.Handle
	var errs [2]error
	var wg sync.WaitGroup
	for i, ex := range []executor.Executor{b.h.New(b), b.h.New(b)} {
		wg.Go(func() { handles[i], errs[i] = ex.Start(b.ctx, run, quiet) })
	}
	wg.Wait()
	ex := b.h.New(b)
	for i, h := range handles {
		if errs[i] != nil {
			b.Fatalf("Start beside another one: %v", errs[i])
		}
		b.stopAtEnd(ex, h)
	}
	if handles[0].ID != handles[1].ID {
		b.Errorf("two owners got two machines: %q and %q", handles[0].ID, handles[1].ID)
	}
	if n := b.listed(ex, run); n != 1 {
		b.Errorf("%d machines of one attempt", n)
	}
}

var errCrash = errors.New("the suite ended this context")

func (b *bench) startEnded() {
	ctx, cancel := context.WithCancelCause(b.ctx)
	cancel(errCrash)
	ex := b.h.New(b)
	run := b.plan(Hangs, b.h.Takes)
	h, err := ex.Start(ctx, run, quiet)
	if err == nil {
		b.started(ex, run)
		b.Fatalf("Start with an ended context started %+v", h)
	}
	b.interrupted(err)
}

func (b *bench) interrupted(err error) {
	b.Helper()
	if !errors.Is(err, errCrash) {
		b.Errorf("an ended context must come back as its cause, not %v", err)
	}
	if lab := (*executor.LabError)(nil); errors.As(err, &lab) {
		b.Errorf("an ended context is not the lab's failure: %v", err)
	}
}

func (b *bench) awaitAgain() {
	ex := b.h.New(b)
	run := b.plan(Boots, b.h.Takes)
	h := b.started(ex, run)
	ctx, cancel := context.WithCancelCause(b.ctx)
	cancel(errCrash)
	o, err := ex.Await(ctx, run, h, quiet)
	if err == nil {
		b.Errorf("Await with an ended context gave %+v", o)
	} else {
		b.interrupted(err)
	}

	next := b.h.New(b)
	first, err := next.Await(b.ctx, run, h, quiet)
	if err != nil {
		b.Fatalf("Await by another process: %v", err)
	}
	b.legal(run, first)
	again, err := b.h.New(b).Await(b.ctx, run, h, quiet)
	if err != nil {
		b.Fatalf("Await after the end: %v", err)
	}
	if first.Kernel != again.Kernel || first.Release != again.Release || len(first.Rows) != len(again.Rows) {
		b.Fatalf("Await gave two outcomes: %+v and %+v", first, again)
	}
	for i := range first.Rows {
		if !proto.Equal(first.Rows[i], again.Rows[i]) {
			b.Errorf("row %d differs: %v and %v", i, first.Rows[i], again.Rows[i])
		}
	}
}

func (b *bench) awaitStopped() {
	ex := b.h.New(b)
	run := b.plan(Hangs, b.h.Takes)
	h := b.started(ex, run)
	if err := ex.Stop(b.ctx, h); err != nil {
		b.Fatalf("Stop: %v", err)
	}
	o, err := b.h.New(b).Await(b.ctx, run, h, quiet)
	if lab := (*executor.LabError)(nil); !errors.As(err, &lab) {
		b.Errorf("a machine that the lab stopped has no outcome: want a *LabError, got %+v, %v", o, err)
	}
}

func (b *bench) stopAgain() {
	ex := b.h.New(b)
	run := b.plan(Hangs, b.h.Takes)
	h := b.started(ex, run)
	if n := b.listed(ex, run); n != 1 {
		b.Errorf("List shows %d machines, want the running one", n)
	}
	for i, e := range []executor.Executor{ex, ex, b.h.New(b)} {
		if err := e.Stop(b.ctx, h); err != nil {
			b.Errorf("Stop number %d: %v", i+1, err)
		}
	}
	b.gone(ex, run)
}

func (b *bench) deadline() {
	ex := b.h.New(b)
	run := b.plan(Hangs, b.h.Hang)
	h := b.started(ex, run)
	o, err := ex.Await(b.ctx, run, h, quiet)
	if late := time.Since(run.Deadline); late > b.h.Grace {
		b.Errorf("Await came back %v after the deadline", late)
	}
	switch lab := (*executor.LabError)(nil); {
	case errors.As(err, &lab):
	case err != nil:
		b.Errorf("Await at the deadline: %v", err)
	default:
		b.legal(run, o)
		if o.Kernel == executor.KernelUnknown {
			b.Error("an Outcome must say how the kernel fared")
		}
	}
	b.gone(ex, run)
}

func (b *bench) deadlineAlone() {
	ex := b.h.New(b)
	run := b.plan(Hangs, b.h.Hang)
	b.started(ex, run)
	if err := backoff.Sleep(b.ctx, time.Until(run.Deadline)); err != nil {
		b.Fatal(err)
	}
	b.gone(b.h.New(b), run)
}

func bootRow(o executor.Outcome) *pullabv1.TestRow {
	for _, r := range o.Rows {
		if r.GetPath() == "boot" {
			return r
		}
	}
	return nil
}

var legalPath = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

// legal checks what every Outcome must hold.
func (b *bench) legal(run executor.Run, o executor.Outcome) {
	b.Helper()
	if o.Started.IsZero() || o.Finished.Before(o.Started) {
		b.Errorf("started %v, finished %v", o.Started, o.Finished)
	}
	for _, r := range o.Rows {
		x := r.GetLogExcerpt()
		switch {
		case !legalPath.MatchString(r.GetPath()):
			b.Errorf("path %q is not legal in KCIDB", r.GetPath())
		case r.GetStatus() == pullabv1.Status_STATUS_UNSPECIFIED:
			b.Errorf("%s has no status", r.GetPath())
		case r.GetStatus() == pullabv1.Status_STATUS_FAIL && x == "":
			b.Errorf("%s is FAIL without an excerpt", r.GetPath())
		case utf8.RuneCountInString(x) > 16384 || strings.ContainsRune(x, 0):
			b.Errorf("%s has an excerpt that KCIDB refuses", r.GetPath())
		case r.GetPath() == "boot" && r.GetStatus() == pullabv1.Status_STATUS_PASS && o.Kernel != executor.KernelBooted:
			b.Error("boot is PASS although the kernel under test was not seen to run")
		}
	}
	b.files(run, o)
}

// files must lie where the runner looks for them, also after Stop.
func (b *bench) files(run executor.Run, o executor.Outcome) {
	b.Helper()
	for _, f := range o.Files {
		if f.Name == "" || f.Name != filepath.Base(f.Name) {
			b.Errorf("file name %q is not a plain name", f.Name)
		}
		if _, err := os.Stat(filepath.Join(run.Dir, f.Name)); err != nil {
			b.Errorf("file of the outcome: %v", err)
		}
	}
}
