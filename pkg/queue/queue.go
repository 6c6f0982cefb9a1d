package queue

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/pullab/pullab/pkg/backoff"
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

// InboxConfig of one consumer.
type InboxConfig struct {
	// Service names the owner in dead letters and logs.
	Service  string
	Stream   string
	Consumer string
	// MaxDeliveries before a message is taken for poison and goes to
	// PULLAB_DEAD unhandled; 0 is never. Every delivery counts, also those that
	// a shutdown cut short: set it far above the restarts that a message may
	// live through.
	MaxDeliveries uint64
	// Backoff between redeliveries of a failing message, from, to. Zero values
	// are 1 s and 5 min. It doubles with each delivery and is jittered over its
	// upper half.
	BackoffMin, BackoffMax time.Duration
}

// Inbox takes messages one by one, each when a slot is free for it.
type Inbox struct {
	bus     *bus.Bus
	config  InboxConfig
	backoff backoff.Policy
}

// NewInbox opens a consumer that topology declared.
func NewInbox(b *bus.Bus, c InboxConfig) *Inbox {
	p := backoff.Policy{Min: c.BackoffMin, Max: c.BackoffMax}
	if p.Min <= 0 {
		p.Min = time.Second
	}
	if p.Max <= 0 {
		p.Max = 5 * time.Minute
	}
	p.Max = max(p.Min, p.Max)
	return &Inbox{bus: b, config: c, backoff: p}
}

// Run handles messages until ctx ends; then handlers are given grace (their ctx
// ends with ErrStopping at once) and Run returns nil when all of them returned.
func (in *Inbox) Run(ctx context.Context, slots Slots, h Handler) error {
	return in.work(ctx, slots, h, false)
}

// Drain handles what is on the queue now and returns when nothing is left or
// in flight: for --once. A message that waits for a retry is left, and so is
// one that another process holds: Drain waits for them. End ctx to stop
// earlier; Drain then returns nil, as Run does.
func (in *Inbox) Drain(ctx context.Context, slots Slots, h Handler) error {
	return in.work(ctx, slots, h, true)
}
