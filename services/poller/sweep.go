package poller

import (
	"context"
	"errors"
	"fmt"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/services/poller/internal/offers"
)

const (
	// sweepPage is how many nodes are asked for at once, about 3 KiB each.
	sweepPage = 500
	// maxSweep nodes are looked at in one sweep: more than a lab can have open
	// within the 6 hours of a job's life.
	maxSweep = 50_000
)

// sweep lists the open, unclaimed jobs of the runtime and offers those that the
// ledger does not know, or knows as offered so long ago that the offer must be
// lost (package offers).
//
// All pages are read before any job is offered: a claim takes its node out of
// the list, and the pages after it would shift.
func (s *Service) sweep(ctx context.Context) error {
	var jobs []offers.Job
	known := map[string]bool{}
	for offset := 0; offset < maxSweep; offset += sweepPage {
		nodes, total, err := s.api.Nodes(ctx, s.filter(), sweepPage, offset)
		if errors.As(err, new(*kernelci.ItemsError)) {
			zerolog.Ctx(ctx).Warn().Err(err).Msg("Nodes skipped, they cannot be read")
		} else if err != nil {
			return err
		}
		for _, n := range nodes {
			// The document is not needed, and thousands of them are large.
			n.Doc = nil
			// A list that shifts between pages repeats nodes.
			if j := s.job(n, ""); !known[n.ID] && !j.Verdict.Reason.Foreign() {
				known[n.ID] = true
				jobs = append(jobs, j)
			}
		}
		if offset+sweepPage >= total {
			break
		}
	}
	t := s.desk.HandleAll(ctx, s.cfg.Poller.Concurrency, jobs)
	zerolog.Ctx(ctx).Debug().Int("open", len(jobs)).Int("offered", t.Made).Int("skipped", t.Passed).
		Int("known", t.Known).Int("failed", len(t.Failed)).Msg("Swept open jobs")
	if len(t.Failed) > 0 {
		return fmt.Errorf("%d of %d open jobs could not be offered, the first: %w", len(t.Failed), len(jobs), t.Failed[0].Err)
	}
	return nil
}
