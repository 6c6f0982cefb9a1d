package batch

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/services/submitter/internal/kcidb"
)

var (
	// busy paces requests to a KCIDB that is down or overloaded.
	busy = backoff.Policy{Min: time.Second, Max: 5 * time.Minute}
	// wrong paces them where only a person can help: a refused token, a wrong
	// address.
	wrong = backoff.Policy{Min: time.Minute, Max: 10 * time.Minute}
)

// remind is how often a continuing outage is logged.
const remind = 10 * time.Minute

func refused(err error) bool {
	var he *kcidb.HTTPError
	return errors.As(err, &he) && he.Refused()
}

// delay before attempt n+1, after err.
func delay(n int, err error) time.Duration {
	var he *kcidb.HTTPError
	if !errors.As(err, &he) {
		return busy.Delay(n)
	}
	if he.Status < 500 && he.RetryAfter == 0 && !temporary(he.Status) {
		return wrong.Delay(n)
	}
	return max(busy.Delay(n), he.RetryAfter)
}

// temporary are the client errors that go away by waiting: request timeout, too
// early, too many requests.
func temporary(status int) bool { return status == 408 || status == 425 || status == 429 }

func pause(ctx context.Context, d time.Duration) error { return backoff.Sleep(ctx, d) }

// health logs when something stops working and when it works again, and not
// every attempt in between.
type health struct {
	// what works or does not, as a sentence.
	what string

	mu     sync.Mutex
	down   time.Time
	logged time.Time
}

func (h *health) failed(ctx context.Context, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if h.down.IsZero() {
		h.down = now
	}
	if !h.logged.IsZero() && now.Sub(h.logged) < remind {
		zerolog.Ctx(ctx).Debug().Err(err).Msg(h.what + ": still not")
		return
	}
	h.logged = now
	zerolog.Ctx(ctx).Error().Err(err).Time("since", h.down).Msg(h.what + ": not now; results wait, nothing is lost")
}

func (h *health) worked(ctx context.Context) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.down.IsZero() {
		zerolog.Ctx(ctx).Info().Dur("down", time.Since(h.down)).Msg(h.what + " again")
	}
	h.down, h.logged = time.Time{}, time.Time{}
}
