package natstest_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/natstest"
	"github.com/pullab/pullab/pkg/topology"
)

func TestMain(m *testing.M) {
	natstest.Register()
	m.Run()
}

// Several bubbles in one process, each idle for an hour: a timer or goroutine
// that escaped from one of them ends the next.
func TestBubbles(t *testing.T) {
	for range 3 {
		synctest.Test(t, func(t *testing.T) {
			b := natstest.Start(t)
			if err := backoff.Sleep(t.Context(), time.Hour); err != nil {
				t.Fatal(err)
			}
			if err := topology.Verify(context.Background(), b, topology.Options{Replicas: 1, Memory: true}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestOutsideBubble(t *testing.T) {
	b := natstest.Start(t)
	if err := topology.Verify(t.Context(), b, topology.Options{Replicas: 1, Memory: true}); err != nil {
		t.Fatal(err)
	}
}

func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s, b := natstest.StartDir(t, dir)
		b.Close()
		s.Stop()
		s, b = natstest.StartDir(t, dir)
		if err := topology.Verify(context.Background(), b, topology.Options{Replicas: 1}); err != nil {
			t.Fatal(err)
		}
		if u := s.URL(); u != "" {
			t.Errorf("listens at %s", u)
		}
	})
}
