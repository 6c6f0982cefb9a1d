package topology

import (
	"context"

	"github.com/pullab/pullab/pkg/bus"
)

// Steps applies what Plan lists and calls after each step with its line.
func Steps(ctx context.Context, b *bus.Bus, o Options, after func(line string)) error {
	changes, err := plan(ctx, b, o)
	if err != nil {
		return err
	}
	for _, c := range changes {
		if c.apply != nil {
			if err := c.apply(ctx); err != nil {
				return err
			}
		}
		after(c.line)
	}
	return nil
}
