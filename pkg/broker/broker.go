// Package broker embeds nats-server with JetStream, for one-process labs and
// the tools.
package broker

import (
	"context"
	"errors"

	"github.com/pullab/pullab/pkg/bus"
)

// Options of the embedded server.
type Options struct {
	// Dir holds the streams.
	Dir string
	// Listen is host:port for the nats CLI; empty opens no port.
	Listen string
	// SyncAlways makes every write durable before it is acknowledged
	// (sync_interval: always).
	SyncAlways bool
}

// Server is a running broker.
type Server struct{}

// Start runs a server until ctx ends or Stop is called.
func Start(ctx context.Context, o Options) (*Server, error) { return nil, errors.ErrUnsupported }

// Connect gives an in-process connection.
func (s *Server) Connect(ctx context.Context, name string) (*bus.Bus, error) {
	return nil, errors.ErrUnsupported
}

// URL to connect to from outside; empty when it does not listen.
func (s *Server) URL() string { return "" }

// Stop shuts down and waits.
func (s *Server) Stop() {}
