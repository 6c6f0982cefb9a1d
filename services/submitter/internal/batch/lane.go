package batch

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/services/submitter/internal/kcidb"
)

// Client is the part of kcidb.Client that is used.
type Client interface {
	Submit(ctx context.Context, doc []byte) (id string, err error)
	Status(ctx context.Context, id string) (kcidb.State, error)
}

// Settings of a lane.
type Settings struct {
	// A batch is sent when it has this many rows or bytes, or when its oldest
	// job has waited Age. One job's rows are never torn apart: a job above the
	// limits goes alone.
	Rows, Bytes int
	Age         time.Duration
	// Poll is the pause before the first look at a submission's status; it
	// doubles up to maxPoll.
	Poll time.Duration
	// Resubmit is the pause before a failed submission is sent again; it doubles
	// up to maxResubmit.
	Resubmit time.Duration
	// NotFound is for how long a submission may be unknown to KCIDB before its
	// rows are sent again.
	NotFound time.Duration
	// ConvictAfter is how long a lone job may fail without a witness.
	ConvictAfter time.Duration
}

// Job is the rows of one finished run, checked.
type Job struct {
	Node string
	Rows kcidb.Rows
}

// Guilty says that a job's own rows are refused. Sending them again is useless.
type Guilty struct {
	Node string
	// Submission that failed; empty when KCIDB refused the request itself.
	Submission string
	Err        error
}

func (g *Guilty) Error() string {
	if g.Submission == "" {
		return fmt.Sprintf("KCIDB refuses the rows of node %s, sent alone; our own check against the v5.3 schema finds nothing wrong with them: %v", g.Node, g.Err)
	}
	return fmt.Sprintf("KCIDB failed submission %s, which held only the rows of node %s, and says no reason; our own check against the v5.3 schema finds nothing wrong with them. Ask the KernelCI team about submission-%s.json", g.Submission, g.Node, g.Submission)
}

func (g *Guilty) Unwrap() error { return g.Err }

// entry is a job on its way, and its owner who listens.
type entry struct {
	Job
	ctx    context.Context //nolint:containedctx // the owner's, whose end takes the job out of every later batch
	since  time.Time
	events chan event
}

// event is told to the owner: a submission's id, or the end.
type event struct {
	submission string
	done       bool
	err        error
}

func (e *entry) tell(ev event) {
	select {
	case e.events <- ev:
	case <-e.ctx.Done():
	}
}

// Lane is the one way to KCIDB.
type Lane struct {
	client   Client
	settings Settings
	follow   *follower
	health   *health
	batches  sync.WaitGroup

	mu      sync.Mutex
	pending []*entry
	wake    chan struct{}
	// processed is when KCIDB was last seen to have processed something.
	processed time.Time
}

// New lane.
func New(c Client, s Settings) *Lane {
	return &Lane{
		client: c, settings: s, health: &health{what: "KCIDB takes results"},
		follow: newFollower(c, s), wake: make(chan struct{}, 1),
	}
}

// Deliver brings j to KCIDB and returns when it is accepted or guilty, or with
// ctx's cause. submission is what an earlier life of this job was sent with, or
// empty: then that is followed first, and nothing sent if it was accepted.
// receipt is called with every new submission's id; its error is logged and
// stops nothing, as a lost receipt only means sending again.
func (l *Lane) Deliver(ctx context.Context, j Job, submission string, receipt func(ctx context.Context, id string) error) error {
	if submission != "" {
		st, err := l.follow.wait(ctx, submission)
		if err != nil {
			return err
		}
		if st == kcidb.Processed {
			l.witness()
			return nil
		}
		zerolog.Ctx(ctx).Warn().Str("submission", submission).Str("status", string(st)).Msg("an earlier submission was not accepted; sending the rows again")
	}
	e := &entry{Job: j, ctx: ctx, since: time.Now(), events: make(chan event, 2)}
	l.add(e)
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case ev := <-e.events:
			if ev.done {
				return ev.err
			}
			if err := receipt(ctx, ev.submission); err != nil {
				zerolog.Ctx(ctx).Warn().Err(err).Str("submission", ev.submission).Msg("receipt not recorded; after a restart these rows are sent again, which does no harm")
			}
		}
	}
}

// Run sends and follows until ctx ends, and returns when nothing runs any more.
func (l *Lane) Run(ctx context.Context) {
	l.batches.Go(func() { l.follow.run(ctx) })
	defer l.batches.Wait()
	for fails := 0; ; {
		b := l.next(ctx)
		if b == nil {
			return
		}
		id, err := l.submit(ctx, b)
		switch {
		case err == nil:
			fails = 0
			l.batches.Go(func() { l.see(ctx, b, id, fate{}) })
		case ctx.Err() != nil:
			return
		case refused(err):
			fails = 0
			l.batches.Go(func() { l.refused(ctx, b, err) })
		default:
			// Dissolved, to the end of the queue: a batch that cannot get through
			// does not stand in the way of the others.
			l.add(b...)
			fails++
			if pause(ctx, delay(fails, err)) != nil {
				return
			}
		}
	}
}

func (l *Lane) add(es ...*entry) {
	l.mu.Lock()
	l.pending = append(l.pending, es...)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// next waits for a batch that is full or old enough; nil when ctx ends.
func (l *Lane) next(ctx context.Context) []*entry {
	for {
		b, wait := l.cut()
		if b != nil {
			return b
		}
		var aged <-chan time.Time
		t := time.NewTimer(wait)
		if wait >= 0 {
			aged = t.C
		}
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-l.wake:
		case <-aged:
		}
		t.Stop()
	}
}

// cut takes a batch off the queue when one is due; else wait says when the
// oldest job will be, negative when there is none.
func (l *Lane) cut() (b []*entry, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending = live(l.pending)
	if len(l.pending) == 0 {
		return nil, -1
	}
	oldest := l.pending[0].since
	rows, bytes, n, full := 0, 0, 0, false
	for _, e := range l.pending {
		if n > 0 && (rows+e.Rows.Count > l.settings.Rows || bytes+len(e.Rows.JSON) > l.settings.Bytes) {
			full = true
			break
		}
		rows, bytes, n = rows+e.Rows.Count, bytes+len(e.Rows.JSON), n+1
		if e.since.Before(oldest) {
			oldest = e.since
		}
	}
	full = full || rows >= l.settings.Rows || bytes >= l.settings.Bytes
	if wait = time.Until(oldest.Add(l.settings.Age)); !full && wait > 0 {
		return nil, wait
	}
	b = append(b, l.pending[:n]...)
	l.pending = append(l.pending[:0], l.pending[n:]...)
	return b, 0
}

// live leaves out jobs whose owner is gone: another process has them.
func live(es []*entry) []*entry {
	out := make([]*entry, 0, len(es))
	for _, e := range es {
		if e.ctx.Err() == nil {
			out = append(out, e)
		}
	}
	return out
}

// submit sends a batch once.
func (l *Lane) submit(ctx context.Context, b []*entry) (string, error) {
	rows := make([]kcidb.Rows, 0, len(b))
	count := 0
	for _, e := range b {
		rows = append(rows, e.Rows)
		count += e.Rows.Count
	}
	id, err := l.client.Submit(ctx, kcidb.Document(rows...))
	if err != nil {
		if ctx.Err() == nil && !refused(err) {
			l.health.failed(ctx, err)
		}
		return "", err
	}
	l.health.worked(ctx)
	zerolog.Ctx(ctx).Debug().Str("submission", id).Int("jobs", len(b)).Int("rows", count).Msg("submitted to KCIDB")
	for _, e := range b {
		e.tell(event{submission: id})
	}
	return id, nil
}

func (l *Lane) witness() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.processed = time.Now()
}

// witnessed tells whether KCIDB processed something after t.
func (l *Lane) witnessed(t time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.processed.After(t)
}
