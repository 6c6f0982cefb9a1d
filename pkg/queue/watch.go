package queue

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/wire"
)

// Watch calls see with every message that comes on subject from now on, in
// order, until ctx ends. It takes nothing from anybody: for screens, on streams
// that keep what was read. A message that cannot be decoded is passed over.
func Watch(ctx context.Context, b *bus.Bus, stream, subject string, see func(*Delivery)) error {
	c, err := b.JS.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{subject}, DeliverPolicy: jetstream.DeliverNewPolicy,
	})
	if err != nil {
		return fmt.Errorf("watching %s: %w", stream, err)
	}
	it, err := c.Messages()
	if err != nil {
		return fmt.Errorf("watching %s: %w", stream, err)
	}
	defer it.Stop()
	for {
		msg, err := it.Next(jetstream.NextContext(ctx))
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, jetstream.ErrNoHeartbeat):
			continue // the ordered consumer starts itself anew
		case err != nil:
			return fmt.Errorf("watching %s: %w", stream, err)
		}
		h := msg.Headers()
		if m, err := wire.Decode(h.Get(wire.HeaderType), msg.Data()); err == nil {
			see(&Delivery{Subject: msg.Subject(), Type: h.Get(wire.HeaderType), Node: h.Get(wire.HeaderNode), Message: m, Deliveries: 1})
		}
	}
}
