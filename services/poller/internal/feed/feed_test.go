package feed

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/services/poller/internal/cursor"
)

var day = time.Date(2026, 8, 20, 10, 0, 0, 0, time.UTC)

func at(ms int) time.Time { return day.Add(time.Duration(ms) * time.Millisecond) }

// source answers as kernelci-api does: from is exclusive, offset skips, and the
// order is whatever it is, but the same for every page.
type source struct {
	events []kernelci.Event
	// noOffset ignores offset, as an API may that never documented it.
	noOffset bool
	// fail is asked before each answer.
	fail  func() error
	asked int
}

func (s *source) EventsURL(kernelci.EventQuery) string { return "" }

func (s *source) Events(_ context.Context, q kernelci.EventQuery) ([]kernelci.Event, error) {
	s.asked++
	if s.asked > 10_000 {
		return nil, errors.New("asked for ever")
	}
	if s.fail != nil {
		if err := s.fail(); err != nil {
			return nil, err
		}
	}
	var out []kernelci.Event
	for _, e := range s.events {
		if e.Timestamp.After(q.From) {
			out = append(out, e)
		}
	}
	if !s.noOffset {
		out = out[min(q.Offset, len(out)):]
	}
	return slices.Clone(out[:min(q.Limit, len(out))]), nil
}

func event(n, ms int) kernelci.Event {
	id := fmt.Sprintf("%024x", n)
	return kernelci.Event{ID: "e" + id, Timestamp: at(ms), NodeID: id, Node: &kernelci.Node{ID: id}}
}

func begin(ms int) func(context.Context) (cursor.Position, error) {
	return func(context.Context) (cursor.Position, error) { return cursor.Position{At: at(ms)}, nil }
}

// taken counts how often each event was handled.
type taken map[string]int

func (h taken) handle(_ context.Context, es []kernelci.Event) ([]Failure, error) {
	for _, e := range es {
		h[e.ID]++
	}
	if !slices.IsSortedFunc(es, func(a, b kernelci.Event) int { return a.Timestamp.Compare(b.Timestamp) }) {
		return nil, errors.New("not sorted")
	}
	return nil, nil
}

func query(limit int) kernelci.EventQuery { return kernelci.EventQuery{Limit: limit} }

// More events than a page holds share one millisecond, and lie in the overlap.
func TestFullPages(t *testing.T) {
	var events []kernelci.Event
	for n := range 25 {
		events = append(events, event(n, 1000))
	}
	s, h := &source{events: events}, taken{}
	f := New(s, query(10), time.Minute)
	r, err := f.Read(t.Context(), begin(1000), h.handle)
	if err != nil || len(h) != 25 || !r.Reached.Equal(at(1000)) || s.asked != 3 {
		t.Fatal(r, err, len(h), s.asked)
	}
	// Later ones come after three pages that are all known.
	s.events = append(s.events, event(100, 2000))
	if r, err = f.Read(t.Context(), begin(1000), h.handle); err != nil || len(h) != 26 || !r.Reached.Equal(at(2000)) {
		t.Fatal(r, err, len(h))
	}
	for id, n := range h {
		if n != 1 {
			t.Errorf("%s was handled %d times", id, n)
		}
	}
}

// An event that becomes visible late, stamped before what was read.
func TestLateEvent(t *testing.T) {
	s, h := &source{events: []kernelci.Event{event(1, 60_000)}}, taken{}
	f := New(s, query(10), time.Minute)
	r, err := f.Read(t.Context(), begin(0), h.handle)
	if err != nil || !r.Reached.Equal(at(60_000)) {
		t.Fatal(r, err)
	}
	s.events = append(s.events, event(2, 30_000))
	if r, err = f.Read(t.Context(), begin(60_000), h.handle); err != nil || len(h) != 2 || !r.Reached.Equal(at(60_000)) {
		t.Fatal(r, err, h)
	}
}

// After an error the reading goes on where it stopped.
func TestGoesOnAfterError(t *testing.T) {
	var events []kernelci.Event
	for n := range 30 {
		events = append(events, event(n, n))
	}
	down := errors.New("503")
	s, h := &source{events: events}, taken{}
	s.fail = func() error {
		if s.asked == 3 {
			return down
		}
		return nil
	}
	f := New(s, query(10), 0)
	if _, err := f.Read(t.Context(), begin(-1), h.handle); !errors.Is(err, down) || len(h) != 20 {
		t.Fatal(err, len(h))
	}
	never := func(context.Context) (cursor.Position, error) { return cursor.Position{}, errors.New("asked again") }
	r, err := f.Read(t.Context(), never, h.handle)
	if err != nil || len(h) != 30 || s.asked != 5 || !r.Start.At.Equal(at(-1)) {
		t.Fatal(r, err, len(h), s.asked)
	}
}

// A node that fails holds the cursor before its first event; the others pass,
// and it is handed in again.
func TestFailedNode(t *testing.T) {
	s := &source{events: []kernelci.Event{event(3, 30), event(1, 10), event(2, 20), event(4, 40)}}
	// A second event of node 2.
	again := event(2, 35)
	again.ID = "again"
	s.events = append(s.events, again)
	f := New(s, query(10), time.Second)
	bad := errors.New("unreadable record")
	var got []string
	h := func(_ context.Context, es []kernelci.Event) (fs []Failure, err error) {
		got = nil
		for _, e := range es {
			got = append(got, e.ID)
			if e.NodeID == fmt.Sprintf("%024x", 2) {
				fs = append(fs, Failure{Node: e.NodeID, Err: bad})
			}
		}
		return fs, nil
	}
	r, err := f.Read(t.Context(), begin(0), h)
	if err != nil || r.Failed != 1 || !errors.Is(r.Err, bad) || !r.Reached.Equal(at(19)) {
		t.Fatal(r, err)
	}
	if r, err = f.Read(t.Context(), begin(19), h); err != nil || len(got) != 2 || !r.Reached.Equal(at(19)) {
		t.Fatal(r, err, got)
	}
	ok := taken{}
	if r, err = f.Read(t.Context(), begin(19), ok.handle); err != nil || len(ok) != 2 || !r.Reached.Equal(at(40)) || r.Err != nil {
		t.Fatal(r, err, ok)
	}
}

// A handler that can do nothing gets the same page again.
func TestFailedPage(t *testing.T) {
	s, h := &source{events: []kernelci.Event{event(1, 10)}}, taken{}
	f := New(s, query(10), time.Second)
	down := errors.New("no broker")
	if _, err := f.Read(t.Context(), begin(0), func(context.Context, []kernelci.Event) ([]Failure, error) { return nil, down }); !errors.Is(err, down) {
		t.Fatal(err)
	}
	if r, err := f.Read(t.Context(), begin(0), h.handle); err != nil || len(h) != 1 || !r.Reached.Equal(at(10)) {
		t.Fatal(r, err, h)
	}
}

// Where offset is ignored nothing stops for good, and with fewer siblings than
// a page nothing is lost.
func TestNoOffset(t *testing.T) {
	var events []kernelci.Event
	for n := range 100 {
		events = append(events, event(n, n/4))
	}
	s, h := &source{events: events, noOffset: true}, taken{}
	r, err := New(s, query(10), time.Second).Read(t.Context(), begin(-1), h.handle)
	if err != nil || len(h) != 100 || !r.Reached.Equal(at(24)) {
		t.Fatal(r, err, len(h))
	}
	// 30 in one millisecond: the rest of them is the sweep's.
	for n := range 30 {
		s.events = append(s.events, event(1000+n, 50))
	}
	s.events = append(s.events, event(2000, 60))
	r, err = New(s, query(10), time.Second).Read(t.Context(), begin(24), h.handle)
	if err != nil || h["e"+fmt.Sprintf("%024x", 2000)] != 1 || !r.Reached.Equal(at(60)) {
		t.Fatal(r, err, len(h))
	}
}

func TestSeenIsForgotten(t *testing.T) {
	s, h := &source{}, taken{}
	f := New(s, query(100), time.Second)
	for n := range 50 {
		s.events = append(s.events, event(n, n*1000))
		if _, err := f.Read(t.Context(), begin(n*1000), h.handle); err != nil {
			t.Fatal(err)
		}
	}
	if len(f.seen) > 3 || len(h) != 50 {
		t.Errorf("%d seen, %d handled", len(f.seen), len(h))
	}
}

// Any set of events, in any order, in pages of any size, with errors now and
// then: every one is handled once, and the cursor passes none that was not.
func FuzzRead(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed, byte(seed*13), byte(seed))
	}
	f.Fuzz(func(t *testing.T, seed uint64, count, limit byte) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var events []kernelci.Event
		for n := range int(count) {
			events = append(events, event(n, rnd.IntN(40)))
		}
		switch seed % 3 {
		case 0:
			slices.SortFunc(events, func(a, b kernelci.Event) int { return cmp.Compare(a.Timestamp.UnixNano(), b.Timestamp.UnixNano()) })
		case 1:
			slices.SortFunc(events, func(a, b kernelci.Event) int { return cmp.Compare(b.Timestamp.UnixNano(), a.Timestamp.UnixNano()) })
		}
		s, h := &source{events: events}, taken{}
		s.fail = func() error {
			if rnd.IntN(4) == 0 {
				return errors.New("500")
			}
			return nil
		}
		feed := New(s, query(1+int(limit%16)), 10*time.Millisecond)
		position := at(5)
		for range 3 {
			var r Reading
			err := errors.New("not yet")
			for tries := 0; err != nil; tries++ {
				if tries > 5000 {
					t.Fatal("no end")
				}
				r, err = feed.Read(t.Context(), func(context.Context) (cursor.Position, error) { return cursor.Position{At: position}, nil }, h.handle)
			}
			position = r.Reached
		}
		for _, e := range events {
			if want := e.Timestamp.After(at(-5)); (h[e.ID] == 1) != want || h[e.ID] > 1 {
				t.Fatalf("event at %s was handled %d times", e.Timestamp, h[e.ID])
			}
			if e.Timestamp.After(position) {
				t.Fatalf("cursor %s, but %s was handled", position, e.Timestamp)
			}
		}
	})
}
