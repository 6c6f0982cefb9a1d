package qemu

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pullab/pullab/pkg/channel"
	"github.com/pullab/pullab/pkg/executor"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/runner/qemu/internal/console"
)

// evidence is all that is known of a machine that is gone.
type evidence struct {
	state
	started, finished time.Time

	hello  *channel.Hello
	phase  *channel.Phase
	rows   []*channel.Row
	refuse *channel.Refuse
	done   *channel.Done
	// gap is set when lines of the channel are missing.
	gap   error
	noise channel.Noise

	how  ending
	exit int
	// log is what QEMU printed.
	log     string
	console console.Finding
}

// judge decides whose failure it was, if it was one. It looks at nothing but
// the evidence.
func (v evidence) judge(plan *pullabv1.RunPlanned) (executor.Outcome, error) {
	if err := v.mismatch(); err != nil {
		return executor.Outcome{}, err
	}
	if v.refuse != nil {
		return executor.Outcome{}, labError("guest", false, fmt.Errorf("the guest program gave up: %s", v.refuse.Reason),
			"Look at console.log and at the guest program's version.")
	}
	if v.done != nil {
		return v.complete()
	}
	if err := v.labsEnd(); err != nil {
		return executor.Outcome{}, err
	}
	if v.hello == nil {
		return v.neverUp(plan), nil
	}
	return v.fellSilent(plan), nil
}

// mismatch: a kernel ran, but not the one under test.
func (v evidence) mismatch() error {
	if v.hello == nil || v.hello.Match && (len(v.Releases) == 0 || slices.Contains(v.Releases, v.hello.Release)) {
		return nil
	}
	return labError("launch", true, fmt.Errorf("the kernel that ran calls itself %s, the one under test is %s", v.hello.Release,
		strings.Join(v.Releases, " or ")), "The job's kernel and modules are not of one build, or another kernel was started.")
}

// complete is a machine that said everything.
func (v evidence) complete() (executor.Outcome, error) {
	if v.hello == nil || v.gap != nil || v.done.Rows != len(v.rows) {
		err := errors.Join(v.gap, fmt.Errorf("the guest sent %d rows and %d arrived", v.done.Rows, len(v.rows)))
		return executor.Outcome{}, labError("guest", false, err, "Look at channel.log.")
	}
	o := v.outcome(executor.KernelBooted, "")
	if v.how == finished {
		o.Facts["poweroff"] = "the machine did not power off and was ended"
	}
	return o, nil
}

// labsEnd is a machine whose end says nothing about its kernel.
func (v evidence) labsEnd() error {
	switch {
	case v.how == lost:
		return labError("lost", false, errors.New("the machine is gone and left no exit status"),
			"Somebody killed it, or the host rebooted or ran out of memory.")
	case v.how == exited && v.exit == 0 && strings.Contains(v.log, "terminating on signal"):
		return labError("lost", false, fmt.Errorf("QEMU was ended from outside: %s", v.log), "Look for who ended it.")
	case v.how == exited && v.exit > 128:
		return labError("lost", false, fmt.Errorf("QEMU died of signal %d: %s", v.exit-128, v.log),
			"The host may have run out of memory; otherwise it is a fault of QEMU.")
	case v.how == exited && v.exit != 0:
		return labError("launch", false, fmt.Errorf("QEMU ended with status %d: %s", v.exit, v.log),
			"Run the command in qemu.log by hand.")
	}
	return nil
}

// neverUp is a kernel that did not reach user space.
func (v evidence) neverUp(plan *pullabv1.RunPlanned) executor.Outcome {
	fate, why := executor.KernelFailed, "the machine rebooted or powered off before the kernel reached user space"
	switch {
	case v.how == bootTimeout:
		fate, why = executor.KernelHung, fmt.Sprintf("the kernel did not reach user space within %s", v.BootTimeout)
	case v.how == deadline:
		fate, why = executor.KernelHung, "the kernel did not reach user space before the run's deadline"
	case v.how == flood:
		fate, why = executor.KernelHung, fmt.Sprintf("the kernel printed more than %d MiB without reaching user space", maxLog>>20)
	}
	if v.console.Line != "" {
		why += ": " + v.console.Line
	}
	if v.console.Panic {
		fate, why = executor.KernelFailed, v.console.Line
	}
	o := v.outcome(fate, why)
	o.Rows = append(o.Rows, v.failure(bootTest(plan), "boot", why))
	return v.missing(plan, o, bootTest(plan))
}

// bootTest is the planned boot test, if there is one.
func bootTest(plan *pullabv1.RunPlanned) string {
	for _, t := range plan.GetTests() {
		if t.GetPath() == "boot" {
			return t.GetId()
		}
	}
	return ""
}

// fellSilent is a kernel that reached user space and then stopped talking.
func (v evidence) fellSilent(plan *pullabv1.RunPlanned) executor.Outcome {
	why := "the machine rebooted or powered off in the middle of the run"
	switch {
	case v.how == deadline:
		why = "the machine fell silent and was ended at the run's deadline"
	case v.how == flood:
		why = fmt.Sprintf("the machine printed more than %d MiB", maxLog>>20)
	}
	if v.console.Panic {
		why = v.console.Line
	} else if v.console.Line != "" {
		why += ": " + v.console.Line
	}
	running := v.running(plan)
	o := v.outcome(executor.KernelBooted, "")
	path := "shutdown"
	if running != nil {
		path = running.GetPath()
	}
	if path == "boot" && !hasRow(o.Rows, "boot") {
		// It never came to say that it booted.
		o.Kernel, o.KernelReason = executor.KernelFailed, why
	}
	if hasRow(o.Rows, path) {
		path += ".crash"
	}
	o.Rows = append(o.Rows, v.failure(running.GetId(), path, why))
	return v.missing(plan, o, running.GetId())
}

func hasRow(rows []*pullabv1.TestRow, path string) bool {
	return slices.ContainsFunc(rows, func(r *pullabv1.TestRow) bool { return r.GetPath() == path })
}

// running is the test that ran at the end: the one the guest announced last,
// else the first without a row; nil when all have theirs.
func (v evidence) running(plan *pullabv1.RunPlanned) *pullabv1.TestPlan {
	if v.phase != nil {
		for _, t := range plan.GetTests() {
			if t.GetId() != "" && (v.phase.Detail == t.GetId() || v.phase.Name == t.GetId()) {
				return t
			}
		}
	}
	for _, t := range plan.GetTests() {
		if !slices.ContainsFunc(v.rows, func(r *channel.Row) bool { return r.TestID == t.GetId() }) {
			return t
		}
	}
	return nil
}

// missing adds a row for every planned test that could not run.
func (v evidence) missing(plan *pullabv1.RunPlanned, o executor.Outcome, blamed string) executor.Outcome {
	for _, t := range plan.GetTests() {
		seen := slices.ContainsFunc(o.Rows, func(r *pullabv1.TestRow) bool {
			return r.GetTestId() == t.GetId() || r.GetPath() == t.GetPath()
		})
		if seen || t.GetId() == blamed {
			continue
		}
		o.Rows = append(o.Rows, &pullabv1.TestRow{
			Path: t.GetPath(), TestId: t.GetId(), Status: pullabv1.Status_STATUS_MISS,
			StartTime: timestamppb.New(v.finished), Reason: "the kernel under test failed before this test",
		})
	}
	return o
}

// failure blames the kernel, with its console as evidence.
func (v evidence) failure(testID, path, why string) *pullabv1.TestRow {
	return &pullabv1.TestRow{
		Path: path, TestId: testID, Status: pullabv1.Status_STATUS_FAIL, LogExcerpt: v.console.Excerpt, Reason: why,
		StartTime: timestamppb.New(v.started), Duration: durationpb.New(v.finished.Sub(v.started)),
	}
}

// outcome has the rows that arrived.
func (v evidence) outcome(fate executor.KernelFate, why string) executor.Outcome {
	o := executor.Outcome{Kernel: fate, KernelReason: why, Facts: maps.Clone(v.Facts), Started: v.started, Finished: v.finished}
	if o.Facts == nil {
		o.Facts = map[string]string{}
	}
	if n := v.noise.Forged + v.noise.Replayed; n > 0 {
		o.Facts["channel_forged_lines"] = strconv.Itoa(n)
	}
	if v.hello != nil {
		o.Release = v.hello.Release
		o.Facts["kernel_release"] = v.hello.Release
	}
	for _, r := range v.rows {
		o.Rows = append(o.Rows, v.row(r))
	}
	return o
}

var statuses = map[string]pullabv1.Status{
	"PASS": pullabv1.Status_STATUS_PASS, "FAIL": pullabv1.Status_STATUS_FAIL, "SKIP": pullabv1.Status_STATUS_SKIP,
	"ERROR": pullabv1.Status_STATUS_ERROR, "MISS": pullabv1.Status_STATUS_MISS, "DONE": pullabv1.Status_STATUS_DONE,
}

// row is the guest's, on the host's clock: the guest counts from its own
// start, which is ours but for the firmware.
func (v evidence) row(r *channel.Row) *pullabv1.TestRow {
	at := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	row := &pullabv1.TestRow{
		Path: r.Path, TestId: r.TestID, Status: statuses[r.Status], LogExcerpt: r.Excerpt, Reason: r.Reason,
		StartTime: timestamppb.New(v.started.Add(at(r.StartS))), Duration: durationpb.New(at(r.TookS)), Misc: maps.Clone(r.Misc),
	}
	if row.Status == pullabv1.Status_STATUS_UNSPECIFIED {
		row.Status, row.Reason = pullabv1.Status_STATUS_ERROR, fmt.Sprintf("the guest reported the unknown status %q", r.Status)
	}
	if r.Number != nil {
		row.Number = &pullabv1.Number{Value: r.Number.Value, Unit: r.Number.Unit, Prefix: r.Number.Prefix}
	}
	if row.Status == pullabv1.Status_STATUS_FAIL && strings.TrimSpace(row.LogExcerpt) == "" {
		row.LogExcerpt = v.console.Excerpt
	}
	if r.Path == "boot" && v.hello != nil {
		// How long the kernel took is the boot's duration, not the guest's checks.
		row.StartTime, row.Duration = timestamppb.New(v.started), durationpb.New(at(v.hello.UptimeS))
		if row.Misc == nil {
			row.Misc = map[string]string{}
		}
		row.Misc["time_to_userspace_s"] = strconv.FormatFloat(v.hello.UptimeS, 'f', 2, 64)
	}
	return row
}
