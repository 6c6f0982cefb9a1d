package queue

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/pullab/pullab/pkg/bus"
)

// Delivery is one message as a handler sees it. The inbox keeps its lease for
// as long as the handler runs.
type Delivery struct {
	Subject string
	Type    string
	Node    string
	Message proto.Message
	// Deliveries counts this one; it grows with crashes and retries alike.
	Deliveries uint64
	// Published is when the message went on the stream.
	Published time.Time
}

// Handler does a service's verb on one message. nil acknowledges: everything
// downstream is published by then. Errors say what happens next: Drop, Retry,
// RetryAfter, Stop; any other error is Retry. When ctx ends with ErrLeaseLost
// another process may already have the message: stop without effects. When ctx
// ends with ErrStopping the service is shutting down: return promptly, the
// message goes back untouched.
type Handler func(ctx context.Context, d *Delivery) error

// Causes of a handler's ended context.
var (
	ErrLeaseLost = errors.New("lease lost")
	ErrStopping  = errors.New("stopping")
)

// Drop wraps err: give up; the message is copied to PULLAB_DEAD with the
// error's text as its reason, then acknowledged.
func Drop(err error) error { return err }

// Retry wraps err: deliver again after the inbox's backoff.
func Retry(err error) error { return err }

// RetryAfter wraps err: deliver again after d.
func RetryAfter(d time.Duration, err error) error { return err }

// Stop wraps err: hand the message back and end Inbox.Run with err; nothing
// this process does can help.
func Stop(err error) error { return err }

// Slots is what must be free before a message is pulled. A message is never
// held while it waits for a machine.
type Slots interface {
	// Acquire blocks until a slot is free; release gives it back.
	Acquire(ctx context.Context) (release func(), err error)
}

// FixedSlots allows n at a time.
func FixedSlots(n int) Slots { return nil }

// InboxConfig of one consumer.
type InboxConfig struct {
	// Service names the owner in dead letters and logs.
	Service  string
	Stream   string
	Consumer string
	// MaxDeliveries before a message is taken for poison and goes to
	// PULLAB_DEAD unhandled; 0 is never.
	MaxDeliveries uint64
	// Backoff between redeliveries of a failing message, from, to. Zero values
	// are 1 s and 5 min.
	BackoffMin, BackoffMax time.Duration
}

// Inbox takes messages one by one, each when a slot is free for it.
type Inbox struct{}

// NewInbox opens a consumer that topology declared.
func NewInbox(b *bus.Bus, c InboxConfig) *Inbox { return &Inbox{} }

// Run handles messages until ctx ends; then handlers are given grace (their ctx
// ends with ErrStopping at once) and Run returns nil when all of them returned.
func (in *Inbox) Run(ctx context.Context, slots Slots, h Handler) error { return errors.ErrUnsupported }

// Drain handles what is on the queue now and returns when nothing is left or
// in flight: for --once.
func (in *Inbox) Drain(ctx context.Context, slots Slots, h Handler) error {
	return errors.ErrUnsupported
}

// Outbox publishes to one stream.
type Outbox struct{}

// NewOutbox for a stream.
func NewOutbox(b *bus.Bus, stream string) *Outbox { return &Outbox{} }

// Publish puts m on subject and returns when the broker has it durably. id is
// the idempotency key (Nats-Msg-Id). A message with this id, or one still
// queued on the same subject, counts as published: fresh is false then.
func (o *Outbox) Publish(ctx context.Context, subject, node, id string, m proto.Message) (fresh bool, err error) {
	return false, errors.ErrUnsupported
}

// Tell publishes without waiting for the broker, for progress: best effort, never
// fails the caller.
func (o *Outbox) Tell(ctx context.Context, subject, node string, m proto.Message) {}
