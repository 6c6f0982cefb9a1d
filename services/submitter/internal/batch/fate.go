package batch

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/services/submitter/internal/kcidb"
)

// maxResubmit bounds the pause between attempts of a lone failing job: each one
// may fail the files of others that the ingester takes up with it.
const maxResubmit = time.Hour

// see follows a batch to its end: accepted, found guilty, or handed to two
// halves. f is what it has behind it as part of a larger one.
func (l *Lane) see(ctx context.Context, b []*entry, id string, f fate) {
	for {
		st, err := l.follow.wait(ctx, id)
		if err != nil {
			return
		}
		log := zerolog.Ctx(ctx).With().Str("submission", id).Int("jobs", len(b)).Logger()
		switch st {
		case kcidb.Processed:
			l.witness()
			settle(b, nil)
			return
		case kcidb.NotFound:
			log.Warn().Msg("KCIDB does not know the submission any more; sending it again")
		default:
			f.fail(len(b) == 1)
			log.Warn().Int("failures", f.failures).Msg("KCIDB failed a submission; it may be a neighbour's fault")
			if len(b) > 1 && f.failures > 1 {
				l.halve(ctx, b, fate{failures: 1, first: f.first})
				return
			}
			if f.convicted(l.settings.ConvictAfter) {
				settle(b, &Guilty{Node: b[0].Node, Submission: id})
				return
			}
		}
		p := backoff.Policy{Min: l.settings.Resubmit, Max: max(maxResubmit, l.settings.Resubmit)}
		if pause(ctx, p.Delay(max(f.alone, 1))) != nil {
			return
		}
		if b = live(b); len(b) == 0 {
			return
		}
		f.witnessed = f.witness(l)
		if id, err = l.insist(ctx, b); err != nil {
			l.refused(ctx, b, err)
			return
		}
	}
}

// fate is what is known of a batch that fails.
type fate struct {
	// failures in all, and as a job alone.
	failures, alone int
	// first failure, of this batch or of the larger one that it was part of.
	first time.Time
	// witnessed: the last attempt was made after KCIDB had processed something
	// since the first failure.
	witnessed bool
}

func (f *fate) fail(alone bool) {
	f.failures++
	if alone {
		f.alone++
	}
	if f.first.IsZero() {
		f.first = time.Now()
	}
}

// convicted needs two failures alone, and a witness or a long time.
func (f *fate) convicted(after time.Duration) bool {
	return f.alone > 1 && (f.witnessed || time.Since(f.first) >= after)
}

// witness tells whether KCIDB has processed something since the first failure:
// then it works, and what fails now fails by itself.
func (f *fate) witness(l *Lane) bool { return !f.first.IsZero() && l.witnessed(f.first) }

// halve sends both halves on their own.
func (l *Lane) halve(ctx context.Context, b []*entry, f fate) {
	for _, half := range [][]*entry{b[:len(b)/2], b[len(b)/2:]} {
		l.batches.Go(func() {
			f, half := f, live(half)
			if len(half) == 0 {
				return
			}
			f.witnessed = f.witness(l)
			id, err := l.insist(ctx, half)
			if err != nil {
				l.refused(ctx, half, err)
				return
			}
			l.see(ctx, half, id, f)
		})
	}
}

// refused handles an answer that condemns the document itself (HTTP 400, 413),
// or the end of ctx.
func (l *Lane) refused(ctx context.Context, b []*entry, err error) {
	switch {
	case !refused(err):
	case len(b) == 1:
		settle(b, &Guilty{Node: b[0].Node, Err: err})
	default:
		zerolog.Ctx(ctx).Warn().Err(err).Int("jobs", len(b)).Msg("KCIDB refuses a submission; halving it")
		l.halve(ctx, b, fate{})
	}
}

// insist submits until KCIDB takes or refuses the batch, or ctx ends.
func (l *Lane) insist(ctx context.Context, b []*entry) (string, error) {
	for n := 1; ; n++ {
		id, err := l.submit(ctx, b)
		if err == nil || refused(err) || ctx.Err() != nil {
			return id, err
		}
		if err := pause(ctx, delay(n, err)); err != nil {
			return "", err
		}
	}
}

func settle(b []*entry, err error) {
	for _, e := range b {
		e.tell(event{done: true, err: err})
	}
}
