package run_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/executor"
	"github.com/pullab/pullab/pkg/executor/executortest"
	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/natstest"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/runner/internal/run"
)

func TestMain(m *testing.M) {
	natstest.Register()
	m.Run()
}

var errCrash = errors.New("the runner died here")

// process is one runner process that dies at its nth step, a step being the
// moment before or after an effect.
type process struct {
	w      *world
	driver *run.Driver
	// dieAt is counted down; 0 never dies.
	dieAt int
	kill  context.CancelCauseFunc
}

// world is what survives a crash.
type world struct {
	t         *testing.T
	cloud     *executortest.Fake
	records   *ledger.Ledger[run.Record]
	published []*pullabv1.RunFinished
	rows      map[string][]byte
	dir       string
	n         int
}

func newWorld(t *testing.T, script func(executor.Run) executortest.Script) *world {
	b := natstest.Start(t)
	records, err := ledger.Open[run.Record](t.Context(), b, topology.RunLedger)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, cloud: executortest.NewFake(t, "qemu"), records: records, rows: map[string][]byte{}, dir: t.TempDir()}
	w.cloud.Script = script
	w.cloud.Fault = func(ctx context.Context, c executortest.Call) error {
		if p, ok := ctx.Value(processKey{}).(*process); ok {
			return p.step()
		}
		return nil
	}
	return w
}

type processKey struct{}

func (w *world) process(host string, dieAt int) *process {
	w.n++
	p := &process{w: w, dieAt: dieAt}
	p.driver = &run.Driver{
		Executors: map[string]executor.Executor{"qemu": w.cloud.Executor()}, HostBound: map[string]bool{"qemu": true},
		Records: faulty{p}, Logs: p, Publish: p.publish, PutRows: p.putRows,
		Tell:  func(context.Context, *pullabv1.RunProgress) {},
		Owner: run.Owner{Host: host, PID: w.n, Token: fmt.Sprint(w.n)}, LogsDir: w.dir, Attempts: 3,
		Backoff: backoff.Policy{Min: time.Second, Max: time.Minute},
	}
	return p
}

// step dies when it is time to.
func (p *process) step() error {
	if p.dieAt == 0 {
		return nil
	}
	p.dieAt--
	if p.dieAt == 0 {
		p.kill(errCrash)
		return errCrash
	}
	return nil
}

// do handles the message until it is acknowledged, the process dies, or the
// handler wants the message back; then it returns that error.
func (p *process) do(plan *pullabv1.RunPlanned) error {
	ctx, cancel := context.WithCancelCause(context.WithValue(p.w.t.Context(), processKey{}, p))
	defer cancel(nil)
	p.kill = cancel
	return p.driver.Do(ctx, plan)
}

// finish handles redeliveries until the message is acknowledged.
func (p *process) finish(plan *pullabv1.RunPlanned) {
	p.w.t.Helper()
	for range 20 {
		err := p.do(plan)
		if err == nil {
			return
		}
		retry, ok := errors.AsType[*queue.RetryError](err)
		if !ok {
			p.w.t.Fatalf("not retried: %v", err)
		}
		if err := backoff.Sleep(p.w.t.Context(), max(retry.After, time.Second)); err != nil {
			p.w.t.Fatal(err)
		}
	}
	p.w.t.Fatal("the message never ends")
}

func (p *process) Publish(context.Context, string, string, []executor.File) ([]*pullabv1.StoredFile, error) {
	if err := p.step(); err != nil {
		return nil, err
	}
	return []*pullabv1.StoredFile{{Name: "console.log"}}, nil
}

func (p *process) publish(_ context.Context, f *pullabv1.RunFinished) error {
	if err := p.step(); err != nil {
		return err
	}
	p.w.published = append(p.w.published, f)
	return p.step()
}

func (p *process) putRows(_ context.Context, name string, r io.Reader) error {
	b, err := io.ReadAll(r)
	p.w.rows[name] = b
	return err
}

// faulty is the ledger with a crash before and after each write.
type faulty struct{ p *process }

func (f faulty) Get(ctx context.Context, key string) (run.Record, uint64, error) {
	return f.p.w.records.Get(ctx, key)
}

func (f faulty) Create(ctx context.Context, key string, r run.Record) (uint64, error) {
	return f.write(func() (uint64, error) { return f.p.w.records.Create(ctx, key, r) })
}

func (f faulty) Update(ctx context.Context, key string, r run.Record, rev uint64) (uint64, error) {
	return f.write(func() (uint64, error) { return f.p.w.records.Update(ctx, key, r, rev) })
}

func (f faulty) write(do func() (uint64, error)) (uint64, error) {
	if err := f.p.step(); err != nil {
		return 0, err
	}
	rev, err := do()
	if err := f.p.step(); err != nil {
		return 0, err
	}
	return rev, err
}

func plan(n int) *pullabv1.RunPlanned {
	node := fmt.Sprintf("local-%d", n)
	return &pullabv1.RunPlanned{
		Origin: &pullabv1.Origin{NodeId: node, Runtime: "lab"}, RunId: "run_pulllab-x86_64-" + node + "_20260101_000000",
		Executor: "qemu", Arch: "x86_64", RunTimeout: durationpb.New(time.Hour), JobId: "lab:1",
		Tests: []*pullabv1.TestPlan{{Id: "boot", Type: "boot", Path: "boot"}},
	}
}

// slow takes a minute from launch to outcome.
func slow(s executortest.Script) executortest.Script {
	s.Launch, s.Takes = 5*time.Second, time.Minute
	return s
}

var lost = &executor.LabError{Reason: "lost", Fix: "Look at the machine room."}

func scripts() map[string]func(executor.Run) executortest.Script {
	return map[string]func(executor.Run) executortest.Script{
		"boots":  func(executor.Run) executortest.Script { return slow(executortest.Passing()) },
		"panics": func(executor.Run) executortest.Script { return slow(executortest.Panicking()) },
		"lab fails once": func(r executor.Run) executortest.Script {
			s := slow(executortest.Passing())
			if r.Attempt == 1 {
				s.AwaitErr = lost
			}
			return s
		},
		"launch fails once": func(r executor.Run) executortest.Script {
			s := slow(executortest.Panicking())
			if r.Attempt == 1 {
				s.StartErr = lost
			}
			return s
		},
		"lab fails": func(executor.Run) executortest.Script {
			s := slow(executortest.Passing())
			s.AwaitErr = lost
			return s
		},
	}
}

// TestCrashAnywhere kills a runner at every step of a run, before and after each
// effect, lets another one adopt what is left, and that one die too. What is
// reported is what would have been reported without any crash, once; no attempt
// ever has two machines.
func TestCrashAnywhere(t *testing.T) {
	for name, script := range scripts() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// Every pair of deaths for a run that succeeds; a sample for the rest.
				stride := 5
				if name == "boots" {
					stride = 1
				}
				w := newWorld(t, script)
				calm := plan(0)
				w.process("a", 0).finish(calm)
				want := w.published[0]
				attempts := len(w.cloud.Launched(calm.GetRunId()))
				deaths := 0
				for first := 1; ; first++ {
					died := false
					for second := 0; second < 14; second += stride {
						p := plan(1000*first + second + 1)
						w.published = nil
						died = w.crashTwice(p, first, second) || died
						w.check(p, want, attempts, fmt.Sprintf("death at step %d, then %d", first, second))
					}
					if !died {
						break
					}
					deaths++
				}
				if deaths < 12 {
					t.Errorf("the run has only %d places to die at: the test has lost its hooks", deaths)
				}
			})
		})
	}
}

// crashTwice plays a first process that dies at step first, a second that dies at
// step second (0: not), and a third that lives.
func (w *world) crashTwice(p *pullabv1.RunPlanned, first, second int) (died bool) {
	w.t.Helper()
	for _, dieAt := range []int{first, second} {
		if dieAt == 0 {
			continue
		}
		x := w.process("a", dieAt)
		for x.dieAt > 0 {
			err := x.do(p)
			retry, again := errors.AsType[*queue.RetryError](err)
			switch {
			case err == nil:
				return died
			case errors.Is(err, errCrash):
				died = true
			case again:
				if err := backoff.Sleep(w.t.Context(), max(retry.After, time.Second)); err != nil {
					w.t.Fatal(err)
				}
			default:
				w.t.Fatalf("not retried: %v", err)
			}
		}
	}
	w.process("a", 0).finish(p)
	return died
}

func (w *world) check(p *pullabv1.RunPlanned, want *pullabv1.RunFinished, attempts int, when string) {
	w.t.Helper()
	if len(w.published) == 0 {
		w.t.Fatalf("%s: nothing was reported", when)
	}
	for _, f := range w.published {
		if !proto.Equal(f, w.published[0]) {
			w.t.Errorf("%s: two results: %v and %v", when, w.published[0], f)
		}
	}
	got := w.published[0]
	if !proto.Equal(got.GetVerdict(), want.GetVerdict()) || got.GetAttempt() != want.GetAttempt() || got.GetKernelRelease() != want.GetKernelRelease() ||
		len(got.GetRows()) != len(want.GetRows()) || got.GetRunId() != p.GetRunId() || got.GetJobId() != p.GetJobId() {
		w.t.Errorf("%s: reported %v, without the crash %v", when, got, want)
	}
	if n := len(w.cloud.Launched(p.GetRunId())); n != attempts {
		w.t.Errorf("%s: %d machines, without the crash %d", when, n, attempts)
	}
	if n := w.cloud.MaxLive(p.GetRunId()); n > 1 {
		w.t.Errorf("%s: %d machines at one time", when, n)
	}
	if n := w.cloud.Live(); n != 0 {
		w.t.Errorf("%s: %d machines left", when, n)
	}
	rec, _, err := w.records.Get(w.t.Context(), p.GetOrigin().GetNodeId())
	if err != nil || rec.Phase != run.Finished {
		w.t.Errorf("%s: %v, ledger has %s", when, err, rec.Phase)
	}
}

// TestFinishBefore: an attempt that cannot use all its time is not begun.
func TestFinishBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		p := plan(1)
		p.FinishBefore = timestamppb.New(time.Now().Add(59 * time.Minute))
		w.process("a", 0).finish(p)
		f := w.published[0]
		if f.GetVerdict().GetErrorCode() != "node_timeout" || f.GetVerdict().GetFault() != pullabv1.Fault_FAULT_LAB ||
			f.GetRows()[0].GetStatus() != pullabv1.Status_STATUS_MISS || len(w.cloud.Launched(p.GetRunId())) != 0 {
			t.Errorf("%v", f)
		}

		p = plan(2)
		p.FinishBefore = timestamppb.New(time.Now().Add(time.Hour))
		w.process("a", 0).finish(p)
		if f := w.published[1]; f.GetVerdict().GetResult() != pullabv1.Result_RESULT_PASS {
			t.Errorf("%v", f)
		}
	})
}

// TestRetryMustFit: the lab's failure is reported as such when there is no time
// for another attempt.
func TestRetryMustFit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, scripts()["lab fails once"])
		p := plan(1)
		p.FinishBefore = timestamppb.New(time.Now().Add(time.Hour + time.Second))
		w.process("a", 0).finish(p)
		if f := w.published[0]; f.GetVerdict().GetErrorCode() != "Infrastructure" || f.GetAttempt() != 1 {
			t.Errorf("%v", f)
		}
	})
}

// TestKernelFailureIsNotRetried, and TestPermanent: neither is the lab's when it
// says so.
func TestKernelFailureIsNotRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, scripts()["panics"])
		w.process("a", 0).finish(plan(1))
		f := w.published[0]
		if f.GetVerdict().GetResult() != pullabv1.Result_RESULT_FAIL || f.GetVerdict().GetFault() != pullabv1.Fault_FAULT_KERNEL ||
			f.GetAttempt() != 1 || len(w.cloud.Launched(f.GetRunId())) != 1 {
			t.Errorf("%v", f)
		}
	})
}

func TestPermanent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(executor.Run) executortest.Script {
			return executortest.Script{StartErr: &executor.LabError{Reason: "download", Permanent: true, Err: errors.New("404"), Fix: "Check the URL."}}
		})
		w.process("a", 0).finish(plan(1))
		f := w.published[0]
		if f.GetAttempt() != 1 || f.GetVerdict().GetErrorCode() != "Infrastructure" || f.GetVerdict().GetErrorMsg() != "the lab failed at attempt 1: download: 404. Check the URL." {
			t.Errorf("%v", f)
		}
		if r := f.GetRows()[0]; r.GetPath() != "boot" || r.GetStatus() != pullabv1.Status_STATUS_MISS {
			t.Errorf("%v", r)
		}
	})
}

// TestOtherHost: a run whose machine only its host reaches waits for that host,
// and is given up only when the machine is surely gone.
func TestOtherHost(t *testing.T) {
	for name, dieAt := range map[string]int{"while launching": 3, "while running": 6} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, scripts()["boots"])
				w.cloud.Host = "a"
				p := plan(1)
				if err := w.process("a", dieAt).do(p); !errors.Is(err, errCrash) {
					t.Fatal(err)
				}
				begun := time.Now()
				err := w.process("b", 0).do(p)
				if retry, ok := errors.AsType[*queue.RetryError](err); !ok || retry.After <= 0 || retry.After > time.Minute {
					t.Fatalf("%v", err)
				}
				back := plan(2)
				if err := w.process("a", dieAt).do(back); !errors.Is(err, errCrash) {
					t.Fatal(err)
				}
				w.process("a", 0).finish(back)
				if got := w.cloud.Launched(back.GetRunId()); len(got) != 1 || w.published[0].GetVerdict().GetResult() != pullabv1.Result_RESULT_PASS {
					t.Errorf("%v %v", got, w.published)
				}

				other := w.process("b", 0)
				for {
					if err = other.do(p); err == nil {
						break
					}
					retry, _ := errors.AsType[*queue.RetryError](err)
					if err := backoff.Sleep(t.Context(), max(retry.After, time.Second)); err != nil {
						t.Fatal(err)
					}
					w.cloud.Host = "b"
				}
				if waited := time.Since(begun); waited < time.Hour+run.Overdue || waited > 2*time.Hour {
					t.Errorf("given up after %v", waited)
				}
				if f := w.published[1]; f.GetAttempt() != 2 || f.GetVerdict().GetResult() != pullabv1.Result_RESULT_PASS || w.cloud.MaxLive(p.GetRunId()) != 1 {
					t.Errorf("%v", f)
				}
			})
		})
	}
}

// TestStaleOwner: an owner that sleeps through its lease comes back to a run that
// another one has taken over. Its writes fail and it does nothing more.
func TestStaleOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, scripts()["boots"])
		p := plan(1)
		stale := make(chan error, 1)
		first := w.process("a", 0)
		go func() { stale <- first.do(p) }()
		if err := backoff.Sleep(t.Context(), 30*time.Second); err != nil {
			t.Fatal(err)
		}
		w.process("a", 0).finish(p)
		err := <-stale
		if retry, ok := errors.AsType[*queue.RetryError](err); !ok || retry.After < topology.AckWait {
			t.Errorf("the stale owner would acknowledge or hand back at once: %v", err)
		}
		if len(w.published) != 1 || w.cloud.MaxLive(p.GetRunId()) != 1 {
			t.Errorf("%d results, %d machines", len(w.published), w.cloud.MaxLive(p.GetRunId()))
		}
		rec, _, err := w.records.Get(t.Context(), "local-1")
		if err != nil || rec.Epoch != 2 || rec.Owner.PID != 2 {
			t.Errorf("%v %+v", err, rec)
		}
	})
}

// TestFinishedAgain: a message that comes after the end is answered with the
// recorded result, and runs nothing.
func TestFinishedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, scripts()["boots"])
		w.process("a", 0).finish(plan(1))
		again := plan(1)
		again.RunId = "run_pulllab-x86_64-local-1_20260102_000000"
		w.process("b", 0).finish(again)
		if len(w.published) != 2 || !proto.Equal(w.published[0], w.published[1]) || len(w.cloud.Launched(again.GetRunId())) != 0 {
			t.Errorf("%v", w.published)
		}
	})
}

// TestPoison: a plan that kills every runner ends as the lab's failure.
func TestPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, scripts()["boots"])
		p := plan(1)
		n := 0
		for ; n < 100; n++ {
			// Dies when Start is called: the third step at first, after the record is
			// made, and the fifth when it is adopted.
			dieAt := 5
			if n == 0 {
				dieAt = 3
			}
			x := w.process("a", dieAt)
			if err := x.do(p); err == nil || x.dieAt > 0 {
				break
			}
			if rec, _, _ := w.records.Get(t.Context(), "local-1"); rec.Phase == run.Collecting {
				break
			}
		}
		w.process("a", 0).finish(p)
		if f := w.published[0]; f.GetVerdict().GetErrorCode() != "Infrastructure" || n < 10 || n > 30 {
			t.Errorf("after %d deaths: %v", n, f)
		}
	})
}

// TestEndlessExecutor: calls that do not end with the run's time are ended.
func TestEndlessExecutor(t *testing.T) {
	for _, verb := range []executortest.Verb{executortest.Start, executortest.Await} {
		t.Run(string(verb), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				w.cloud.Fault = func(ctx context.Context, c executortest.Call) error {
					if c.Verb == verb {
						return backoff.Sleep(ctx, 1000*time.Hour)
					}
					return nil
				}
				begun := time.Now()
				w.process("a", 0).finish(plan(1))
				f := w.published[0]
				if f.GetVerdict().GetErrorCode() != "Infrastructure" || f.GetAttempt() != 3 || time.Since(begun) > 4*time.Hour {
					t.Errorf("after %v: %v", time.Since(begun), f)
				}
			})
		})
	}
}

func TestContractBreach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.cloud.Fault = func(_ context.Context, c executortest.Call) error {
			if c.Verb == executortest.Await {
				return errors.New("an ordinary error")
			}
			return nil
		}
		w.process("a", 0).finish(plan(1))
		if f := w.published[0]; f.GetVerdict().GetFault() != pullabv1.Fault_FAULT_LAB || f.GetAttempt() != 3 || w.cloud.Live() != 0 {
			t.Errorf("%v", f)
		}
	})
}

func TestNodeOf(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]string{
		"run_pulllab-x86_64-6a86d157c5867fba94731e66_20261124_190000": "6a86d157c5867fba94731e66",
		"run_pulllab-arm64-local-ab12_20261124_190000":                "local-ab12",
		"run_pulllab-arm64-local_20261124":                            "",
		"run_other-arm64-x_20261124_190000":                           "",
		"run_pulllab-arm64-x_20261324_190000":                         "",
		"":                                                            "",
	} {
		if got := run.NodeOf(id); got != want {
			t.Errorf("%s: %q", id, got)
		}
	}
}
