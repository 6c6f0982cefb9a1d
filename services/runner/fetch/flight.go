package fetch

import (
	"context"
	"net/url"
	"sync"
)

// flight is one download that several callers wait for.
type flight struct {
	cancel context.CancelFunc
	done   chan struct{}
	// Set before done is closed.
	sum string
	err error

	mu      sync.Mutex
	waiters map[*waiter]struct{}
	// last progress, for waiters that come later
	have, total int64
}

type waiter struct{ progress func(done, total int64) }

// join waits for the download of u that is under way, or starts it.
func (f *Fetcher) join(ctx context.Context, u *url.URL, sum string, progress func(int64, int64)) (string, func(), error) {
	for {
		fl, w := f.board(ctx, u, sum, progress)
		select {
		case <-fl.done:
			f.leave(fl, w)
		case <-ctx.Done():
			f.leave(fl, w)
			return "", nil, context.Cause(ctx)
		}
		if fl.err != nil {
			return "", nil, fl.err
		}
		if path, release, ok := f.store.open(fl.sum); ok {
			return path, release, nil
		}
		// Evicted between download and open: the cache is smaller than what
		// is used at once, or someone cleared it. Fetch again.
		if ctx.Err() != nil {
			return "", nil, context.Cause(ctx)
		}
	}
}

func (f *Fetcher) board(ctx context.Context, u *url.URL, sum string, progress func(int64, int64)) (*flight, *waiter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := u.String() + " " + sum
	fl := f.flights[key]
	if fl == nil {
		// The download lives as long as somebody waits, not as long as the
		// caller who happened to come first.
		work, cancel := context.WithCancel(context.WithoutCancel(ctx))
		fl = &flight{cancel: cancel, done: make(chan struct{}), waiters: map[*waiter]struct{}{}, total: -1}
		f.flights[key] = fl
		go func() {
			defer close(fl.done)
			defer f.forget(key, fl)
			fl.sum, fl.err = f.download(work, u, sum, fl.report)
		}()
	}
	w := &waiter{progress: progress}
	fl.mu.Lock()
	fl.waiters[w] = struct{}{}
	fl.mu.Unlock()
	return fl, w
}

// forget lets the next caller start anew.
func (f *Fetcher) forget(key string, fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.flights[key] == fl {
		delete(f.flights, key)
	}
}

// leave ends the download when w was the last to wait for it, and then waits
// for its goroutine.
func (f *Fetcher) leave(fl *flight, w *waiter) {
	f.mu.Lock()
	fl.mu.Lock()
	delete(fl.waiters, w)
	last := len(fl.waiters) == 0
	if last {
		for key, other := range f.flights {
			if other == fl {
				delete(f.flights, key)
			}
		}
	}
	fl.mu.Unlock()
	f.mu.Unlock()
	if last {
		fl.cancel()
		<-fl.done
	}
}

func (fl *flight) report(have, total int64) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.have, fl.total = have, total
	for w := range fl.waiters {
		if w.progress != nil {
			w.progress(have, total)
		}
	}
}
