package batch

import (
	"context"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/services/submitter/internal/kcidb"
)

const (
	// maxPoll bounds the pause between two looks at one submission.
	maxPoll = time.Minute
	// looks at the same time.
	looks = 8
	// late is when a submission that KCIDB neither takes up nor refuses is worth
	// a line in the log, and again after as long.
	late = time.Hour
)

// follower asks for the status of every outstanding submission, once for all
// who wait for it.
type follower struct {
	client   Client
	poll     backoff.Policy
	notFound time.Duration
	health   *health

	mu   sync.Mutex
	subs map[string]*submission
	wake chan struct{}
}

type submission struct {
	id      string
	waiters int
	looks   int
	due     time.Time
	// since and warned are when following began and when its length was last
	// logged; missing is when KCIDB first did not know it.
	since, warned, missing time.Time
	// state is set before done is closed.
	state kcidb.State
	done  chan struct{}
}

func newFollower(c Client, s Settings) *follower {
	return &follower{
		client: c, health: &health{what: "KCIDB tells the status of submissions"}, notFound: s.NotFound,
		poll: backoff.Policy{Min: s.Poll, Max: max(maxPoll, s.Poll)},
		subs: map[string]*submission{}, wake: make(chan struct{}, 1),
	}
}

// wait returns Processed, Failed, or NotFound when KCIDB has not known the id
// for long enough; an error only when ctx ends.
func (f *follower) wait(ctx context.Context, id string) (kcidb.State, error) {
	f.mu.Lock()
	s := f.subs[id]
	if s == nil {
		now := time.Now()
		s = &submission{id: id, since: now, warned: now, due: now.Add(f.poll.Delay(1)), done: make(chan struct{})}
		f.subs[id] = s
	}
	s.waiters++
	f.mu.Unlock()
	f.rouse()
	defer f.leave(s)
	select {
	case <-s.done:
		return s.state, nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

func (f *follower) rouse() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *follower) leave(s *submission) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.waiters--; s.waiters == 0 && f.subs[s.id] == s {
		delete(f.subs, s.id)
	}
}

// run looks at what is due until ctx ends.
func (f *follower) run(ctx context.Context) {
	for {
		due, wait := f.due()
		if len(due) > 0 {
			f.lookAll(ctx, due)
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-f.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

func (f *follower) due() (due []*submission, wait time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	wait = time.Hour
	for _, s := range f.subs {
		if d := s.due.Sub(now); d > 0 {
			wait = min(wait, d)
			continue
		}
		due = append(due, s)
	}
	return due, wait
}

func (f *follower) lookAll(ctx context.Context, due []*submission) {
	var wg sync.WaitGroup
	defer wg.Wait()
	free := make(chan struct{}, looks)
	for _, s := range due {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			defer func() { <-free }()
			st, err := f.client.Status(ctx, s.id)
			f.saw(ctx, s, st, err)
		})
	}
}

// saw takes one answer in.
func (f *follower) saw(ctx context.Context, s *submission, st kcidb.State, err error) {
	switch {
	case err == nil:
		f.health.worked(ctx)
	case ctx.Err() == nil:
		f.health.failed(ctx, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	s.looks++
	s.due = now.Add(f.poll.Delay(s.looks + 1))
	if err != nil {
		s.due = now.Add(max(f.poll.Delay(s.looks+1), delay(s.looks, err)))
		return
	}
	if now.Sub(s.warned) >= late {
		s.warned = now
		zerolog.Ctx(ctx).Warn().Str("submission", s.id).Str("status", string(st)).Dur("age", now.Sub(s.since)).Msg("KCIDB has not finished a submission; waiting on")
	}
	switch {
	case st == kcidb.NotFound && s.missing.IsZero():
		s.missing = now
	case st != kcidb.NotFound:
		s.missing = time.Time{}
	}
	if st == kcidb.Processed || st == kcidb.Failed || st == kcidb.NotFound && now.Sub(s.missing) >= f.notFound {
		s.state = st
		if f.subs[s.id] == s {
			delete(f.subs, s.id)
		}
		close(s.done)
	}
}
