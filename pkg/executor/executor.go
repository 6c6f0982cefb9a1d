// Package executor says what a machine must be able to do for the runner. An
// executor is a cloud, a rack of boards, a QEMU, or any program; the runner
// owns the run's state machine and calls these four verbs.
//
// What an implementation must hold, checked by executortest:
//
//   - Start is idempotent by Run.Plan.RunId and Run.Attempt: called again, also
//     by another process after a crash, it finds what it launched before.
//   - Await may be called again with the same handle, by another process.
//   - Stop may be called twice, and on a machine that is gone.
//   - A failure of the kernel under test or of a test is an Outcome. Only the
//     lab's own failures are errors, and they are *LabError. An ended context
//     is returned as its cause and means neither.
package executor

import (
	"context"
	"encoding/json"
	"time"

	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

// Executor runs one plan on one machine.
type Executor interface {
	// Start reserves and launches the machine, or finds the one launched for
	// the same run and attempt. The machine ends by itself at run.Deadline even
	// if nobody calls Stop.
	Start(ctx context.Context, run Run, progress Progress) (Handle, error)
	// Await blocks until the outcome is known, at the latest shortly after
	// run.Deadline.
	Await(ctx context.Context, run Run, h Handle, progress Progress) (Outcome, error)
	// Stop ends the machine and frees what it held. The files that the Outcome
	// names stay.
	Stop(ctx context.Context, h Handle) error
	// List tells every machine of this executor, for the reaper.
	List(ctx context.Context) ([]Machine, error)
}

// Run is one attempt at a plan.
type Run struct {
	Plan *pullabv1.RunPlanned
	// Attempt counts from 1.
	Attempt int
	// Deadline is the moment at which the machine must be gone.
	Deadline time.Time
	// Dir is the run's directory for logs (logs/<run id>), made by the runner.
	Dir string
}

// Handle names a launched machine for good: it is kept in the runner's ledger
// and must let another process find the machine.
type Handle struct {
	Executor string `json:"executor"`
	// ID is unique among the executor's machines.
	ID string `json:"id"`
	// Host is set when only a runner on that host can reach the machine.
	Host string `json:"host,omitempty"`
	// Data is the executor's own.
	Data json.RawMessage `json:"data,omitempty"`
}

// Progress tells whoever watches about a phase change. It never blocks for
// long and never fails.
type Progress func(phase pullabv1.RunPhase, detail string)

// Outcome is what happened on the machine.
type Outcome struct {
	// Kernel says how the kernel under test fared.
	Kernel KernelFate
	// KernelReason is a sentence when Kernel is not KernelBooted.
	KernelReason string
	// Rows in the order in which they happened. An Outcome whose kernel failed
	// has a boot row with status FAIL and a non-empty excerpt of its console.
	Rows []*pullabv1.TestRow
	// Release is uname -r as the guest saw it.
	Release string
	// Device names the machine for people.
	Device string
	// Facts go into misc of every row.
	Facts map[string]string
	// Files lie in Run.Dir; the runner publishes them.
	Files             []File
	Started, Finished time.Time
}

// File is a log or artifact in Run.Dir.
type File struct {
	// Name is the file's name below Run.Dir, without slashes.
	Name string
	// Log is true for the console, which rows link to.
	Log bool
}

// KernelFate is what became of the kernel under test.
type KernelFate int

// Fates. A PASS of boot needs KernelBooted, which the guest says only after it
// compared the running kernel with the one under test.
const (
	KernelUnknown KernelFate = iota
	KernelBooted
	// KernelFailed: it never reached user space, panicked, or rebooted.
	KernelFailed
	// KernelHung: it stopped talking before the deadline.
	KernelHung
)

// Machine is one that exists now.
type Machine struct {
	Handle   Handle
	RunID    string
	Attempt  int
	Deadline time.Time
	Started  time.Time
	// Ours is false when the machine carries our mark but no run that we know
	// of can be read from it.
	Ours bool
}

// LabError is the lab's own failure: never the kernel's verdict.
type LabError struct {
	// Reason is a short stable word: download, launch, lost, capacity, guest.
	Reason string
	// Permanent means that another attempt would end the same way.
	Permanent bool
	// Fix is a sentence an operator can act on.
	Fix string
	Err error
}

func (e *LabError) Error() string {
	s := e.Reason
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Fix != "" {
		s += ". " + e.Fix
	}
	return s
}

func (e *LabError) Unwrap() error { return e.Err }
