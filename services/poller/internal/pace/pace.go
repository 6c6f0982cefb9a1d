// Package pace repeats work: at an interval, sooner or later after an error.
package pace

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/kernelci"
)

const (
	// onceAttempts and oncePatience bound Once: whoever runs a program once, from
	// a timer, will run it again.
	onceAttempts = 3
	oncePatience = time.Minute
)

// retry paces attempts after an error.
var retry = backoff.Policy{Min: 2 * time.Second, Max: 2 * time.Minute}

// Work is what is repeated. Its error is logged with name.
type Work func(ctx context.Context) error

// Every does work, waits for interval, jittered by a tenth, and so on until ctx
// ends. After an error it waits for a growing delay, or as long as the API asks.
func Every(ctx context.Context, name string, interval time.Duration, work Work) {
	failures := 0
	for {
		err := work(ctx)
		if ctx.Err() != nil {
			return
		}
		wait := interval*9/10 + rand.N(interval/5+1)
		switch {
		case err != nil:
			failures++
			wait = delay(failures, err)
			zerolog.Ctx(ctx).Warn().Err(err).Int("failures", failures).Stringer("retry_in", wait.Round(time.Millisecond)).Msgf("%s failed; trying again", name)
		case failures > 0:
			zerolog.Ctx(ctx).Info().Int("failures", failures).Msgf("%s works again", name)
			failures = 0
		}
		if backoff.Sleep(ctx, wait) != nil {
			return
		}
	}
}

// Once does work, and does it again a few times if its error may pass. It
// returns nil when ctx ends: a stop is no failure of the work.
func Once(ctx context.Context, name string, work Work) error {
	for n := 1; ctx.Err() == nil; n++ {
		err := work(ctx)
		var api *kernelci.APIError
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			break
		}
		wait := delay(n, err)
		switch {
		case n == onceAttempts, errors.As(err, &api) && !api.Temporary():
			return fmt.Errorf("%s failed: %w", name, err)
		case wait > oncePatience:
			return fmt.Errorf("%s failed, and kernelci-api asks to wait %s: %w", name, wait, err)
		}
		zerolog.Ctx(ctx).Warn().Err(err).Stringer("retry_in", wait.Round(time.Millisecond)).Msgf("%s failed; trying again", name)
		if backoff.Sleep(ctx, wait) != nil {
			break
		}
	}
	return nil //nolint:nilerr // the error of work that ctx cut short says only that
}

// delay before attempt n+1: what the API asks for, if that is longer.
func delay(n int, err error) time.Duration {
	var api *kernelci.APIError
	if errors.As(err, &api) {
		return max(retry.Delay(n), api.RetryAfter)
	}
	return retry.Delay(n)
}
