// Package backoff is the one retry policy and the one sleep.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Policy grows from Min to Max by doubling, each delay jittered over its upper
// half so that many clients of one failing server do not retry together.
type Policy struct {
	Min, Max time.Duration
}

// Delay before retry n, counted from 1.
func (p Policy) Delay(n int) time.Duration {
	d := p.Min
	for i := 1; i < n && d < p.Max; i++ {
		d *= 2
	}
	d = min(d, p.Max)
	if d <= 1 {
		return d
	}
	return d/2 + rand.N(d/2+1)
}

// Sleep waits for d or until ctx ends, whose cause it then returns.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
