package queue

import (
	"context"
	"sync/atomic"
)

// Slots is what must be free before a message is pulled. A message is never
// held while it waits for a machine.
//
// Several inboxes may share one Slots. An inbox that finds nothing to pull
// gives its slot back and asks again at least once a second, so that the others
// get their turn; with FixedSlots it does so as soon as another one waits.
type Slots interface {
	// Acquire blocks until a slot is free; release gives it back.
	Acquire(ctx context.Context) (release func(), err error)
}

// FixedSlots allows n at a time, at least one.
func FixedSlots(n int) Slots {
	return &fixedSlots{taken: make(chan struct{}, max(n, 1)), calls: make(chan struct{}, 1)}
}

type fixedSlots struct {
	// taken has a token per slot in use; senders wait in order of arrival.
	taken   chan struct{}
	waiting atomic.Int32
	// calls wakes one inbox that holds a slot without a message.
	calls chan struct{}
}

func (s *fixedSlots) Acquire(ctx context.Context) (func(), error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	select {
	case s.taken <- struct{}{}:
		return s.release, nil
	default:
	}
	s.waiting.Add(1)
	defer s.waiting.Add(-1)
	select {
	case s.calls <- struct{}{}:
	default:
	}
	select {
	case s.taken <- struct{}{}:
		return s.release, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (s *fixedSlots) release() { <-s.taken }

// wanted tells an inbox with an idle slot that another waits for one.
func (s *fixedSlots) wanted() <-chan struct{} { return s.calls }

func (s *fixedSlots) contended() bool { return s.waiting.Load() > 0 }
