// Package broker embeds nats-server with JetStream, for one-process labs and
// the tools.
package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/bus"
)

// startTimeout is how long a server may take until it serves: recovering a
// large store reads all of it.
const startTimeout = 2 * time.Minute

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
type Server struct {
	ns     *server.Server
	unlock func()
	unhook func() bool
	stop   sync.Once
}

// Start runs a server until ctx ends or Stop is called, and returns when it
// serves. Services need a broker while they stop: give it a context that ends
// after theirs. Dir is created if need be and locked: a second process on the same
// directory is refused, as two servers would destroy each other's streams.
func Start(ctx context.Context, o Options) (*Server, error) {
	opts, err := options(o)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("broker directory: %w", err)
	}
	unlock, err := lock(filepath.Join(o.Dir, "LOCK"))
	if err != nil {
		return nil, fmt.Errorf("broker directory %s: %w", o.Dir, err)
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		unlock()
		return nil, fmt.Errorf("embedded NATS server: %w", err)
	}
	log := newLogger(zerolog.Ctx(ctx))
	ns.SetLoggerV2(log, false, false, false)
	s := &Server{ns: ns, unlock: unlock}
	ns.Start()
	if err := s.ready(ctx, o, log.fatal); err != nil {
		s.Stop()
		return nil, err
	}
	s.unhook = context.AfterFunc(ctx, s.shutdown)
	return s, nil
}

func options(o Options) (*server.Options, error) {
	if o.Dir == "" {
		return nil, errors.New("broker: no directory given")
	}
	opts := &server.Options{
		ServerName: "pullab", DontListen: true, NoSigs: true,
		JetStream: true, StoreDir: o.Dir, SyncAlways: o.SyncAlways,
		DisableJetStreamBanner: true,
	}
	if o.Listen == "" {
		return opts, nil
	}
	host, port, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return nil, fmt.Errorf("broker address %q is not host:port: %w", o.Listen, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("broker address %q: the port is not a number: %w", o.Listen, err)
	}
	opts.DontListen, opts.Host, opts.Port = false, host, int(n)
	if n == 0 {
		opts.Port = server.RANDOM_PORT
	}
	return opts, nil
}

// ready waits until the server serves, has failed, or ctx ends.
func (s *Server) ready(ctx context.Context, o Options, fatal <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for !s.ns.ReadyForConnections(100 * time.Millisecond) {
		select {
		case err := <-fatal:
			return fmt.Errorf("embedded NATS server in %s cannot serve; if the address %q is in use, choose another: %w", o.Dir, o.Listen, err)
		case <-ctx.Done():
			return fmt.Errorf("embedded NATS server in %s is not ready: %w", o.Dir, context.Cause(ctx))
		default:
		}
	}
	if !s.ns.JetStreamEnabled() {
		return fmt.Errorf("embedded NATS server has no JetStream: is %s writable and the disk not full?", o.Dir)
	}
	return nil
}

// Connect gives an in-process connection.
func (s *Server) Connect(ctx context.Context, name string) (*bus.Bus, error) {
	return bus.Connect(ctx, bus.Options{Name: name, Server: s})
}

// InProcessConn is one end of a pipe to the server: what bus.Options.Server
// wants.
func (s *Server) InProcessConn() (net.Conn, error) { return s.ns.InProcessConn() }

// URL to connect to from outside; empty when it does not listen.
func (s *Server) URL() string {
	a, ok := s.ns.Addr().(*net.TCPAddr)
	if !ok || a == nil {
		return ""
	}
	return "nats://" + a.String()
}

// Stop shuts down, waits, and gives the directory free. It may be called twice.
func (s *Server) Stop() {
	if s.unhook != nil {
		s.unhook()
	}
	s.shutdown()
}

func (s *Server) shutdown() {
	s.stop.Do(func() {
		s.ns.Shutdown()
		s.ns.WaitForShutdown()
		s.unlock()
	})
}
