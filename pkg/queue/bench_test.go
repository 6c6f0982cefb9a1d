package queue_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/pullab/pullab/pkg/broker"
	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/natstest"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

// publishers at once, as a service with this many handlers has.
const publishers = 64

// disk gives a broker with file storage, as a lab has it.
func disk(b *testing.B, sync bool) *bus.Bus {
	b.Helper()
	ctx := context.Background()
	s, err := broker.Start(ctx, broker.Options{Dir: b.TempDir(), SyncAlways: sync})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.Stop)
	c := natstest.Connect(b, s, b.Name())
	if err := topology.Apply(ctx, c, topology.Options{Replicas: 1}); err != nil {
		b.Fatal(err)
	}
	return c
}

func eachSync(b *testing.B, f func(b *testing.B, c *bus.Bus)) {
	for _, sync := range []bool{false, true} {
		b.Run(fmt.Sprintf("sync=%v", sync), func(b *testing.B) { f(b, disk(b, sync)) })
	}
}

func offers(b *testing.B, c *bus.Bus, n int) {
	b.Helper()
	out := queue.NewOutbox(c, topology.Jobs)
	var next atomic.Int64
	done := make(chan error, publishers)
	for range publishers {
		go func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				node := fmt.Sprintf("%s-%024x", b.Name(), i)
				m := &pullabv1.JobOffered{Origin: &pullabv1.Origin{NodeId: node, NodePath: []string{"checkout", "kbuild-gcc-12-x86", "baseline-x86"}}}
				if _, err := out.Publish(context.Background(), topology.JobSubject("lab", "pc", node), node, node, m); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range publishers {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}

// One stored and acknowledged message.
func BenchmarkPublish(b *testing.B) {
	eachSync(b, func(b *testing.B, c *bus.Bus) {
		b.ResetTimer()
		offers(b, c, b.N)
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
	})
}

// One message pulled, leased, handled, its acknowledgement confirmed.
func BenchmarkInbox(b *testing.B) {
	for _, slots := range []int{1, 64, 2000} {
		b.Run(fmt.Sprintf("slots=%d", slots), func(b *testing.B) {
			eachSync(b, func(b *testing.B, c *bus.Bus) {
				offers(b, c, b.N)
				b.ResetTimer()
				in := queue.NewInbox(c, queue.InboxConfig{Service: "bench", Stream: topology.Jobs, Consumer: topology.Translator})
				var n atomic.Int64
				err := in.Drain(context.Background(), queue.FixedSlots(slots), func(context.Context, *queue.Delivery) error {
					n.Add(1)
					return nil
				})
				if err != nil || int(n.Load()) != b.N {
					b.Fatalf("handled %d of %d: %v", n.Load(), b.N, err)
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
			})
		})
	}
}
