package offers

import (
	"context"
	"sync"

	"github.com/rs/zerolog"
)

// Failure of one job.
type Failure struct {
	Job Job
	Err error
}

// Tally of a batch.
type Tally struct {
	// Made offers, first and repeated; jobs Passed by for a reason that is new;
	// jobs Known from before.
	Made, Passed, Known int
	Failed              []Failure
}

// HandleAll handles jobs, workers at a time: each is up to four round trips to
// the broker, one after another. It returns when all are done, or have failed
// because ctx ended.
func (d *Desk) HandleAll(ctx context.Context, workers int, jobs []Job) Tally {
	var t Tally
	var wg sync.WaitGroup
	var mu sync.Mutex
	work := make(chan Job)
	for range min(workers, len(jobs)) {
		wg.Go(func() {
			for j := range work {
				r, err := d.Handle(ctx, j)
				mu.Lock()
				t.add(ctx, j, r, err)
				mu.Unlock()
			}
		})
	}
	for _, j := range jobs {
		work <- j
	}
	close(work)
	wg.Wait()
	return t
}

// add counts and logs one job's result.
func (t *Tally) add(ctx context.Context, j Job, r Result, err error) {
	if err != nil {
		t.Failed = append(t.Failed, Failure{j, err})
		return
	}
	log := zerolog.Ctx(ctx).With().Str("node", j.Node.ID).Str("name", j.Node.Name).Str("platform", j.Node.Data.Platform).Logger()
	switch r {
	case Made:
		t.Made++
		log.Info().Bool("by_sweep", j.Event == "").Msg("Job offered")
	case Repeated:
		t.Made++
		log.Info().Msg("Job offered again: it is still open and unclaimed long after its offer")
	case Passed:
		t.Passed++
		log.Info().Str("reason", string(j.Verdict.Reason)).Msgf("Job skipped: %s", j.Verdict.Detail)
	case Known:
		t.Known++
	}
}
