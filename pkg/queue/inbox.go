package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/backoff"
)

// lookAgain paces an inbox whose broker does not answer.
var lookAgain = backoff.Policy{Min: 100 * time.Millisecond, Max: 5 * time.Second}

// work is one call of Run or Drain.
type work struct {
	*Inbox
	consumer jetstream.Consumer
	// ackWait is read from the broker, so that what an operator set is followed.
	ackWait time.Duration
	pull    puller
	handler Handler
	// fetch ends when no more is to be pulled, with ErrStopping or a handler's
	// Stop as its cause.
	fetch    context.Context
	stop     context.CancelCauseFunc
	handlers sync.WaitGroup
	inFlight atomic.Int64
	// finished speaks when a handler has returned; only Drain listens.
	finished chan struct{}
}

func (in *Inbox) work(ctx context.Context, slots Slots, h Handler, drain bool) error {
	w := &work{
		Inbox: in, handler: h, finished: make(chan struct{}, 1),
		pull: newPuller(in.bus.Conn, in.bus.JS, in.config.Stream, in.config.Consumer),
	}
	w.fetch, w.stop = context.WithCancelCause(ctx)
	err := w.open()
	if err == nil {
		err = w.loop(slots, drain)
	}
	w.stop(ErrStopping)
	w.handlers.Wait()
	var stopped *StopError
	switch {
	case errors.As(context.Cause(w.fetch), &stopped):
		return stopped.Err
	case ctx.Err() != nil:
		return nil //nolint:nilerr // being told to stop is a clean end, whatever was cut short
	default:
		return err
	}
}

// open waits for the broker, not for the consumer: that is topology's to make.
func (w *work) open() error {
	for n := 1; ; n++ {
		c, err := w.bus.JS.Consumer(w.fetch, w.config.Stream, w.config.Consumer)
		if err == nil {
			w.consumer, w.ackWait = c, c.CachedInfo().Config.AckWait
			return nil
		}
		if err := w.gone(err); err != nil {
			return err
		}
		zerolog.Ctx(w.fetch).Debug().Err(err).Str("consumer", w.config.Consumer).Msg("consumer does not answer; trying again")
		if err := backoff.Sleep(w.fetch, lookAgain.Delay(n)); err != nil {
			return err
		}
	}
}

// gone turns errors of a lookup that no waiting ends into one for people.
func (w *work) gone(err error) error {
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, jetstream.ErrConsumerNotFound),
		errors.Is(err, jetstream.ErrConsumerDoesNotExist):
		return fmt.Errorf("consumer %s/%s is not on the broker; `pullab topology apply` makes it: %w", w.config.Stream, w.config.Consumer, err)
	case errors.Is(err, nats.ErrConnectionClosed):
		return fmt.Errorf("consumer %s/%s: %w", w.config.Stream, w.config.Consumer, err)
	default:
		return nil
	}
}

// loop reserves a slot, pulls one message, hands both to a handler, until fetch
// ends or, draining, nothing is left.
func (w *work) loop(slots Slots, drain bool) error {
	refused, empty := 0, 0
	for {
		release, err := slots.Acquire(w.fetch)
		if err != nil {
			if w.fetch.Err() != nil {
				return nil //nolint:nilerr // work says why fetch ended
			}
			return fmt.Errorf("waiting for a slot: %w", err)
		}
		pulled := time.Now()
		msg, err := w.next(slots, drain, empty)
		if msg != nil {
			refused, empty = 0, 0
			w.start(msg, pulled, release)
			continue
		}
		release()
		switch {
		case w.fetch.Err() != nil:
			return nil //nolint:nilerr // work says why fetch ended
		case errors.Is(err, errLookAgain):
			refused++
			err = w.look(err, refused)
		case err != nil:
			err = fmt.Errorf("inbox of %s/%s: %w", w.config.Stream, w.config.Consumer, err)
		case drain:
			empty, err = w.count(empty)
		}
		if err != nil || empty == emptyTwice {
			return err
		}
	}
}

// next pulls one message. Run waits for it, for as long as nobody else wants the
// slot. Drain takes what is there (nothing looked empty yet), gives what was
// published a moment ago the time to show up (it looked empty once), or waits
// for what is left (it looked neither).
func (w *work) next(slots Slots, drain bool, empty int) (*nats.Msg, error) {
	wait, finished := sharedPull, (<-chan struct{})(nil)
	switch {
	case drain && empty == 0:
		return w.pull.next(w.fetch, 0, nil, nil)
	case drain && empty == emptyOnce:
		return w.pull.next(w.fetch, turn, nil, nil)
	case drain:
		finished = w.finished
	}
	s, ok := slots.(interface {
		wanted() <-chan struct{}
		contended() bool
	})
	if !ok {
		return w.pull.next(w.fetch, wait, nil, finished)
	}
	if s.contended() {
		return w.pull.next(w.fetch, turn, nil, finished)
	}
	return w.pull.next(w.fetch, longPull, s.wanted(), finished)
}

// start gives msg and its slot to a handler. A message that came in the moment
// of stopping goes back.
func (w *work) start(msg *nats.Msg, pulled time.Time, release func()) {
	w.inFlight.Add(1)
	w.handlers.Go(func() {
		defer func() {
			w.inFlight.Add(-1)
			select {
			case w.finished <- struct{}{}:
			default:
			}
		}()
		defer release()
		if w.fetch.Err() != nil {
			w.handBack(msg)
			return
		}
		w.handle(msg, pulled)
	})
}

// look finds out whether a refused pull means that the consumer is gone, and
// waits a little otherwise.
func (w *work) look(refusal error, n int) error {
	_, err := w.consumer.Info(w.fetch)
	if err := w.gone(err); err != nil {
		return err
	}
	zerolog.Ctx(w.fetch).Debug().Err(refusal).Str("consumer", w.config.Consumer).Msg("nothing pulled; looking again")
	if err := backoff.Sleep(w.fetch, lookAgain.Delay(n)); err != nil {
		return nil //nolint:nilerr // the loop sees that fetch has ended
	}
	return nil
}

// What a draining loop knows of its queue.
const (
	emptyOnce   = 1
	emptyTwice  = 2
	notYetEmpty = -1
)

// count tells whether nothing is left, neither on the queue nor delivered and
// unacknowledged, wherever. The broker counts a message a moment after it has
// acknowledged its publisher, so one look is not enough.
func (w *work) count(empty int) (int, error) {
	if w.inFlight.Load() > 0 {
		return notYetEmpty, nil
	}
	info, err := w.consumer.Info(w.fetch)
	switch {
	case err != nil:
		return notYetEmpty, w.gone(err)
	case info.NumPending > 0 || info.NumAckPending > 0:
		return notYetEmpty, nil
	default:
		return max(empty, 0) + 1, nil
	}
}
