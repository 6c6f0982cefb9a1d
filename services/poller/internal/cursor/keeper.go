package cursor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/ledger"
)

// Retention of events in kernelci-api (kernelci-wire.md 1.3).
const Retention = 7 * 24 * time.Hour

// Clock is the API's, as far as it is known.
type Clock interface {
	Now() (time.Time, bool)
}

// Keeper knows where a poller's next reading begins.
type Keeper struct {
	store    *Store
	clock    Clock
	lookback time.Duration
	// ask makes any request, for its answer's Date.
	ask func(context.Context) error
	// file and what was in it; zero without.
	file string
	seed time.Time
}

// NewKeeper of a cursor. lookback is how far the first start goes back; ask
// makes a request, so that clock is known.
func NewKeeper(s *Store, clock Clock, lookback time.Duration, ask func(context.Context) error) *Keeper {
	return &Keeper{store: s, clock: clock, lookback: lookback, ask: ask}
}

// SeedFrom looks at the predecessor's cursor file while there is no cursor in
// the bucket. A file that is none is an error: going on without it would not be
// what the operator asked for.
func (k *Keeper) SeedFrom(ctx context.Context, file string) error {
	log := zerolog.Ctx(ctx)
	_, err := k.store.Load(ctx)
	if err == nil {
		log.Debug().Str("file", file).Msg("The cursor is in the bucket pullab_cursor; kernelci.cursor_file is not read")
		return nil
	}
	if !errors.Is(err, ledger.ErrNotFound) {
		return err
	}
	at, err := Seed(file)
	if errors.Is(err, ErrNoFile) {
		log.Info().Str("file", file).Msg("kernelci.cursor_file has no cursor to begin from; it will not be written either, the cursor is kept in the bucket pullab_cursor")
		return nil
	}
	k.file, k.seed = file, at
	return err
}

// Position reads the cursor, or makes the first one.
func (k *Keeper) Position(ctx context.Context) (Position, error) {
	p, err := k.store.Load(ctx)
	if errors.Is(err, ledger.ErrNotFound) {
		p, err = k.begin(ctx)
	}
	if err != nil {
		return p, err
	}
	if now, known := k.clock.Now(); known && now.Sub(p.At) > Retention {
		zerolog.Ctx(ctx).Warn().Time("cursor", p.At).
			Msg("The cursor is older than the 7 days for which kernelci-api keeps events: what was between is gone; jobs that are still open are found by the sweep")
	}
	return p, nil
}

func (k *Keeper) begin(ctx context.Context) (Position, error) {
	at, source, err := k.first(ctx)
	if err != nil {
		return Position{}, err
	}
	p, err := k.store.Begin(ctx, at, source)
	if errors.Is(err, ledger.ErrConflict) {
		return k.store.Load(ctx)
	}
	return p, err
}

// first chooses where the first cursor stands, and says so.
func (k *Keeper) first(ctx context.Context) (at time.Time, source string, err error) {
	log := zerolog.Ctx(ctx)
	if !k.seed.IsZero() {
		log.Info().Str("file", k.file).Time("from", k.seed).
			Msg("Cursor taken over from kernelci.cursor_file, this once; from now on it is kept in the bucket pullab_cursor and the file is not used")
		return k.seed, "file " + k.file, nil
	}
	now, known := k.clock.Now()
	if !known {
		if err := k.ask(ctx); err != nil {
			return at, "", fmt.Errorf("asking kernelci-api for its time: %w", err)
		}
		now, known = k.clock.Now()
	}
	if !known {
		log.Warn().Msg("First start, and kernelci-api's answers have no Date: reading all events that it keeps (7 days)")
		return time.Unix(0, 0).UTC(), "first start, no Date", nil
	}
	at = now.Add(-k.lookback).Truncate(time.Millisecond)
	log.Info().Time("from", at).Stringer("clock_offset", time.Until(now).Round(2*time.Second)).
		Msgf("First start: reading the events of the last %s by kernelci-api's clock (poller.lookback); older jobs that are still open are found by the sweep. "+
			"If this line comes at every start, the broker's storage does not outlive restarts, and the symptom is: Same job processed repeatedly", k.lookback)
	return at, "first start", nil
}

// Advance moves the cursor from p to at, but not past the API's own time: one
// event stamped by a clock that runs ahead would hide what comes after it. A
// cursor that somebody else moved meanwhile stays where they put it.
func (k *Keeper) Advance(ctx context.Context, p Position, at time.Time) error {
	log := zerolog.Ctx(ctx)
	// Date is exact to a second.
	if now, known := k.clock.Now(); known && at.After(now.Add(time.Second)) {
		log.Warn().Time("newest", at).Time("api_time", now).Msg("An event is stamped later than kernelci-api's own time; the cursor does not follow it")
		at = now
	}
	err := k.store.Advance(ctx, p, at)
	if errors.Is(err, ledger.ErrConflict) {
		log.Debug().Msg("The cursor was moved by someone else meanwhile; theirs stands")
		return nil
	}
	return err
}
