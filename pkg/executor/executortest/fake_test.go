package executortest_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/pullab/pullab/pkg/executor"
	"github.com/pullab/pullab/pkg/executor/executortest"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

// TestFake: a test double is worth what it shares with the real thing, so the
// fake passes the same suite. Subtests cannot be made inside a bubble; real time
// it is, and short.
func TestFake(t *testing.T) {
	t.Parallel()
	executortest.Suite(t, func(t *testing.T) executortest.Harness {
		f := executortest.NewFake(t, "fake")
		f.Script = func(run executor.Run) executortest.Script {
			switch s := executortest.Passing(); run.Plan.GetParameters()["scenario"] {
			case "panic":
				return executortest.Panicking()
			case "hang":
				s.Takes = time.Hour
				return s
			case "break":
				s.AwaitErr = &executor.LabError{Reason: "lost", Fix: "A script said so."}
				return s
			default:
				s.Console = "Linux version 6.12.0-fake\n"
				return s
			}
		}
		return executortest.Harness{
			New:  func(testing.TB) executor.Executor { return f.Executor() },
			Hang: 50 * time.Millisecond,
			Plan: func(_ testing.TB, s executortest.Scenario) *pullabv1.RunPlanned {
				name := map[executortest.Scenario]string{executortest.Panics: "panic", executortest.Hangs: "hang", executortest.Breaks: "break"}[s]
				return &pullabv1.RunPlanned{Arch: "x86_64", Executor: "fake", Parameters: map[string]string{"scenario": name}}
			},
		}
	})
}

// TestFakeCounts: the counters that stories judge by.
func TestFakeCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := executortest.NewFake(t, "fake")
		f.Script = func(executor.Run) executortest.Script {
			s := executortest.Passing()
			s.Launch, s.Takes = time.Second, time.Minute
			return s
		}
		ex := f.Executor()
		quiet := func(pullabv1.RunPhase, string) {}
		run := executor.Run{Plan: &pullabv1.RunPlanned{RunId: "r"}, Attempt: 1, Deadline: time.Now().Add(time.Hour)}
		h, err := ex.Start(t.Context(), run, quiet)
		if err != nil || f.Live() != 1 {
			t.Fatal(err, f.Live())
		}
		begun := time.Now()
		if _, err := f.Executor().Await(t.Context(), run, h, quiet); err != nil || time.Since(begun) != time.Minute {
			t.Fatal(err, time.Since(begun))
		}
		run.Attempt = 2
		if _, err := ex.Start(t.Context(), run, quiet); err != nil {
			t.Fatal(err)
		}
		if f.MaxLive("r") != 2 || len(f.Launched("r")) != 2 {
			t.Fatalf("two attempts live at once were not noticed: %d, %v", f.MaxLive("r"), f.Launched("r"))
		}
		if err := ex.Stop(t.Context(), h); err != nil || f.Live() != 1 {
			t.Fatal(err, f.Live())
		}
	})
}
