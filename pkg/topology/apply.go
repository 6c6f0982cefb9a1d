package topology

import (
	"context"
	"errors"

	"github.com/pullab/pullab/pkg/bus"
)

// Options are what a deployment decides.
type Options struct {
	// Replicas of every asset: 1, or 3 where the cluster has 3.
	Replicas int
	// Memory keeps everything in memory: tests only.
	Memory bool
}

// Plan lists what Apply would create or change, one line each, empty when the
// broker has it all.
func Plan(ctx context.Context, b *bus.Bus, o Options) ([]string, error) {
	return nil, errors.ErrUnsupported
}

// Apply creates what is missing and changes what differs. It never deletes.
func Apply(ctx context.Context, b *bus.Bus, o Options) error { return errors.ErrUnsupported }

// Verify fails with the differences when the broker's assets are not these.
func Verify(ctx context.Context, b *bus.Bus, o Options) error { return errors.ErrUnsupported }
