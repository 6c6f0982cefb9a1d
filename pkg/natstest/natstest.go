// Package natstest runs a real nats-server with JetStream inside a
// testing/synctest bubble or beside an ordinary test.
//
// In a bubble all of it must be made inside: server, connection, everything.
// There may be no sockets, and of nats.go only the calls that take a context:
// those with a timeout share timers between bubbles.
package natstest

import (
	"context"
	"sync"
	"testing"

	"github.com/nats-io/nats-server/v2/server/ats"

	"github.com/pullab/pullab/pkg/broker"
	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/topology"
)

var register = sync.OnceFunc(ats.Register)

// Register must be called in TestMain, outside any bubble, by a package whose
// tests start servers in bubbles: the server's clock of access times is one
// goroutine per process and must not be born in a bubble, which it would
// outlive.
func Register() { register() }

// Start gives a connection to a new in-process server with memory storage and
// pullab's topology applied; both end with the test. It works inside a bubble
// when called inside it.
func Start(t testing.TB) *bus.Bus {
	t.Helper()
	_, b := StartServer(t)
	return b
}

// StartServer is Start for tests that need the server too: to stop it, or to
// connect a second process (Connect).
func StartServer(t testing.TB) (*broker.Server, *bus.Bus) {
	t.Helper()
	return start(t, broker.Options{Dir: t.TempDir()}, topology.Options{Replicas: 1, Memory: true})
}

// StartDir is Start with file storage in dir, for tests that stop the server
// (Stop) and start another on what it left. Close the connection before.
func StartDir(t testing.TB, dir string) (*broker.Server, *bus.Bus) {
	t.Helper()
	return start(t, broker.Options{Dir: dir}, topology.Options{Replicas: 1})
}

// Connect makes one more connection to s, as another process would have. It
// ends with the test.
func Connect(t testing.TB, s *broker.Server, name string) *bus.Bus {
	t.Helper()
	b, err := s.Connect(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func start(t testing.TB, o broker.Options, to topology.Options) (*broker.Server, *bus.Bus) {
	t.Helper()
	// Not t.Context(), which ends before the cleanups that still use the bus.
	ctx := context.Background()
	s, err := broker.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	b := Connect(t, s, t.Name())
	if err := topology.Apply(ctx, b, to); err != nil {
		t.Fatal(err)
	}
	return s, b
}
