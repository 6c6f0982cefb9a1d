package qemu

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pullab/pullab/pkg/channel"
	"github.com/pullab/pullab/pkg/executor"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/runner/qemu/internal/console"
)

var judgePlan = &pullabv1.RunPlanned{Tests: []*pullabv1.TestPlan{
	{Id: "b", Path: "boot"}, {Id: "l", Path: "ltp"}, {Id: "k", Path: "kselftest.arm64"},
}}

// given builds evidence of a machine that booted 6.1.0 and exited.
func given(change func(*evidence)) evidence {
	v := evidence{
		state:   state{Releases: []string{"6.1.0"}, BootTimeout: time.Minute, Facts: map[string]string{"accelerator": "tcg"}},
		started: time.Unix(1000, 0), finished: time.Unix(1060, 0), how: exited,
		hello:   &channel.Hello{Release: "6.1.0", Match: true, UptimeS: 2.5},
		console: console.Find([]byte("[    1.0] a message\n")),
	}
	change(&v)
	return v
}

func bootRow() *channel.Row { return &channel.Row{TestID: "b", Path: "boot", Status: "PASS"} }

var panicConsole = console.Find([]byte("[    9.0] Kernel panic - not syncing: x\n"))

func TestJudge(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		v      evidence
		kernel executor.KernelFate
		rows   string
		reason string
	}{
		{"complete", given(func(v *evidence) {
			v.rows = []*channel.Row{bootRow(), {TestID: "l", Path: "ltp.a", Status: "FAIL"}, {TestID: "k", Path: "kselftest.arm64", Status: "NONSENSE"}}
			v.done = &channel.Done{Rows: 3}
		}), executor.KernelBooted, "boot PASS, ltp.a FAIL, kselftest.arm64 ERROR", ""},
		{"complete, then no power off", given(func(v *evidence) {
			v.rows, v.done, v.how = []*channel.Row{bootRow()}, &channel.Done{Rows: 1}, finished
		}), executor.KernelBooted, "boot PASS", ""},
		{"complete, then killed", given(func(v *evidence) {
			v.rows, v.done, v.how = []*channel.Row{bootRow()}, &channel.Done{Rows: 1}, lost
		}), executor.KernelBooted, "boot PASS", ""},
		{"panic before user space", given(func(v *evidence) { v.hello, v.console = nil, panicConsole }), executor.KernelFailed,
			"boot FAIL, ltp MISS, kselftest.arm64 MISS", "Kernel panic - not syncing: x"},
		{"panic that stays, until the boot timeout", given(func(v *evidence) { v.hello, v.console, v.how = nil, panicConsole, bootTimeout }),
			executor.KernelFailed, "boot FAIL, ltp MISS, kselftest.arm64 MISS", "Kernel panic - not syncing: x"},
		{"reboot before user space", given(func(v *evidence) { v.hello = nil }), executor.KernelFailed,
			"boot FAIL, ltp MISS, kselftest.arm64 MISS", "the machine rebooted or powered off before the kernel reached user space"},
		{"hang before user space", given(func(v *evidence) { v.hello, v.how = nil, bootTimeout }), executor.KernelHung,
			"boot FAIL, ltp MISS, kselftest.arm64 MISS", "the kernel did not reach user space within 1m0s"},
		{"deadline before user space", given(func(v *evidence) { v.hello, v.how, v.exit = nil, deadline, 124 }), executor.KernelHung,
			"boot FAIL, ltp MISS, kselftest.arm64 MISS", "before the run's deadline"},
		{"nothing printed", given(func(v *evidence) { v.hello, v.how, v.console = nil, bootTimeout, console.Find(nil) }), executor.KernelHung,
			"boot FAIL, ltp MISS, kselftest.arm64 MISS", "within 1m0s"},
		{"prints for ever", given(func(v *evidence) { v.hello, v.how = nil, flood }), executor.KernelHung,
			"boot FAIL, ltp MISS, kselftest.arm64 MISS", "512 MiB"},
		{"dies before its boot row", given(func(v *evidence) { v.console = panicConsole }), executor.KernelFailed,
			"boot FAIL, ltp MISS, kselftest.arm64 MISS", "Kernel panic"},
		{"dies in the announced test", given(func(v *evidence) {
			v.rows, v.phase, v.console = []*channel.Row{bootRow(), {TestID: "l", Path: "ltp.a", Status: "PASS"}}, &channel.Phase{Name: "test", Detail: "l"}, panicConsole
		}), executor.KernelBooted, "boot PASS, ltp.a PASS, ltp FAIL, kselftest.arm64 MISS", ""},
		{"dies in the first test without rows", given(func(v *evidence) {
			v.rows = []*channel.Row{bootRow(), {TestID: "l", Path: "ltp", Status: "PASS"}}
		}), executor.KernelBooted, "boot PASS, ltp PASS, kselftest.arm64 FAIL", ""},
		{"dies in a test that has its row", given(func(v *evidence) {
			v.rows, v.phase = []*channel.Row{bootRow()}, &channel.Phase{Name: "test", Detail: "b"}
		}), executor.KernelBooted, "boot PASS, boot.crash FAIL, ltp MISS, kselftest.arm64 MISS", ""},
		{"dies after its last test", given(func(v *evidence) {
			v.rows = []*channel.Row{bootRow(), {TestID: "l", Path: "ltp", Status: "PASS"}, {TestID: "k", Path: "kselftest.arm64", Status: "PASS"}}
		}), executor.KernelBooted, "boot PASS, ltp PASS, kselftest.arm64 PASS, shutdown FAIL", ""},
	}
	for _, tt := range tests {
		o, err := tt.v.judge(judgePlan)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		var got []string
		for _, r := range o.Rows {
			got = append(got, r.GetPath()+" "+strings.TrimPrefix(r.GetStatus().String(), "STATUS_"))
			if r.GetStatus() == fail && r.GetLogExcerpt() == "" {
				t.Errorf("%s: %s is FAIL without an excerpt", tt.name, r.GetPath())
			}
		}
		if s := strings.Join(got, ", "); s != tt.rows || o.Kernel != tt.kernel || !strings.Contains(o.KernelReason, tt.reason) {
			t.Errorf("%s: kernel %d (%s), rows %s", tt.name, o.Kernel, o.KernelReason, s)
		}
	}
}

func TestJudgeLab(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name      string
		v         evidence
		reason    string
		permanent bool
	}{
		{"refused", given(func(v *evidence) { v.refuse = &channel.Refuse{Reason: "no plan"} }), "guest", false},
		{"the guest says another kernel", given(func(v *evidence) { v.hello.Match, v.refuse = false, &channel.Refuse{Reason: "other"} }), "launch", true},
		{"the guest is wrong about the match", given(func(v *evidence) { v.hello.Release = "5.4.0" }), "launch", true},
		{"rows are missing", given(func(v *evidence) { v.done = &channel.Done{Rows: 1} }), "guest", false},
		{"lines are missing", given(func(v *evidence) { v.done, v.gap = &channel.Done{}, &channel.GapError{Want: 2, Got: 4} }), "guest", false},
		{"done without hello", given(func(v *evidence) { v.hello, v.done = nil, &channel.Done{} }), "guest", false},
		{"gone without a trace", given(func(v *evidence) { v.how = lost }), "lost", false},
		{"gone, although it panicked before", given(func(v *evidence) { v.hello, v.how, v.console = nil, lost, panicConsole }), "lost", false},
		{"out of memory on the host", given(func(v *evidence) { v.exit = 137 }), "lost", false},
		{"ended by an operator", given(func(v *evidence) { v.log = "qemu-system-x86_64: terminating on signal 15 from pid 7 (kill)" }), "lost", false},
		{"QEMU refuses", given(func(v *evidence) { v.hello, v.exit, v.log = nil, 1, "cannot set up guest memory" }), "launch", false},
	}
	for _, tt := range tests {
		o, err := tt.v.judge(judgePlan)
		lab, ok := errors.AsType[*executor.LabError](err)
		if !ok || lab.Reason != tt.reason || lab.Permanent != tt.permanent || lab.Fix == "" {
			t.Errorf("%s: %+v, %v", tt.name, o, err)
		}
	}
}

func TestBootRow(t *testing.T) {
	t.Parallel()
	o, err := given(func(v *evidence) {
		v.rows, v.done = []*channel.Row{{TestID: "b", Path: "boot", Status: "PASS", StartS: 2.6, TookS: 1}}, &channel.Done{Rows: 1}
	}).judge(judgePlan)
	if err != nil {
		t.Fatal(err)
	}
	r := o.Rows[0]
	if r.GetDuration().AsDuration() != 2500*time.Millisecond || r.GetStartTime().AsTime().Unix() != 1000 || r.GetMisc()["time_to_userspace_s"] != "2.50" {
		t.Errorf("%v", r)
	}
}
