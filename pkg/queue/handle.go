package queue

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
	"google.golang.org/protobuf/types/known/timestamppb"

	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/pkg/wire"
)

// Answers to a delivered message (NATS ADR-13, acknowledgements).
var (
	ackDone     = []byte("+ACK")
	ackBack     = []byte("-NAK")
	ackProgress = []byte("+WPI")
)

const (
	// settleTimeout is how long the broker may take to hear a handler's verdict.
	settleTimeout = 10 * time.Second
	// answerTimeout of one attempt of it.
	answerTimeout = 3 * time.Second
	// maxLetter keeps a dead letter below PULLAB_DEAD's message size.
	maxLetter = 900 << 10
	// maxReason of a dead letter, in bytes.
	maxReason = 16 << 10
)

// handle runs the handler on msg under a lease and tells the broker the verdict.
func (w *work) handle(msg *nats.Msg, pulled time.Time) {
	// The handler outlives w.fetch: that only asks it to end.
	base := withTrace(context.WithoutCancel(w.fetch), msg.Header.Get(wire.HeaderTrace))
	ctx, cancel := context.WithCancelCause(base)
	defer cancel(nil)
	stopping := context.AfterFunc(w.fetch, func() { cancel(ErrStopping) })
	defer stopping()

	d, err := w.read(msg)
	l := newLease(base, w.bus.Conn, msg.Reply, w.ackWait, pulled, cancel)
	if err == nil {
		err = w.call(ctx, d)
	}
	until := l.finish()

	log := zerolog.Ctx(base).With().Str("node", d.Node).Str("subject", d.Subject).Uint64("deliveries", d.Deliveries).Logger()
	if errors.Is(context.Cause(ctx), ErrLeaseLost) || !time.Now().Before(until) {
		log.Warn().Err(err).Msg("lease lost; the message is left to its next reader")
		return
	}
	sctx, done := context.WithTimeout(log.WithContext(base), min(settleTimeout, time.Until(until)))
	defer done()
	w.settle(sctx, msg, d, err)
}

// read decodes msg. What cannot be handled, ever or by this build, is a Drop.
// The Delivery is never nil.
func (w *work) read(msg *nats.Msg) (*Delivery, error) {
	d := &Delivery{Subject: msg.Subject, Type: msg.Header.Get(wire.HeaderType), Node: msg.Header.Get(wire.HeaderNode)}
	if d.Node == "" {
		d.Node = msg.Subject[strings.LastIndexByte(msg.Subject, '.')+1:]
	}
	meta, err := msg.Metadata()
	if err != nil {
		return d, Retry(fmt.Errorf("message without delivery metadata: %w", err))
	}
	d.Deliveries, d.Published = meta.NumDelivered, meta.Timestamp
	if limit := w.config.MaxDeliveries; limit > 0 && d.Deliveries > limit {
		return d, Drop(fmt.Errorf("delivered %d times and never finished (the limit is %d): a handler crashes on it or cannot end; see the %s logs for node %s",
			d.Deliveries-1, limit, w.config.Service, d.Node))
	}
	d.Message, err = wire.Decode(d.Type, msg.Data)
	switch {
	case errors.Is(err, wire.ErrUnknownType):
		return d, Drop(fmt.Errorf("%w; then publish this letter's payload on %s again", err, msg.Subject))
	case err != nil:
		return d, Drop(err)
	}
	return d, nil
}

// call is the handler, whose panic is an error like any other.
func (w *work) call(ctx context.Context, d *Delivery) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicked(v)
		}
	}()
	return w.handler(ctx, d)
}

// settle does what the verdict says.
func (w *work) settle(ctx context.Context, msg *nats.Msg, d *Delivery, err error) {
	log := zerolog.Ctx(ctx)
	v := verdict(err)
	if w.fetch.Err() != nil && interrupted(v) {
		log.Info().Err(err).Msg("interrupted; the message goes back")
		w.answer(ctx, msg, back(0))
		return
	}
	switch v := v.(type) { //nolint:errorlint // verdict gives one of the four types itself, never wrapped
	case nil:
		w.answer(ctx, msg, ackDone)
	case *DropError:
		w.drop(ctx, msg, d, v)
	case *StopError:
		log.Error().Err(err).Msg("stopping; the message goes back")
		w.stop(v)
		w.answer(ctx, msg, back(0))
	case *RetryError:
		delay := v.After
		if delay < 0 {
			delay = w.backoff.Delay(int(min(d.Deliveries, math.MaxInt32)))
		}
		e := log.Warn()
		var p *PanicError
		if errors.As(err, &p) {
			e = log.Error().Bytes("stack", p.Stack)
		}
		e.Err(err).Dur("retry_in", delay).Msg("failed; trying again later")
		w.answer(ctx, msg, back(delay))
	}
}

// interrupted tells the verdict of a handler that was told to stop from one
// that it would have come to anyway.
func interrupted(v error) bool {
	switch v := v.(type) { //nolint:errorlint // as above: v comes from verdict
	case *RetryError:
		return v.After < 0 || errors.Is(v, context.Canceled) || errors.Is(v, ErrStopping)
	case *DropError:
		return errors.Is(v, context.Canceled) || errors.Is(v, ErrStopping)
	default:
		return false
	}
}

// drop puts a copy on PULLAB_DEAD, then acknowledges. Without the copy the
// message comes again.
func (w *work) drop(ctx context.Context, msg *nats.Msg, d *Delivery, v *DropError) {
	log := zerolog.Ctx(ctx)
	log.Error().Err(v).Msg("given up; moving to " + topology.Dead)
	if err := w.bury(ctx, msg, d, v); err != nil {
		delay := w.backoff.Delay(1)
		log.Error().Err(err).Dur("retry_in", delay).Msg("no copy in " + topology.Dead + "; the message stays")
		w.answer(ctx, msg, back(delay))
		return
	}
	w.answer(ctx, msg, ackDone)
}

// bury publishes the dead letter. Its id is the message's place in the stream
// and the moment it got there: burying twice makes one letter.
func (w *work) bury(ctx context.Context, msg *nats.Msg, d *Delivery, v *DropError) error {
	letter := deadLetter(w.config.Service, msg, d, v)
	out, err := message(ctx, topology.DeadSubject(w.config.Service, d.Node), d.Node, letter)
	if err != nil {
		return err
	}
	id := msg.Reply
	if meta, err := msg.Metadata(); err == nil {
		id = fmt.Sprintf("%s/%s/%d/%d", meta.Stream, meta.Consumer, meta.Sequence.Stream, meta.Timestamp.UnixNano())
	}
	_, err = publish(ctx, w.bus.JS, topology.Dead, id, out)
	return err
}

func deadLetter(service string, msg *nats.Msg, d *Delivery, v *DropError) *pullabv1.DeadLetter {
	letter := &pullabv1.DeadLetter{
		Service: service, NodeId: utf8ed(d.Node), Subject: msg.Subject, Type: utf8ed(d.Type),
		Headers: map[string]string{}, Reason: reason(v), Deliveries: d.Deliveries, At: timestamppb.Now(),
	}
	for k, vs := range msg.Header {
		letter.Headers[utf8ed(k)] = utf8ed(strings.Join(vs, ", "))
	}
	if utf8.Valid(msg.Data) {
		letter.Payload = string(msg.Data)
	} else {
		letter.PayloadRaw = msg.Data
	}
	if b, err := wire.Encode(letter); err != nil || len(b) > maxLetter {
		// Quoting a payload of control characters makes it up to six times as
		// large, base64 a third larger.
		letter.Payload, letter.PayloadRaw = "", msg.Data
	}
	return letter
}

// reason is v's text, within bounds: it may quote the message.
func reason(v *DropError) string {
	s := utf8ed(v.Error())
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "") + " …"
	}
	return s
}

func utf8ed(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// back is the answer that hands a message back, to be delivered after d.
func back(d time.Duration) []byte {
	if d <= 0 {
		return ackBack
	}
	return fmt.Appendf(nil, `%s {"delay": %d}`, ackBack, d.Nanoseconds())
}

// answer tells the broker and waits until it has heard. If it never does, the
// message comes again when its lease ends.
func (w *work) answer(ctx context.Context, msg *nats.Msg, what []byte) {
	for n := 1; ; n++ {
		actx, cancel := context.WithTimeout(ctx, answerTimeout)
		_, err := w.bus.Conn.RequestWithContext(actx, msg.Reply, what)
		cancel()
		if err == nil {
			return
		}
		if backoff.Sleep(ctx, lookAgain.Delay(n)) != nil {
			zerolog.Ctx(ctx).Warn().Err(err).Msg("the broker did not hear; the message will come again")
			return
		}
	}
}

// handBack returns a message that no handler saw.
func (w *work) handBack(msg *nats.Msg) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.fetch), settleTimeout)
	defer cancel()
	w.answer(ctx, msg, ackBack)
}
