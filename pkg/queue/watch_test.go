package queue_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

func TestWatch(t *testing.T) {
	// Twice: a timer of nats.go that escapes from the first bubble ends the second.
	for range 2 {
		bubble(t, func(t *testing.T, l *lab) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			out := queue.NewOutbox(l.bus, topology.Progress)
			tell := func(node string, attempt int32) {
				out.Tell(ctx, topology.ProgressSubject(node), node, &pullabv1.RunProgress{NodeId: node, Attempt: attempt})
			}
			tell("n", 1)
			synctest.Wait()
			var seen []int32
			done := make(chan error, 1)
			go func() {
				done <- queue.Watch(ctx, l.bus, topology.Progress, topology.ProgressSubject("n"), func(d *queue.Delivery) {
					seen = append(seen, d.Message.(*pullabv1.RunProgress).Attempt)
				})
			}()
			synctest.Wait()
			tell("n", 2)
			tell("other", 3)
			pass(10 * time.Minute)
			tell("n", 4)
			synctest.Wait()
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if !slices.Equal(seen, []int32{2, 4}) {
				t.Errorf("seen %v", seen)
			}
		})
	}
}
