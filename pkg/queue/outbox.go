package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"google.golang.org/protobuf/proto"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/wire"
)

const (
	// publishTimeout of one attempt: longer than a durable write takes on a slow
	// disk, shorter than a handler's patience.
	publishTimeout = 5 * time.Second
	// publishWarn is the attempt at which an operator should hear of it.
	publishWarn = 4

	// codeStoreFailed is nats-server's JSStreamStoreFailedF: the stream refused
	// the message; only its text says by which limit.
	codeStoreFailed jetstream.ErrorCode = 10077
	// codeWrongStream is JSStreamNotMatchErr: the subject belongs to another
	// stream than the one expected.
	codeWrongStream jetstream.ErrorCode = 10060
)

var publishRetry = backoff.Policy{Min: 100 * time.Millisecond, Max: 5 * time.Second}

// ErrTooLarge is the error of a message over wire.MaxPayload.
var ErrTooLarge = errors.New("message too large")

// Outbox publishes to one stream.
type Outbox struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	stream string
}

// NewOutbox for a stream.
func NewOutbox(b *bus.Bus, stream string) *Outbox {
	return &Outbox{nc: b.Conn, js: b.JS, stream: stream}
}

// Publish puts m on subject and returns when the broker has it durably. id is
// the idempotency key (Nats-Msg-Id). A message with this id, or one still
// queued on the same subject, counts as published: fresh is false then. While
// the broker does not answer or has no room, Publish tries on until ctx ends.
func (o *Outbox) Publish(ctx context.Context, subject, node, id string, m proto.Message) (fresh bool, err error) {
	msg, err := message(ctx, subject, node, m)
	if err != nil {
		return false, err
	}
	if len(msg.Data) > wire.MaxPayload {
		return false, fmt.Errorf("%w: %s for node %s has %d bytes, the bus takes %d; put its bulk in the object store",
			ErrTooLarge, wire.TypeOf(m), node, len(msg.Data), wire.MaxPayload)
	}
	return publish(ctx, o.js, o.stream, id, msg)
}

// Tell publishes without waiting for the broker, for progress: best effort, never
// fails the caller.
func (o *Outbox) Tell(ctx context.Context, subject, node string, m proto.Message) {
	msg, err := message(ctx, subject, node, m)
	if err == nil && len(msg.Data) > wire.MaxPayload {
		err = fmt.Errorf("%w: %d bytes", ErrTooLarge, len(msg.Data))
	}
	if err == nil {
		err = o.nc.PublishMsg(msg)
	}
	if err != nil {
		zerolog.Ctx(ctx).Debug().Err(err).Str("subject", subject).Msg("not told")
	}
}

func message(ctx context.Context, subject, node string, m proto.Message) (*nats.Msg, error) {
	data, err := wire.Encode(m)
	if err != nil {
		return nil, err
	}
	return &nats.Msg{Subject: subject, Data: data, Header: nats.Header{
		wire.HeaderType:  {wire.TypeOf(m)},
		wire.HeaderNode:  {node},
		wire.HeaderTrace: {nextTrace(ctx)},
	}}, nil
}

// publish sends msg until the stream has it.
func publish(ctx context.Context, js jetstream.JetStream, stream, id string, msg *nats.Msg) (fresh bool, err error) {
	for n := 1; ; n++ {
		fresh, err := attempt(ctx, js, stream, id, msg)
		if err == nil {
			return fresh, nil
		}
		err = fmt.Errorf("publishing on %s: %w", msg.Subject, err)
		if hopeless(err) {
			return false, err
		}
		if n == publishWarn {
			zerolog.Ctx(ctx).Warn().Err(err).Msg("the broker does not take a message; trying on")
		}
		if stop := backoff.Sleep(ctx, publishRetry.Delay(n)); stop != nil {
			return false, fmt.Errorf("%w, until: %w", err, stop)
		}
	}
}

// attempt publishes once. An error that is not hopeless is worth another.
func attempt(ctx context.Context, js jetstream.JetStream, stream, id string, msg *nats.Msg) (fresh bool, err error) {
	if js.Conn().IsReconnecting() {
		// Not left to the client's buffer: what is sent from there later would
		// make the next attempt look like a duplicate.
		return false, nats.ErrDisconnected
	}
	actx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	ack, err := js.PublishMsg(actx, msg,
		jetstream.WithMsgID(id), jetstream.WithExpectStream(stream), jetstream.WithRetryAttempts(0))
	if err == nil {
		return !ack.Duplicate, nil
	}
	var api *jetstream.APIError
	switch {
	case errors.As(err, &api) && api.ErrorCode == codeStoreFailed:
		// The subject's one place is taken, or the stream is full: the code is
		// the same, so ask which.
		queued, lookErr := holds(actx, js, stream, msg.Subject)
		if lookErr != nil {
			return false, errors.Join(err, lookErr)
		}
		if queued {
			return false, nil
		}
		return false, fmt.Errorf("stream %s has no room; are its readers running? %w", stream, err)
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		// Nobody listens on the subject: JetStream is down, or no stream has it.
		if _, lookErr := js.StreamNameBySubject(actx, msg.Subject); errors.Is(lookErr, jetstream.ErrStreamNotFound) {
			return false, fmt.Errorf("no stream takes it; `pullab topology plan` says what is missing: %w", lookErr)
		}
	}
	return false, err
}

// holds tells whether a message is on subject.
func holds(ctx context.Context, js jetstream.JetStream, stream, subject string) (bool, error) {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return false, err
	}
	_, err = s.GetLastMsgForSubject(ctx, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, nil
	}
	return err == nil, err
}

// hopeless errors are the same at the next attempt.
func hopeless(err error) bool {
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == codeWrongStream {
		return true
	}
	return errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrMaxPayload) ||
		errors.Is(err, nats.ErrBadSubject) || errors.Is(err, jetstream.ErrStreamNotFound) ||
		errors.Is(err, jetstream.ErrStreamMessageExceedsMaximum)
}
