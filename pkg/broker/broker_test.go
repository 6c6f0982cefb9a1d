package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/broker"
	"github.com/pullab/pullab/pkg/bus"
)

func TestKeepsStreams(t *testing.T) {
	ctx := t.Context()
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	for i := range 3 {
		s, err := broker.Start(ctx, broker.Options{Dir: dir, SyncAlways: i > 0})
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.Connect(ctx, "test")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.JS.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
			t.Fatal(err)
		}
		ack, err := b.JS.Publish(ctx, "s", nil)
		if err != nil || ack.Sequence != uint64(i+1) {
			t.Errorf("start %d: %+v, %v", i, ack, err)
		}
		if u := s.URL(); u != "" {
			t.Errorf("listens at %s though nobody asked", u)
		}
		b.Close()
		s.Stop()
		s.Stop()
	}
}

func TestListens(t *testing.T) {
	ctx := t.Context()
	s, err := broker.Start(ctx, broker.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	if !strings.HasPrefix(s.URL(), "nats://127.0.0.1:") {
		t.Fatalf("URL %q", s.URL())
	}
	b, err := bus.Connect(ctx, bus.Options{URL: s.URL(), Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := b.JS.AccountInfo(ctx); err != nil {
		t.Error(err)
	}

	_, err = broker.Start(ctx, broker.Options{Dir: t.TempDir(), Listen: strings.TrimPrefix(s.URL(), "nats://")})
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:") {
		t.Errorf("a port in use: %v", err)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	s, err := broker.Start(t.Context(), broker.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	_, err = broker.Start(t.Context(), broker.Options{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) || !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Errorf("second server on %s: %v", dir, err)
	}
	s.Stop()
	s, err = broker.Start(t.Context(), broker.Options{Dir: dir})
	if err != nil {
		t.Fatalf("after the first has stopped: %v", err)
	}
	s.Stop()
}

func TestEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	s, err := broker.Start(ctx, broker.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	s.Stop() // waits
	s, err = broker.Start(t.Context(), broker.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if _, err := broker.Start(ctx, broker.Options{Dir: t.TempDir()}); !errors.Is(err, context.Canceled) && err != nil {
		t.Errorf("ended context: %v", err)
	}
}

func TestBadOptions(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    broker.Options
		want string
	}{
		"no directory": {broker.Options{}, "no directory"},
		"a file":       {broker.Options{Dir: file}, "broker directory"},
		"no port":      {broker.Options{Dir: t.TempDir(), Listen: "localhost"}, "host:port"},
		"port name":    {broker.Options{Dir: t.TempDir(), Listen: "localhost:nats"}, "not a number"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := broker.Start(t.Context(), c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// The server's words go to our log, quiet ones at debug.
func TestLog(t *testing.T) {
	var out bytes.Buffer
	log := zerolog.New(&out)
	s, err := broker.Start(log.WithContext(t.Context()), broker.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	s.Stop()
	for line := range strings.Lines(out.String()) {
		if !strings.Contains(line, `"level":"debug"`) {
			t.Errorf("not at debug: %s", line)
		}
	}
	if !strings.Contains(out.String(), "nats-server: ") {
		t.Errorf("nothing logged: %s", out.String())
	}
}
