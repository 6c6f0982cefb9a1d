package queue

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
)

// renewTimeout of one request, and renewRetry the pause after a failed one.
const (
	renewTimeout = 5 * time.Second
	renewRetry   = time.Second
)

// lease keeps one message ours while its handler runs. It costs a timer; the
// first renewal is due a third of AckWait after the message came.
type lease struct {
	nc    *nats.Conn
	reply string
	// renewal is the interval, trust how long a confirmed start holds.
	renewal, trust time.Duration
	// lost ends the handler's context with ErrLeaseLost.
	lost context.CancelCauseFunc
	// ctx ends with the lease: no renewal outlives it.
	ctx context.Context
	end context.CancelFunc

	mu      sync.Mutex
	start   time.Time // of the last confirmed renewal
	ended   bool
	timer   *time.Timer
	running sync.WaitGroup
}

// newLease starts at pulled, when the message was asked for: it cannot have been
// handed out earlier.
func newLease(ctx context.Context, nc *nats.Conn, reply string, ackWait time.Duration, pulled time.Time, lost context.CancelCauseFunc) *lease {
	l := &lease{nc: nc, reply: reply, renewal: ackWait / 3, trust: ackWait - ackWait/12, lost: lost, start: pulled}
	l.ctx, l.end = context.WithCancel(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timer = time.AfterFunc(l.renewal, l.renew)
	return l
}

func (l *lease) renew() {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return
	}
	l.running.Add(1)
	until := l.start.Add(l.trust)
	l.mu.Unlock()
	defer l.running.Done()

	begun := time.Now()
	err := l.request(min(renewTimeout, until.Sub(begun)))

	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	switch {
	case l.ended:
	case err == nil:
		l.start = begun
		l.timer.Reset(max(0, l.renewal-now.Sub(begun)))
	case !now.Before(until):
		l.lost(ErrLeaseLost)
	default:
		zerolog.Ctx(l.ctx).Debug().Err(err).Time("trusted_until", until).Msg("lease not renewed; trying again")
		l.timer.Reset(min(renewRetry, until.Sub(now)))
	}
}

func (l *lease) request(d time.Duration) error {
	ctx, cancel := context.WithTimeout(l.ctx, d)
	defer cancel()
	_, err := l.nc.RequestWithContext(ctx, l.reply, ackProgress)
	return err
}

// finish stops renewing and says until when the message may still be taken for
// ours.
func (l *lease) finish() (until time.Time) {
	l.mu.Lock()
	l.ended = true
	l.timer.Stop()
	until = l.start.Add(l.trust)
	l.mu.Unlock()
	l.end()
	l.running.Wait()
	return until
}
