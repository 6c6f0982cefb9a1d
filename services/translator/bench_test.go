package translator

import (
	"fmt"
	"maps"
	"testing"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/natstest"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

// BenchmarkTranslate is jobs through the translator alone: an API that answers
// at once, a broker in memory.
func BenchmarkTranslate(b *testing.B) {
	bus, w, cfg := natstest.Start(b), newWorld(b), testConfig()
	cfg.Translator.Concurrency = 32
	out := queue.NewOutbox(bus, topology.Jobs)
	for i := range b.N {
		id := fmt.Sprintf("%024x", i)
		n := maps.Clone(w.nodes[jobID])
		n["id"], n["timeout"] = id, "2999-01-01T00:00:00"
		w.nodes[id] = n
		if _, err := out.Publish(b.Context(), topology.JobSubject("r", "p", id), id, id, &pullabv1.JobOffered{Origin: origin(id)}); err != nil {
			b.Fatal(err)
		}
	}
	s, err := New(b.Context(), cfg, bus, WithTransport(w))
	if err != nil {
		b.Fatal(err)
	}
	ctx := zerolog.Nop().WithContext(b.Context())
	b.ResetTimer()
	if err := s.Once(ctx); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
}
