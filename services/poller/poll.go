package poller

import (
	"context"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/services/poller/internal/census"
	"github.com/pullab/pullab/services/poller/internal/feed"
	"github.com/pullab/pullab/services/poller/internal/judge"
	"github.com/pullab/pullab/services/poller/internal/offers"
)

// hintEvery is how often a lab that gets no jobs is told why: the reason stays
// the same with every poll.
const hintEvery = time.Hour

// poll reads the events to their end, then moves the cursor.
func (s *Service) poll(ctx context.Context) error {
	r, err := s.feed.Read(ctx, s.cursor.Position, s.handle)
	if err != nil {
		return err
	}
	s.report(ctx, r)
	s.count = census.Count{}
	if err := s.cursor.Advance(ctx, r.Start, r.Reached); err != nil {
		return fmt.Errorf("the jobs are offered, but the cursor could not be moved; they will be looked at again: %w", err)
	}
	if r.Err != nil {
		return fmt.Errorf("%d jobs could not be offered, the cursor waits before the first of them: %w", r.Failed, r.Err)
	}
	return nil
}

// handle offers what is wanted of a page. Of one node the last event counts.
func (s *Service) handle(ctx context.Context, events []kernelci.Event) ([]feed.Failure, error) {
	var jobs []offers.Job
	index := map[string]int{}
	var count census.Count
	for _, e := range events {
		count.Event(e)
		if e.Err != nil {
			zerolog.Ctx(ctx).Warn().Err(e.Err).Str("node", e.NodeID).Msg("Event skipped, it cannot be read; if it is about an open job, the sweep will meet that")
		}
		if e.Node == nil {
			continue
		}
		j := s.job(e.Node, e.ID)
		count.Node(e.Node, j.Verdict.Reason)
		if j.Verdict.Reason.Foreign() {
			continue
		}
		if i, ok := index[e.Node.ID]; ok {
			jobs[i] = j
			continue
		}
		index[e.Node.ID] = len(jobs)
		jobs = append(jobs, j)
	}
	t := s.desk.HandleAll(ctx, s.cfg.Poller.Concurrency, jobs)
	if n := len(t.Failed); n > 0 && (n == len(jobs) || ctx.Err() != nil) {
		return nil, fmt.Errorf("no job could be offered: %w", t.Failed[0].Err)
	}
	count.Tally(t)
	s.count.Add(count)
	failures := make([]feed.Failure, len(t.Failed))
	for i, f := range t.Failed {
		failures[i] = feed.Failure{Node: f.Job.Node.ID, Err: f.Err}
	}
	return failures, nil
}

// report says what a reading found.
func (s *Service) report(ctx context.Context, r feed.Reading) {
	log := zerolog.Ctx(ctx)
	c := &s.count
	if c.Events == 0 {
		log.Debug().Time("cursor", r.Start.At).Msg("No new events")
		return
	}
	log.Info().Int("events", c.Events).Int("matched", c.Matched).Int("offered", c.Made).Int("skipped", c.Passed).
		Int("known", c.Known).Int("failed", r.Failed).Int("without_node", c.NoNode).Int("unreadable", c.Bad).
		Str("other_runtimes", c.Names(judge.OtherRuntime)).Str("other_platforms", c.Names(judge.OtherPlatform)).Msg("Events handled")
	// Once a job was ours the names are right, and other labs' events no news.
	s.matched = s.matched || c.Matched > 0
	if hint := c.Hint(s.rules.Runtime, s.rules.Platforms); hint != "" && !s.matched && time.Since(s.hinted) > hintEvery {
		s.hinted = time.Now()
		log.Info().Msg(hint)
	}
}
