package runner_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/pkg/executor"
	"github.com/pullab/pullab/pkg/executor/executortest"
	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/natstest"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/pkg/wire"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/runner"
)

func TestMain(m *testing.M) {
	natstest.Register()
	m.Run()
}

// lab is a broker, a cloud of fake machines, and runners over both.
type lab struct {
	*testing.T
	bus   *bus.Bus
	cloud *executortest.Fake
	cfg   runner.Config

	mu   sync.Mutex
	told []*pullabv1.RunProgress
}

func newLab(t *testing.T) *lab {
	l := &lab{T: t, bus: natstest.Start(t), cloud: executortest.NewFake(t, "qemu")}
	if _, err := config.Load(&l.cfg, config.Source{Set: []string{"runner.data_dir=" + t.TempDir(), "runner.slots=qemu=2"}}); err != nil {
		t.Fatal(err)
	}
	l.cloud.Script = func(executor.Run) executortest.Script {
		s := executortest.Passing()
		s.Launch, s.Takes, s.Console = 5*time.Second, 10*time.Minute, "Linux version 6.12.0-fake\n"
		return s
	}
	return l
}

// runner starts one; stop ends it and waits for it.
func (l *lab) runner(host string, b *bus.Bus) (stop func()) {
	l.Helper()
	s, err := runner.New(l.Context(), l.cfg, b, runner.WithHost(host),
		runner.WithExecutors(map[string]executor.Executor{"qemu": l.cloud.Executor()}),
		runner.WithProgress(func(p *pullabv1.RunProgress) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.told = append(l.told, p)
		}))
	if err != nil {
		l.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && b == l.bus {
			l.Errorf("Run: %v", err)
		}
	})
	l.Cleanup(stop)
	return stop
}

func plan(n int) *pullabv1.RunPlanned {
	node := fmt.Sprintf("6a86d157c5867fba947%05d", n)
	return &pullabv1.RunPlanned{
		Origin: &pullabv1.Origin{NodeId: node, Runtime: "lab", Platform: "qemu-x86"}, RunId: "run_pulllab-x86_64-" + node + "_20260101_000000",
		Executor: "qemu", Arch: "x86_64", RunTimeout: durationpb.New(time.Hour), JobId: "lab:1",
		Build: &pullabv1.Build{BuildId: "maestro:1"}, Tests: []*pullabv1.TestPlan{{Id: "boot", Type: "boot", Path: "boot"}},
	}
}

func (l *lab) offer(p *pullabv1.RunPlanned) {
	l.Helper()
	node := p.GetOrigin().GetNodeId()
	if _, err := queue.NewOutbox(l.bus, topology.Runs).Publish(l.Context(), topology.RunSubject(p.GetExecutor(), p.GetArch(), node), node, p.GetRunId(), p); err != nil {
		l.Fatal(err)
	}
}

// results takes n of them off the bus.
func (l *lab) results(n int) []*pullabv1.RunFinished {
	l.Helper()
	ctx, cancel := context.WithCancel(l.Context())
	defer cancel()
	var got []*pullabv1.RunFinished
	var mu sync.Mutex
	in := queue.NewInbox(l.bus, queue.InboxConfig{Service: "test", Stream: topology.Results, Consumer: topology.SubmitterNode})
	err := in.Run(ctx, queue.FixedSlots(1), func(_ context.Context, d *queue.Delivery) error {
		mu.Lock()
		defer mu.Unlock()
		if got = append(got, d.Message.(*pullabv1.RunFinished)); len(got) == n {
			cancel()
		}
		return nil
	})
	if err != nil || len(got) < n {
		l.Fatalf("%d results of %d: %v", len(got), n, err)
	}
	return got
}

func (l *lab) sleep(d time.Duration) {
	l.Helper()
	if err := backoff.Sleep(l.Context(), d); err != nil {
		l.Fatal(err)
	}
}

func TestStory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		stop := l.runner("a", l.bus)
		for n := range 5 {
			l.offer(plan(n))
		}
		l.sleep(time.Minute)
		if live := l.cloud.Live(); live != 2 {
			t.Errorf("%d machines in two slots", live)
		}
		seen := map[string]bool{}
		for _, f := range l.results(5) {
			seen[f.GetOrigin().GetNodeId()] = true
			if f.GetVerdict().GetResult() != pullabv1.Result_RESULT_PASS || f.GetAttempt() != 1 || f.GetBuild().GetBuildId() != "maestro:1" ||
				f.GetFinishedAt().AsTime().Sub(f.GetStartedAt().AsTime()) != 10*time.Minute {
				t.Errorf("%v", f)
			}
			if len(f.GetFiles()) != 1 || f.GetFiles()[0].GetRole() != "log" || !strings.Contains(f.GetFiles()[0].GetLocation(), "/logs/"+f.GetRunId()+"/") {
				t.Errorf("%v", f.GetFiles())
			}
		}
		stop()
		if len(seen) != 5 || l.cloud.Live() != 0 {
			t.Errorf("%d nodes, %d machines", len(seen), l.cloud.Live())
		}
		var phases []string
		for _, p := range l.told {
			if p.GetNodeId() == plan(0).GetOrigin().GetNodeId() {
				phases = append(phases, strings.TrimPrefix(p.GetPhase().String(), "RUN_PHASE_"))
			}
		}
		if got := strings.Join(phases, " "); got != "LAUNCHING RUNNING COLLECTING FINISHED" {
			t.Error(got)
		}
	})
}

// TestShutdown: the message goes back, the machine stays, the next runner adopts
// it at once.
func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		stop := l.runner("a", l.bus)
		l.offer(plan(1))
		l.sleep(time.Minute)
		begun := time.Now()
		stop()
		if took := time.Since(begun); took > time.Second {
			t.Errorf("stopping took %v", took)
		}
		if l.cloud.Live() != 1 {
			t.Fatal("the machine was stopped with its runner")
		}
		l.sleep(time.Minute)
		l.runner("a", l.bus)
		f := l.results(1)[0]
		if f.GetVerdict().GetResult() != pullabv1.Result_RESULT_PASS || f.GetAttempt() != 1 || len(l.cloud.Launched(f.GetRunId())) != 1 ||
			f.GetFinishedAt().AsTime().Sub(f.GetStartedAt().AsTime()) != 10*time.Minute {
			t.Errorf("%v", f)
		}
	})
}

// TestCrash: the runner loses its broker and dies. Its lease runs out, and the
// next one adopts.
func TestCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, b := natstest.StartDir(t, t.TempDir())
		l := newLab(t)
		l.bus = b
		lost := natstest.Connect(t, server, "doomed")
		stop := l.runner("a", lost)
		l.offer(plan(1))
		l.sleep(time.Minute)
		lost.Close()
		stop()
		begun := time.Now()
		l.runner("a", l.bus)
		f := l.results(1)[0]
		if f.GetVerdict().GetResult() != pullabv1.Result_RESULT_PASS || len(l.cloud.Launched(f.GetRunId())) != 1 {
			t.Errorf("%v", f)
		}
		if took := time.Since(begun); took > 10*time.Minute {
			t.Errorf("the result came %v after the crash", took)
		}
	})
}

// TestLabFails: three attempts, with pauses in which the slot is free, then
// incomplete.
func TestLabFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		l.cloud.Script = func(executor.Run) executortest.Script {
			return executortest.Script{AwaitErr: &executor.LabError{Reason: "lost", Fix: "Look at the machine room."}}
		}
		l.runner("a", l.bus)
		l.offer(plan(1))
		f := l.results(1)[0]
		if f.GetVerdict().GetErrorCode() != "Infrastructure" || f.GetVerdict().GetFault() != pullabv1.Fault_FAULT_LAB || f.GetAttempt() != 3 ||
			f.GetRows()[0].GetStatus() != pullabv1.Status_STATUS_MISS {
			t.Errorf("%v", f)
		}
		if n := len(l.cloud.Launched(f.GetRunId())); n != 3 || l.cloud.MaxLive(f.GetRunId()) != 1 || l.cloud.Live() != 0 {
			t.Errorf("%d machines, %d at one time, %d left", n, l.cloud.MaxLive(f.GetRunId()), l.cloud.Live())
		}
	})
}

func TestRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		l.runner("a", l.bus)
		p := plan(1)
		p.Executor, p.Refusal = topology.None, &pullabv1.Refusal{ErrorCode: "invalid_job_params", ErrorMsg: "artifacts.kernel is missing"}
		l.offer(p)
		f := l.results(1)[0]
		v := f.GetVerdict()
		if v.GetResult() != pullabv1.Result_RESULT_INCOMPLETE || v.GetErrorCode() != "invalid_job_params" || v.GetErrorMsg() != "artifacts.kernel is missing" ||
			v.GetFault() != pullabv1.Fault_FAULT_DEFINITION || f.GetAttempt() != 0 || f.GetStartedAt() == nil || !proto.Equal(f.GetOrigin(), p.GetOrigin()) {
			t.Errorf("%v", f)
		}
	})
}

// TestBigRows: rows that no message can carry go to the object store, whole.
func TestBigRows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		s := executortest.Passing()
		for n := range 2000 {
			s.Outcome.Rows = append(s.Outcome.Rows, &pullabv1.TestRow{
				Path: fmt.Sprintf("ltp.t%04d", n), Status: pullabv1.Status_STATUS_FAIL, LogExcerpt: strings.Repeat("x", 200),
			})
		}
		l.cloud.Script = func(executor.Run) executortest.Script { return s }
		l.runner("a", l.bus)
		l.offer(plan(1))
		f := l.results(1)[0]
		if f.GetRowsObject() == "" || len(f.GetRows()) != 0 || f.GetVerdict().GetResult() != pullabv1.Result_RESULT_FAIL {
			t.Fatalf("%v", f)
		}
		blobs, err := ledger.OpenBlobs(t.Context(), l.bus, topology.ResultRows)
		if err != nil {
			t.Fatal(err)
		}
		b, err := blobs.Get(t.Context(), f.GetRowsObject())
		if err != nil {
			t.Fatal(err)
		}
		var rows pullabv1.RunRows
		if err := wire.DecodeInto(b, &rows); err != nil || len(rows.GetRows()) != 2001 {
			t.Errorf("%v, %d rows", err, len(rows.GetRows()))
		}
	})
}

// TestBadPlans go to PULLAB_DEAD and hold up nobody.
func TestBadPlans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		stop := l.runner("a", l.bus)
		foreign := plan(1)
		foreign.RunId = plan(2).GetRunId()
		l.offer(foreign)
		contradiction := plan(3)
		contradiction.Refusal = &pullabv1.Refusal{ErrorCode: "Test"}
		l.offer(contradiction)
		l.offer(plan(4))
		if f := l.results(1)[0]; f.GetOrigin().GetNodeId() != plan(4).GetOrigin().GetNodeId() {
			t.Errorf("%v", f)
		}
		stop()
		for _, n := range []int{1, 3} {
			info, err := l.bus.JS.Stream(t.Context(), topology.Dead)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := info.GetLastMsgForSubject(t.Context(), topology.DeadSubject("runner", plan(n).GetOrigin().GetNodeId())); err != nil {
				t.Errorf("plan %d: %v", n, err)
			}
		}
	})
}

// TestReaper: a machine whose run is finished, and one past its deadline, are
// stopped; one whose run goes on, and one that nobody knows, are not.
func TestReaper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		// Stop fails once, so that the finished run's machine is left.
		failed := false
		l.cloud.Fault = func(_ context.Context, c executortest.Call) error {
			if c.Verb == executortest.Stop && !failed {
				failed = true
				return errors.New("the cloud is busy")
			}
			return nil
		}
		l.cloud.Script = func(r executor.Run) executortest.Script {
			s := executortest.Passing()
			if r.Plan.GetOrigin().GetNodeId() != plan(1).GetOrigin().GetNodeId() {
				s.Takes = 50 * time.Minute
			}
			return s
		}
		ex := l.cloud.Executor()
		stranger := executor.Run{Plan: plan(9), Attempt: 1, Deadline: time.Now().Add(time.Hour), Dir: t.TempDir()}
		if _, err := ex.Start(t.Context(), stranger, func(pullabv1.RunPhase, string) {}); err != nil {
			t.Fatal(err)
		}
		stop := l.runner("a", l.bus)
		l.offer(plan(1))
		l.offer(plan(2))
		l.results(1)
		l.sleep(time.Second)
		if l.cloud.Live() != 3 {
			t.Fatalf("%d machines", l.cloud.Live())
		}
		l.sleep(2 * time.Minute)
		if l.cloud.Live() != 2 {
			t.Errorf("%d machines left, want the running one and the stranger", l.cloud.Live())
		}
		stop()
	})
}

// TestThousand: runs in flight cost a goroutine and a timer, not a machine's
// worth of memory.
func TestThousand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		const n = 1000
		l.cfg.Runner.Slots = map[string]string{"qemu": fmt.Sprint(n)}
		var before, during runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		stop := l.runner("a", l.bus)
		for i := range n {
			l.offer(plan(i))
		}
		l.sleep(5 * time.Minute)
		if live := l.cloud.Live(); live != n {
			t.Fatalf("%d runs in flight", live)
		}
		runtime.GC()
		runtime.ReadMemStats(&during)
		// Broker, streams in memory and fake cloud included.
		if mib := (int64(during.HeapAlloc) - int64(before.HeapAlloc)) >> 20; mib > 100 {
			t.Errorf("%d runs hold %d MiB of heap", n, mib)
		}
		l.results(n)
		stop()
	})
}

func TestRunOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		l.cloud.Script = func(r executor.Run) executortest.Script {
			s := executortest.Passing()
			if r.Attempt == 1 {
				s.AwaitErr = &executor.LabError{Reason: "lost", Fix: "Try again."}
			}
			return s
		}
		var phases []pullabv1.RunPhase
		with := runner.WithExecutors(map[string]executor.Executor{"qemu": l.cloud.Executor()})
		f, err := runner.RunOne(t.Context(), l.cfg, plan(1), func(p *pullabv1.RunProgress) { phases = append(phases, p.GetPhase()) }, with)
		if err != nil || f.GetVerdict().GetResult() != pullabv1.Result_RESULT_PASS || f.GetAttempt() != 2 || len(phases) == 0 {
			t.Errorf("%v %v", err, f)
		}

		l.cloud.Script = func(executor.Run) executortest.Script { s := executortest.Passing(); s.Takes = time.Hour; return s }
		ctx, cancel := context.WithCancelCause(t.Context())
		over := errors.New("over")
		time.AfterFunc(time.Minute, func() { cancel(over) })
		if f, err := runner.RunOne(ctx, l.cfg, plan(2), nil, with); !errors.Is(err, over) || l.cloud.Live() != 0 {
			t.Errorf("%v %v, %d machines left", f, err, l.cloud.Live())
		}
	})
}

// TestOnce drains what is queued, a retry included.
func TestOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		l.offer(plan(1))
		s, err := runner.New(t.Context(), l.cfg, l.bus, runner.WithExecutors(map[string]executor.Executor{"qemu": l.cloud.Executor()}))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Once(t.Context()); err != nil {
			t.Fatal(err)
		}
		if f := l.results(1); len(f) != 1 || l.cloud.Live() != 0 {
			t.Errorf("%v", f)
		}
	})
}

// TestCommandRuns takes one plan through a real program and the real files.
func TestCommandRuns(t *testing.T) {
	t.Parallel()
	var cfg runner.Config
	dir := t.TempDir()
	if _, err := config.Load(&cfg, config.Source{Set: []string{
		"runner.data_dir=" + dir, "runner.executors=command", "command.path=command/testdata/lab.sh",
		"logs.public_base_url=https://lab.example/logs",
	}}); err != nil {
		t.Fatal(err)
	}
	p := plan(1)
	p.Executor = "command"
	f, err := runner.RunOne(t.Context(), cfg, p, nil)
	if err != nil || f.GetVerdict().GetResult() != pullabv1.Result_RESULT_PASS || f.GetKernelRelease() != "6.12.0-lab" || f.GetDevice() != "board-1" {
		t.Fatalf("%v %v", err, f)
	}
	if u := f.GetFiles()[0].GetUrl(); u != "https://lab.example/logs/"+p.GetRunId()+"/console.log" {
		t.Error(u)
	}
	b, err := os.ReadFile(filepath.Join(dir, "logs", p.GetRunId(), "artifacts.json"))
	if err != nil || !json.Valid(b) {
		t.Errorf("%v %s", err, b)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for set, want := range map[string]string{
		"runner.executors=qemu":                       "",
		"runner.executors=ec3":                        `"ec3" is none of`,
		"runner.executors=command":                    "command.path is empty",
		"runner.arches=riscv":                         `"riscv" is none of`,
		"runner.slots=qemu=0":                         "qemu=0 must be",
		"runner.slots=lava=1":                         `"lava" is no executor`,
		"runner.attempts=0":                           "runner.attempts is 0",
		"runner.backoff_max=1s":                       "runner.backoff_min",
		"logs.storage_url=http://files.example":       "logs.storage_token",
		"runner.executors=qemu,command,qemu,nonsense": `"nonsense"`,
	} {
		var cfg runner.Config
		_, err := config.Load(&cfg, config.Source{Set: []string{set}})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", set, err)
		}
	}
}
