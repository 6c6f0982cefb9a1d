// Package reaper stops machines that nobody waits for any more: past their
// deadline, of a run that is finished, or of an attempt that was given up. It
// touches only what carries our mark and says once what it leaves alone.
package reaper

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/executor"
	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/wire"
	"github.com/pullab/pullab/services/runner/internal/run"
)

const (
	// Interval between rounds. With Grace and the time of a round it keeps
	// invariant 3: nothing outlives its deadline by more than two minutes.
	Interval = 30 * time.Second
	// Grace after a deadline, in which a hung machine's console is collected.
	Grace = 30 * time.Second
	// roundTime is what listing and stopping may take per executor.
	roundTime = 45 * time.Second
)

// Reaper watches the machines of some executors.
type Reaper struct {
	Executors map[string]executor.Executor
	// Get reads a run's record by its ledger key.
	Get func(ctx context.Context, key string) (run.Record, uint64, error)
	// Host is ours: machines bound to another are left to the reaper there.
	Host string

	// left are machines that were mentioned once.
	left map[string]bool
}

// Run reaps at once and then at every Interval, until ctx ends.
func (r *Reaper) Run(ctx context.Context) {
	for {
		r.Round(ctx)
		if backoff.Sleep(ctx, Interval) != nil {
			return
		}
	}
}

// Round looks at every machine once.
func (r *Reaper) Round(ctx context.Context) {
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(r.Executors)) {
		r.round(ctx, name, seen)
	}
	maps.DeleteFunc(r.left, func(id string, _ bool) bool { return !seen[id] })
}

func (r *Reaper) round(ctx context.Context, name string, seen map[string]bool) {
	rctx, cancel := context.WithTimeout(ctx, roundTime)
	defer cancel()
	log := zerolog.Ctx(ctx).With().Str("executor", name).Logger()
	machines, err := r.Executors[name].List(rctx)
	if err != nil && ctx.Err() == nil {
		log.Error().Err(err).Msg("machines not listed; reaping again later")
	}
	for _, m := range machines {
		id := name + "/" + m.Handle.ID
		seen[id] = true
		stop, why := r.judge(rctx, m)
		if rctx.Err() != nil {
			return
		}
		log := log.With().Str("machine", m.Handle.ID).Str("run", m.RunID).Int("attempt", m.Attempt).Str("why", why).Logger()
		if !stop {
			if why != "" && !r.left[id] {
				if r.left == nil {
					r.left = map[string]bool{}
				}
				r.left[id] = true
				log.Warn().Msg("machine left alone")
			}
			continue
		}
		if err := r.Executors[name].Stop(rctx, m.Handle); err != nil {
			log.Error().Err(err).Msg("machine not stopped; reaping again later")
			continue
		}
		log.Warn().Msg("machine stopped")
	}
}

// judge decides about one machine. why is empty when there is nothing to say.
func (r *Reaper) judge(ctx context.Context, m executor.Machine) (stop bool, why string) {
	if m.Handle.Host != "" && m.Handle.Host != r.Host {
		return false, ""
	}
	if !m.Ours {
		return false, "it carries our mark but no run can be read from it; stop it by hand if it is not wanted"
	}
	if !m.Deadline.IsZero() && time.Since(m.Deadline) > Grace {
		return true, "past its deadline"
	}
	node := run.NodeOf(m.RunID)
	if node == "" {
		return false, "its run's name is not one of this lab; it ends at its deadline"
	}
	rec, _, err := r.Get(ctx, wire.Token(node))
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return false, "no runner knows its run; it ends at its deadline"
	case err != nil:
		return false, "its record cannot be read: " + err.Error()
	case rec.RunID != m.RunID:
		return false, "its node runs as " + rec.RunID + "; it ends at its deadline"
	case rec.Phase == run.Finished:
		return true, "its run is finished"
	case rec.Attempt > m.Attempt:
		return true, "its attempt was given up"
	}
	return false, ""
}
