// Package bus is pullab's connection to NATS JetStream.
package bus

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Bus is one connection and its JetStream context.
type Bus struct {
	Conn *nats.Conn
	JS   jetstream.JetStream
}

// Options of a connection.
type Options struct {
	// URL of the server or servers, comma separated.
	URL string
	// Name shown in the server's connection list.
	Name string
	// CredsFile is a .creds file; empty without one.
	CredsFile string
}

// Connect dials until it works or ctx ends; after that it reconnects for ever.
func Connect(ctx context.Context, o Options) (*Bus, error) { return nil, errors.ErrUnsupported }

// Close flushes and closes the connection.
func (b *Bus) Close() { b.Conn.Close() }
