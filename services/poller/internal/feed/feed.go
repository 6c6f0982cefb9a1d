// Package feed reads kernelci-api's events from a position to their end.
//
// What is known of /events (kernelci-wire.md 1.3): "from" is exclusive, pages
// are not sorted, timestamps have milliseconds and several events may share
// one, and an event can become visible after a later-stamped one was read. So:
// each reading begins an overlap before the position and goes through full
// pages by offset, from the same "from", until one is not full; only then is
// anything known of what lies before the greatest timestamp.
package feed

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/services/poller/internal/cursor"
)

// API is the part of kernelci.Client that a feed needs.
type API interface {
	Events(ctx context.Context, q kernelci.EventQuery) ([]kernelci.Event, error)
	EventsURL(q kernelci.EventQuery) string
}

// Failure of one node's events; the others of the page were handled.
type Failure struct {
	Node string
	Err  error
}

// Handler takes the events of a page that were not handled before, sorted by
// time. An error means that none of them was handled.
type Handler func(ctx context.Context, events []kernelci.Event) ([]Failure, error)

// Feed of one poller. It is used by one goroutine.
type Feed struct {
	api     API
	query   kernelci.EventQuery
	overlap time.Duration
	// seen are the handled events that the overlap brings again, by id.
	seen map[string]time.Time
	// open is a reading under way, kept between two attempts; nil without one.
	open *reading
}

// New feed of what query asks for, from and offset apart.
func New(api API, query kernelci.EventQuery, overlap time.Duration) *Feed {
	return &Feed{api: api, query: query, overlap: overlap, seen: map[string]time.Time{}}
}

// Reading is a finished reading of the events.
type Reading struct {
	// Start is where the cursor stood.
	Start cursor.Position
	// Reached is where it may go: the greatest timestamp, but no further than
	// before the first event that failed. Not before Start.
	Reached time.Time
	// Failed nodes, and the first of their errors; nil without one.
	Failed int
	Err    error
}

type reading struct {
	start        cursor.Position
	from         time.Time
	offset       int
	newest       time.Time
	oldestFailed time.Time
	failed       map[string]error
	err          error
	// ids of all events that came, also of those handled before.
	ids map[string]bool
}

// Read goes from begin's position to the end of the events. After an error the
// next call goes on at the page where this one stopped, and asks begin no more.
func (f *Feed) Read(ctx context.Context, begin func(context.Context) (cursor.Position, error), h Handler) (Reading, error) {
	if f.open == nil {
		p, err := begin(ctx)
		if err != nil {
			return Reading{}, err
		}
		f.open = &reading{start: p, from: p.At.Add(-f.overlap), newest: p.At, failed: map[string]error{}, ids: map[string]bool{}}
		f.forget(f.open.from)
	}
	r := f.open
	for {
		events, err := f.page(ctx, r)
		if err != nil {
			return Reading{}, err
		}
		if err := f.handle(ctx, r, events, h); err != nil {
			return Reading{}, err
		}
		if !f.next(ctx, r, events) {
			break
		}
	}
	f.open = nil
	done := Reading{Start: r.start, Reached: r.newest, Failed: len(r.failed), Err: r.err}
	if !r.oldestFailed.IsZero() && !r.newest.Before(r.oldestFailed) {
		done.Reached = r.oldestFailed.Add(-time.Millisecond)
	}
	if done.Reached.Before(r.start.At) {
		done.Reached = r.start.At
	}
	return done, nil
}

func (f *Feed) page(ctx context.Context, r *reading) ([]kernelci.Event, error) {
	q := f.query
	q.From, q.Offset = r.from, r.offset
	log := zerolog.Ctx(ctx)
	log.Debug().Str("url", f.api.EventsURL(q)).Msg("Polling events")
	events, err := f.api.Events(ctx, q)
	if err != nil {
		return nil, err
	}
	log.Debug().Int("events", len(events)).Msg("Events received")
	slices.SortStableFunc(events, func(a, b kernelci.Event) int { return a.Timestamp.Compare(b.Timestamp) })
	return events, nil
}

func (f *Feed) handle(ctx context.Context, r *reading, events []kernelci.Event, h Handler) error {
	var fresh []kernelci.Event
	page := map[string]bool{}
	for _, e := range events {
		k := key(e)
		if _, known := f.seen[k]; !known && !page[k] {
			fresh = append(fresh, e)
		}
		page[k] = true
	}
	if len(fresh) > 0 {
		failures, err := h(ctx, fresh)
		if err != nil {
			return err
		}
		for _, x := range failures {
			r.failed[x.Node] = x.Err
			if r.err == nil {
				r.err = x.Err
			}
		}
	}
	for _, e := range fresh {
		r.settle(e, f.seen)
	}
	// Also over those that were handled before, while the cursor had to wait.
	for _, e := range events {
		if e.Timestamp.After(r.newest) {
			r.newest = e.Timestamp
		}
	}
	return nil
}

// settle notes that e is done with, or that its node failed.
func (r *reading) settle(e kernelci.Event, seen map[string]time.Time) {
	if e.Node == nil || r.failed[e.Node.ID] == nil {
		seen[key(e)] = e.Timestamp
		return
	}
	if r.oldestFailed.IsZero() || e.Timestamp.Before(r.oldestFailed) {
		r.oldestFailed = e.Timestamp
	}
}

// next tells whether there is another page, and sets r to it. Offset goes
// through any number of events within the overlap, or within one millisecond.
// The API does not document it: where a full page repeats what came before,
// offset was ignored, and the next page begins, without overlap, a millisecond
// before the last timestamp, or at it when even that one fills a page.
func (f *Feed) next(ctx context.Context, r *reading, events []kernelci.Event) bool {
	news := 0
	for _, e := range events {
		if k := key(e); !r.ids[k] {
			r.ids[k] = true
			news++
		}
	}
	if len(events) < f.query.Limit {
		return false
	}
	if news > 0 {
		r.offset += len(events)
		return true
	}
	last := events[len(events)-1].Timestamp
	from := last.Add(-time.Millisecond)
	if !from.After(r.from) {
		from = last
	}
	if !from.After(r.from) {
		return false
	}
	zerolog.Ctx(ctx).Warn().Time("from", from).Msg("A full page of events brought nothing new: the API seems to ignore offset; going on from the last timestamp")
	r.from, r.offset = from, 0
	return true
}

// forget events that no page can bring again.
func (f *Feed) forget(from time.Time) {
	for id, at := range f.seen {
		if at.Before(from) {
			delete(f.seen, id)
		}
	}
}

// key of an event is its id; one without is known by what it is about.
func key(e kernelci.Event) string {
	if e.ID != "" {
		return e.ID
	}
	return fmt.Sprintf("%s %s %d", e.NodeID, e.Op, e.Timestamp.UnixMilli())
}
