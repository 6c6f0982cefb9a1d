package poller

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/services/poller/internal/cursor"
)

// Config of the poller.
type Config struct {
	KernelCI config.KernelCI `section:"kernelci"`
	NATS     config.NATS     `section:"nats"`
	Poller   Settings        `section:"poller"`
}

// Settings are the poller's own section.
type Settings struct {
	State          string        `key:"state" env:"PULLAB_POLL_STATE" default:"available" help:"Node state in which jobs are picked up. KernelCI may introduce prepared; translator.states must contain it too."`
	Limit          int           `key:"limit" env:"PULLAB_POLL_LIMIT" default:"1000" help:"Events per request, at most 1000 (the API's own limit). More are read page by page."`
	Overlap        time.Duration `key:"overlap" env:"PULLAB_POLL_OVERLAP" default:"1m" help:"How far before the cursor each poll begins: events become visible late and out of order. What was handled is not handled again."`
	Lookback       time.Duration `key:"lookback" env:"PULLAB_POLL_LOOKBACK" default:"24h" help:"How far the first start goes back, by the API's clock. KernelCI closes a job 6 hours after it was made and keeps events for 7 days."`
	SweepInterval  time.Duration `key:"sweep_interval" env:"PULLAB_SWEEP_INTERVAL" default:"10m" help:"How often all open jobs are listed, which repairs what events missed. 0 turns it off, and nothing then finds a job whose event was lost."`
	ReofferAfter   time.Duration `key:"reoffer_after" env:"PULLAB_REOFFER_AFTER" default:"30m" help:"A job that is still open and unclaimed so long after its offer is offered again by the sweep; each further time takes twice as long. Harmless for a job that is queued or running."`
	MinRuntime     time.Duration `key:"min_runtime" env:"PULLAB_MIN_RUNTIME" default:"15m" help:"A job that KernelCI closes sooner than this is not taken: it could not be finished."`
	Concurrency    int           `key:"concurrency" env:"PULLAB_POLLER_CONCURRENCY" default:"64" help:"Jobs put on the bus at the same time."`
	RequestTimeout time.Duration `key:"request_timeout" env:"PULLAB_POLL_TIMEOUT" default:"1m" help:"Time for one request to kernelci-api. A full page makes the API look up 1000 nodes one by one."`
}

const (
	// maxLimit is the API's, of a recursive query.
	maxLimit = 1000
	// maxConcurrency is what one connection to the broker carries well.
	maxConcurrency = 1024
)

// Validate checks the choices.
func (s Settings) Validate() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf("poller."+format, args...)) }
	if s.State == "" {
		complain("state is empty: jobs of every state would come; the usual one is available")
	}
	if s.Limit < 1 || s.Limit > maxLimit {
		complain("limit is %d: it must be between 1 and %d", s.Limit, maxLimit)
	}
	if s.Concurrency < 1 || s.Concurrency > maxConcurrency {
		complain("concurrency is %d: it must be between 1 and %d", s.Concurrency, maxConcurrency)
	}
	if s.Lookback > cursor.Retention {
		complain("lookback is %s: kernelci-api keeps events for %s", s.Lookback, cursor.Retention)
	}
	if s.SweepInterval != 0 && s.SweepInterval < time.Second {
		complain("sweep_interval is %s: it must be at least 1s, or 0 for never", s.SweepInterval)
	}
	for _, d := range []struct {
		key         string
		value, from time.Duration
	}{
		{"overlap", s.Overlap, 0}, {"lookback", s.Lookback, 0}, {"min_runtime", s.MinRuntime, 0},
		{"reoffer_after", s.ReofferAfter, time.Second}, {"request_timeout", s.RequestTimeout, time.Second},
	} {
		if d.value < d.from {
			complain("%s is %s: it must be at least %s", d.key, d.value, d.from)
		}
	}
	return errors.Join(errs...)
}

// Validate checks what several sections say together.
func (c Config) Validate() error {
	var errs []error
	for _, k := range []struct{ key, value string }{{"api_base_uri", c.KernelCI.APIBaseURI}, {"runtime_name", c.KernelCI.RuntimeName}} {
		if k.value == "" {
			errs = append(errs, fmt.Errorf("Missing required configuration: kernelci.%s", k.key)) //nolint:staticcheck // the guide's troubleshooting table quotes it with a capital
		}
	}
	if slices.Contains(c.KernelCI.Platforms, "") {
		errs = append(errs, errors.New("kernelci.platforms has an empty name: leave the key out to take every platform"))
	}
	return errors.Join(errs...)
}
