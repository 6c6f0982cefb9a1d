package reaper_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pullab/pullab/pkg/executor"
	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/services/runner/internal/reaper"
	"github.com/pullab/pullab/services/runner/internal/run"
)

// rack lists fixed machines and notes what is stopped.
type rack struct {
	executor.Executor
	machines []executor.Machine
	stopped  []string
}

func (r *rack) List(context.Context) ([]executor.Machine, error) { return r.machines, nil }

func (r *rack) Stop(_ context.Context, h executor.Handle) error {
	r.stopped = append(r.stopped, h.ID)
	return nil
}

func name(node string) string { return "run_pulllab-x86_64-" + node + "_20260101_000000" }

func TestRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		soon := time.Now().Add(time.Hour)
		m := func(id, runID string, attempt int, deadline time.Time) executor.Machine {
			return executor.Machine{Handle: executor.Handle{Executor: "x", ID: id}, RunID: runID, Attempt: attempt, Deadline: deadline, Ours: true}
		}
		records := map[string]run.Record{
			"going":    {RunID: name("going"), Attempt: 2, Phase: run.Running},
			"waiting":  {RunID: name("waiting"), Attempt: 2, Phase: run.Reserved},
			"finished": {RunID: name("finished"), Attempt: 1, Phase: run.Finished},
			"renamed":  {RunID: name("other"), Attempt: 9, Phase: run.Finished},
		}
		foreign := m("foreign", "", 0, time.Time{})
		foreign.Ours = false
		away := m("away", name("finished"), 1, soon.Add(-3*time.Hour))
		away.Handle.Host = "b"
		r := &rack{machines: []executor.Machine{
			m("going", name("going"), 2, soon),
			m("given-up", name("going"), 1, soon),
			m("before-retry", name("waiting"), 1, soon),
			m("finished", name("finished"), 1, soon),
			m("unknown", name("unknown"), 1, soon),
			m("unreadable", name("unreadable"), 1, soon),
			m("renamed", name("renamed"), 1, soon),
			m("strange-name", "i-123", 1, soon),
			m("overdue", name("unknown"), 1, time.Now().Add(-reaper.Grace-time.Second)),
			m("just-over", name("going"), 2, time.Now().Add(-time.Second)),
			foreign, away,
		}}
		x := &reaper.Reaper{Executors: map[string]executor.Executor{"x": r}, Host: "a", Get: func(_ context.Context, key string) (run.Record, uint64, error) {
			if key == "unreadable" {
				return run.Record{}, 0, errors.New("the broker is away")
			}
			rec, ok := records[key]
			if !ok {
				return rec, 0, ledger.ErrNotFound
			}
			return rec, 1, nil
		}}
		x.Round(t.Context())
		slices.Sort(r.stopped)
		if want := []string{"before-retry", "finished", "given-up", "overdue"}; !slices.Equal(r.stopped, want) {
			t.Errorf("stopped %q, want %q", r.stopped, want)
		}
	})
}
