package submitter_test

import (
	"testing"

	"github.com/pullab/pullab/pkg/natstest"
	"github.com/pullab/pullab/services/submitter"
)

// BenchmarkResults is results per second through both consumers against far
// sides that answer at once, with a broker in memory. A boot result has four
// rows and a tree of five nodes.
func BenchmarkResults(b *testing.B) {
	s := &story{TB: b, world: newWorld(b), bus: natstest.Start(b), cfg: settings()}
	s.kcidb.delay = 0
	for i := range b.N {
		s.publish(s.run(i, "boot-pass"))
	}
	svc, err := submitter.New(b.Context(), s.cfg, s.bus, submitter.WithTransport(s.world))
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	if err := svc.Once(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "results/s")
	if len(s.kcidb.stored) != 4*b.N {
		b.Errorf("%d rows stored, want %d", len(s.kcidb.stored), 4*b.N)
	}
}
