package bus_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/broker"
	"github.com/pullab/pullab/pkg/bus"
)

// The dead address names a port that nothing listens on.
func deadAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestNoServer(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := zerolog.New(&out)
	ctx, cancel := context.WithTimeout(log.WithContext(t.Context()), 300*time.Millisecond)
	defer cancel()
	addr := deadAddress(t)
	_, err := bus.Connect(ctx, bus.Options{URL: "nats://lab:hunter2@" + addr + ", lab:hunter2@" + addr, Name: "test"})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v", err)
	}
	for _, want := range []string{"nats://" + addr, "NATS_URL"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	for _, s := range []string{err.Error(), out.String()} {
		if strings.Contains(s, "hunter2") {
			t.Errorf("password in %s", s)
		}
	}
	if !strings.Contains(out.String(), "trying on") {
		t.Errorf("the wait is not logged: %s", out.String())
	}
}

func TestWaitsForServer(t *testing.T) {
	t.Parallel()
	addr := deadAddress(t)
	type result struct {
		b   *bus.Bus
		err error
	}
	got := make(chan result)
	go func() {
		b, err := bus.Connect(t.Context(), bus.Options{URL: addr, Name: "test"})
		got <- result{b, err}
	}()
	s, err := broker.Start(t.Context(), broker.Options{Dir: t.TempDir(), Listen: addr})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	r := <-got
	if r.err != nil {
		t.Fatal(r.err)
	}
	r.b.Close()
}

func TestBadURL(t *testing.T) {
	t.Parallel()
	for _, u := range []string{"", "nats://", "nats://lab:hunter2@%zz:4222", "nats://a:1,,nats://b:2"} {
		_, err := bus.Connect(t.Context(), bus.Options{URL: u})
		if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "nats://host:port") {
			t.Errorf("%q: %v", u, err)
		}
	}
}

// A server that refuses us is not waited for.
func TestRefused(t *testing.T) {
	t.Parallel()
	ns, err := server.NewServer(&server.Options{DontListen: false, Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true,
		Username: "lab", Password: "right"})
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	defer func() { ns.Shutdown(); ns.WaitForShutdown() }()
	if !ns.ReadyForConnections(10 * time.Second) {
		t.Fatal("server not ready")
	}
	_, err = bus.Connect(t.Context(), bus.Options{URL: "nats://lab:wrong@" + ns.Addr().String()})
	if !errors.Is(err, nats.ErrAuthorization) || strings.Contains(err.Error(), "wrong") || !strings.Contains(err.Error(), "NATS_CREDS") {
		t.Errorf("error %v", err)
	}
	b, err := bus.Connect(t.Context(), bus.Options{URL: "nats://lab:right@" + ns.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
}

func TestMissingCredsFile(t *testing.T) {
	t.Parallel()
	ns, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	defer func() { ns.Shutdown(); ns.WaitForShutdown() }()
	if !ns.ReadyForConnections(10 * time.Second) {
		t.Fatal("server not ready")
	}
	file := filepath.Join(t.TempDir(), "lab.creds")
	_, err = bus.Connect(t.Context(), bus.Options{URL: ns.Addr().String(), CredsFile: file})
	if err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(file, []byte("not credentials; SUSECRET"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = bus.Connect(t.Context(), bus.Options{URL: ns.Addr().String(), CredsFile: file})
	if err == nil || strings.Contains(err.Error(), "SUSECRET") {
		t.Errorf("no credentials in the file: %v", err)
	}
}
