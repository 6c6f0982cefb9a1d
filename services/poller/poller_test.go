package poller

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/natstest"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/services/poller/internal/offers"
)

func ids(ns ...int) []string {
	var out []string
	for _, n := range ns {
		out = append(out, nodeID(n))
	}
	return out
}

// The tricky sample: two events of one finished node, equal timestamps, a node
// that is gone, other labs' jobs, our own end.
func TestTrickySample(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.load(t, "events.tricky.json")
		w.anyState = true
		w.ahead = time.Until(time.Date(2026, 8, 20, 10, 32, 0, 0, time.UTC))
		l := newLab(t, natstest.Start(t), w, noSweep)
		l.once()
		if got := take(t, l.bus); !slices.Equal(got, []string{"6a86d157c5867fba94731e67"}) {
			t.Errorf("offered %v", got)
		}
		if r := l.record("6a86d157c5867fba94731e66"); r.Phase != offers.Skipped || r.Reason != "not-open" {
			t.Errorf("finished node: %+v", r)
		}
		if got := l.position(); got != "2026-08-20T10:31:02.013000" {
			t.Errorf("cursor %s", got)
		}
		l.said(`"events":7`, `"matched":4`, `"offered":1`, `"without_node":1`, `lava-collabora`, `pull-labs-demo`)
	})
}

// The URL is the guide's, and debug shows it with the count.
func TestAsksAsTheGuideSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.job(1)
		l := newLab(t, natstest.Start(t), w, noSweep)
		l.once()
		from := kernelci.FormatTime(time.Now().Add(-24*time.Hour - time.Minute + 500*time.Millisecond))
		query := "/latest/events?state=available&kind=job&channel=node&recursive=true&limit=1000&from=" + from
		if !slices.Contains(w.asked, query) {
			t.Errorf("asked %v, want %s", w.asked, query)
		}
		l.said("https://api.example:9000"+query, `"level":"debug","events":1`, "First start: reading the events of the last 24h0m0s")
		for _, tok := range w.tokens {
			if tok != "Bearer "+token {
				t.Errorf("token %q", tok)
			}
		}
		if strings.Contains(l.log.String(), token) {
			t.Error("the token is in the log")
		}
	})
}

// Far more jobs than a page, unsorted, hundreds of them in one millisecond.
func TestFullUnsortedPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.shuffle = true
		for n := range 450 {
			if n > 300 && n%10 == 0 {
				later(t, time.Millisecond)
			}
			w.job(n)
		}
		last := kernelci.FormatTime(w.now())
		l := newLab(t, natstest.Start(t), w, noSweep, func(c *Config) { c.Poller.Limit = 50 })
		l.once()
		if got := take(t, l.bus); len(got) != 450 || len(slices.Compact(got)) != 450 {
			t.Errorf("%d offers", len(got))
		}
		if got := l.position(); got != last {
			t.Errorf("cursor %s, want %s", got, last)
		}
		if n := w.count("/events"); n != 10 {
			t.Errorf("asked for %d pages", n)
		}
		// All of it again within the overlap: nothing is offered, and a new job is.
		w.job(1000)
		l.once()
		if got := take(t, l.bus); !slices.Equal(got, ids(1000)) {
			t.Errorf("then offered %v", got)
		}
	})
}

// dying lets the process die at one step; what was done before stays done.
type dying struct {
	mu     sync.Mutex
	at     int
	step   int
	cancel context.CancelFunc
}

var errDied = errors.New("the process died")

func (d *dying) do(effect func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for half := range 2 {
		if half == 1 && d.at >= 0 && d.step > d.at {
			return errDied
		}
		if half == 1 {
			if err := effect(); err != nil {
				return err
			}
		}
		if d.step == d.at {
			d.cancel()
			d.step++
			return errDied
		}
		d.step++
	}
	return nil
}

type dyingLedger struct {
	*ledger.Ledger[offers.Record]
	d *dying
}

func (l dyingLedger) Create(ctx context.Context, key string, r offers.Record) (rev uint64, err error) {
	err = l.d.do(func() error { rev, err = l.Ledger.Create(ctx, key, r); return err })
	return rev, err
}

func (l dyingLedger) Update(ctx context.Context, key string, r offers.Record, at uint64) (rev uint64, err error) {
	err = l.d.do(func() error { rev, err = l.Ledger.Update(ctx, key, r, at); return err })
	return rev, err
}

type dyingOutbox struct {
	*queue.Outbox
	d *dying
}

func (o dyingOutbox) Publish(ctx context.Context, subject, node, id string, m proto.Message) (fresh bool, err error) {
	err = o.d.do(func() error { fresh, err = o.Outbox.Publish(ctx, subject, node, id, m); return err })
	return fresh, err
}

// A crash before or after any write loses no job and doubles none.
func TestCrashBetweenAnySteps(t *testing.T) {
	const jobs, steps = 3, 3 * 3 * 2
	for at := range steps + 1 {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			for n := range jobs {
				w.job(n)
				later(t, time.Second)
			}
			b := natstest.Start(t)
			l := newLab(t, b, w, noSweep, func(c *Config) { c.Poller.Concurrency = 1 })
			ctx, cancel := context.WithCancel(l.ctx)
			defer cancel()
			records, err := ledger.Open[offers.Record](ctx, b, topology.Offers)
			if err != nil {
				t.Fatal(err)
			}
			d := &dying{at: at, cancel: cancel}
			l.desk = offers.NewDesk(dyingLedger{records, d}, dyingOutbox{queue.NewOutbox(b, topology.Jobs), d}, l.api.BaseURI(), time.Hour)
			if err := l.Once(ctx); err != nil {
				t.Fatal(err)
			}
			if at < steps && ctx.Err() == nil {
				t.Fatalf("did not die at step %d", at)
			}
			want := "first start"
			if at == steps {
				want = "events"
			}
			if got := l.cursorRecord().Source; got != want {
				t.Errorf("step %d: the cursor is from %q, want %q", at, got, want)
			}
			// The next process, after a while.
			later(t, time.Minute)
			next := newLab(t, b, w, noSweep)
			next.once()
			if got := take(t, b); !slices.Equal(got, ids(0, 1, 2)) {
				t.Errorf("step %d: offered %v", at, got)
			}
			for n := range jobs {
				if r := next.record(nodeID(n)); r.Phase != offers.Offered || r.Round != 1 {
					t.Errorf("step %d: %+v", at, r)
				}
			}
		})
	}
}

func TestTwoPollers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.shuffle = true
		server, b := natstest.StartDir(t, t.TempDir())
		one := newLab(t, b, w, func(c *Config) { c.Poller.Limit = 20 })
		two := newLab(t, natstest.Connect(t, server, "two"), w, func(c *Config) { c.Poller.Limit = 20 })
		stopOne, stopTwo := one.run(), two.run()
		for n := range 120 {
			w.job(n)
			if n%40 == 39 {
				later(t, 40*time.Second)
			}
		}
		later(t, 2*time.Minute)
		stopOne()
		stopTwo()
		if n := queued(t, b); n != 120 {
			t.Errorf("%d offers queued", n)
		}
		for n := range 120 {
			if r := one.record(nodeID(n)); r.Phase != offers.Offered || r.Round != 1 {
				t.Fatalf("%+v", r)
			}
		}
	})
}

// One runtime, split by platform: the pollers pass over each other's jobs.
func TestSplitByPlatform(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		b := natstest.Start(t)
		only := func(p string) func(*Config) {
			return func(c *Config) { c.KernelCI.Platforms = []string{p}; c.Poller.SweepInterval = 0 }
		}
		w.job(1, platform("arm"))
		newLab(t, b, w, only("arm")).once()
		w.job(2, platform("x86"))
		later(t, time.Hour)
		w.job(3, platform("arm"))
		newLab(t, b, w, only("arm")).once()
		l := newLab(t, b, w, only("x86"))
		l.once()
		if got := take(t, b); !slices.Equal(got, ids(1, 2, 3)) {
			t.Errorf("offered %v", got)
		}
		if l.position("x86") == "" {
			t.Error("no cursor")
		}
		none := newLab(t, b, w, only("riscv"))
		none.once()
		none.said(`Events come back but none are processed: jobs of runtime \"pull-labs-aws-ec2\" came for platforms`)
	})
}

// Whatever the API does, the poller waits and goes on, and loses nothing.
func TestFaults(t *testing.T) {
	type fault = func(http.ResponseWriter, *http.Request) (bool, error)
	reply := func(status int, body string, header ...string) fault {
		return func(w http.ResponseWriter, r *http.Request) (bool, error) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			answer(status, body)(w, r)
			return true, nil
		}
	}
	refused := func(http.ResponseWriter, *http.Request) (bool, error) { return false, errors.New("connection refused") }
	hangs := func(_ http.ResponseWriter, r *http.Request) (bool, error) {
		<-r.Context().Done()
		return false, r.Context().Err()
	}
	for name, tt := range map[string]struct {
		fault  fault
		said   string
		atMost time.Duration
	}{
		"500":        {reply(500, `{"message":"Internal server error, check container logs"}`), "Internal server error", time.Minute},
		"429":        {reply(429, "", "Retry-After", "600"), "HTTP 429", 21 * time.Minute},
		"502 html":   {reply(502, "<html>Bad Gateway</html>"), "Bad Gateway", time.Minute},
		"html":       {reply(200, "<html>maintenance</html>"), "bad answer at byte 1", time.Minute},
		"truncated":  {reply(200, `[{"id":"6a86d158c5867fba94731f11","timest`), "breaks off", time.Minute},
		"wrong type": {reply(200, `{"detail":"?"}`), "wanted a list", time.Minute},
		"refused":    {refused, "connection refused", time.Minute},
		"hangs":      {hangs, "no complete answer within 1m0s", 4 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				faults := 0
				w.before = func(rw http.ResponseWriter, r *http.Request) (bool, error) {
					if strings.HasSuffix(r.URL.Path, "/events") && faults < 2 {
						faults++
						return tt.fault(rw, r)
					}
					return false, nil
				}
				l := newLab(t, natstest.Start(t), w, noSweep)
				w.job(1)
				stop := l.run()
				later(t, tt.atMost-time.Minute)
				asked := w.count("/events")
				later(t, time.Minute)
				stop()
				if got := take(t, l.bus); !slices.Equal(got, ids(1)) {
					t.Errorf("offered %v", got)
				}
				l.said("Poll failed; trying again", tt.said, "Poll works again")
				if name == "429" && asked > 3 {
					t.Errorf("asked %d times in 20 minutes although told to wait 10", asked)
				}
			})
		})
	}
}

// An hour off, either way: cursor, lookback and the time left go by the API.
func TestClockAnHourOff(t *testing.T) {
	for _, ahead := range []time.Duration{time.Hour, -time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.ahead = ahead
			l := newLab(t, natstest.Start(t), w, noSweep)
			w.job(1)
			// By the API 20 minutes are left of it, 10 of the other.
			w.job(2, func(n doc) { n["timeout"] = stamp(w.now().Add(20 * time.Minute)) })
			w.job(3, func(n doc) { n["timeout"] = stamp(w.now().Add(10 * time.Minute)) })
			stop := l.run()
			later(t, time.Minute)
			w.job(4)
			last := kernelci.FormatTime(w.now())
			later(t, time.Minute)
			stop()
			if got := take(t, l.bus); !slices.Equal(got, ids(1, 2, 4)) {
				t.Errorf("offered %v", got)
			}
			if got := l.position(); got != last {
				t.Errorf("cursor %s, want %s", got, last)
			}
			if r := l.record(nodeID(3)); r.Reason != "too-late" {
				t.Errorf("%+v", r)
			}
			l.said(fmt.Sprintf(`"clock_offset":"%s"`, ahead))
		})
	}
}

func TestSeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.job(1)
		later(t, time.Hour)
		file := filepath.Join(t.TempDir(), "cursor.json")
		if err := os.WriteFile(file, fmt.Appendf(nil, `{"timestamp": %q}`, kernelci.FormatTime(w.now())), 0o600); err != nil {
			t.Fatal(err)
		}
		later(t, time.Hour)
		w.job(2)
		with := func(c *Config) { c.KernelCI.CursorFile = file; c.Poller.SweepInterval = 0 }
		b := natstest.Start(t)
		l := newLab(t, b, w, with)
		l.once()
		if got := take(t, b); !slices.Equal(got, ids(2)) {
			t.Errorf("offered %v", got)
		}
		l.said("Cursor taken over from kernelci.cursor_file, this once")
		l = newLab(t, b, w, with)
		l.once()
		if strings.Contains(l.log.String(), "taken over") {
			t.Error("seeded twice")
		}
	})
}

func TestBrokenSeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "cursor.json")
		if err := os.WriteFile(file, []byte(`{"timest`), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg := settings()
		cfg.KernelCI.CursorFile = file
		_, err := New(t.Context(), cfg, natstest.Start(t), WithTransport(newWorld()))
		if err == nil || !strings.Contains(err.Error(), "PULLAB_CURSOR_FILE") {
			t.Error(err)
		}
	})
}

// The sweep finds what no event told of, and repeats offers that were lost.
func TestSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.job(1, silently)
		w.job(2, silently, func(n doc) { n["data"].(doc)["job_id"] = "other:1" })
		w.job(3, silently, func(n doc) { n["state"] = "done" })
		w.job(4, silently, func(n doc) { n["data"].(doc)["runtime"] = "lava" })
		// More than a page of the sweep.
		for n := 100; n < 100+sweepPage+20; n++ {
			w.job(n, silently)
		}
		b := natstest.Start(t)
		l := newLab(t, b, w)
		stop := l.run()
		defer func() { stop() }()
		later(t, time.Minute)
		if got := take(t, b); len(got) != sweepPage+21 || got[0] != nodeID(1) {
			t.Errorf("%d offers, first %v", len(got), got[:1])
		}
		// Taken by the translator, and all claimed but one: its message was lost.
		w.mu.Lock()
		for id, n := range w.nodes {
			if id != nodeID(1) {
				n["data"].(doc)["job_id"] = "ours:1"
			}
		}
		w.mu.Unlock()
		later(t, 20*time.Minute)
		if n := queued(t, b); n != 0 {
			t.Errorf("%d offers after 20 minutes", n)
		}
		later(t, 25*time.Minute)
		if got := take(t, b); !slices.Equal(got, ids(1)) {
			t.Errorf("offered again: %v", got)
		}
		l.said("Job offered again")
	})
}

// The whole store is lost: the next start finds every open job again.
func TestStoreWiped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		for n := range 5 {
			w.job(n)
		}
		newLab(t, natstest.Start(t), w).once()
		// Longer ago than a first start looks back.
		w.events = nil
		b := natstest.Start(t)
		newLab(t, b, w).once()
		if got := take(t, b); !slices.Equal(got, ids(0, 1, 2, 3, 4)) {
			t.Errorf("offered %v", got)
		}
	})
}

// A job that cannot be handled holds the cursor, and nothing else.
func TestUnreadableRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		b := natstest.Start(t)
		raw, err := ledger.Open[string](t.Context(), b, topology.Offers)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := raw.Put(t.Context(), nodeID(2), "what is this"); err != nil {
			t.Fatal(err)
		}
		var before string
		for n := range 4 {
			later(t, time.Second)
			if n == 2 {
				before = kernelci.FormatTime(w.now().Add(-time.Millisecond))
			}
			w.job(n)
		}
		l := newLab(t, b, w, noSweep)
		stop := l.run()
		later(t, 10*time.Minute)
		w.job(9)
		later(t, 10*time.Minute)
		if got := take(t, b); !slices.Equal(got, ids(0, 1, 3, 9)) {
			t.Errorf("offered %v", got)
		}
		if got := l.position(); got != before {
			t.Errorf("cursor %s, want %s", got, before)
		}
		l.said("1 jobs could not be offered, the cursor waits", "nats kv get pullab_offers "+nodeID(2))
		records, err := ledger.Open[offers.Record](t.Context(), b, topology.Offers)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := records.Put(t.Context(), nodeID(2), offers.Record{}); err != nil {
			t.Fatal(err)
		}
		later(t, 5*time.Minute)
		stop()
		if got := take(t, b); !slices.Equal(got, ids(2)) {
			t.Errorf("then offered %v", got)
		}
		if got := l.position(); got <= before {
			t.Errorf("cursor %s did not move", got)
		}
	})
}

// Events of all kinds that are no jobs cost nothing but a line.
func TestOddEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		at := stamp(w.now())
		job := func(extra doc) doc {
			d := doc{"kind": "job", "state": "available"}
			for k, v := range extra {
				d[k] = v
			}
			return d
		}
		w.nodes["bad"] = doc{"id": 5}
		w.events = append(
			w.events,
			doc{"id": "e1", "timestamp": at, "channel": "node", "data": job(nil)},
			doc{"id": "e2", "timestamp": at, "channel": "node", "data": job(doc{"id": nil})},
			doc{"id": "e3", "timestamp": at, "channel": "node", "data": job(doc{"id": "bad"})},
			doc{"id": "e4", "timestamp": at, "channel": "node", "data": job(doc{"id": "gone"})},
			doc{"timestamp": at, "channel": "node", "data": job(nil)},
		)
		w.job(1)
		w.job(2, func(n doc) { n["artifacts"] = doc{"job_definition": "s3://bucket/x"} })
		w.job(3, func(n doc) { n["artifacts"] = nil })
		l := newLab(t, natstest.Start(t), w, noSweep)
		l.once()
		if got := take(t, l.bus); !slices.Equal(got, ids(1)) {
			t.Errorf("offered %v", got)
		}
		l.said("Event skipped, it cannot be read", `"unreadable":1`, `"without_node":4`, `"reason":"bad-definition"`, `"reason":"no-definition"`)
	})
}

// Names that are not legal subjects.
func TestOddNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		const lab = "my lab.*>ö"
		w.job(1, platform("a.b > *"), func(n doc) { n["data"].(doc)["runtime"] = lab })
		l := newLab(t, natstest.Start(t), w, func(c *Config) { c.KernelCI.RuntimeName = lab })
		l.once()
		if got := take(t, l.bus); !slices.Equal(got, ids(1)) {
			t.Errorf("offered %v", got)
		}
		if l.position() == "" {
			t.Error("no cursor")
		}
	})
}

func TestRuntimeMismatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.job(1)
		l := newLab(t, natstest.Start(t), w, func(c *Config) { c.KernelCI.RuntimeName = "typo"; c.Poller.SweepInterval = 0 })
		l.once()
		l.said(`"level":"info"`, `"events":1,"matched":0`, "Events come back but none are processed: runtime_name mismatch, node.data.data.runtime is",
			`pull-labs-aws-ec2\" (1) and never \"typo\"`)
		if n := queued(t, l.bus); n != 0 {
			t.Error(n)
		}
		// Not with every poll, but it is not forgotten either.
		stop := l.run()
		for n := range 200 {
			later(t, 30*time.Second)
			w.job(10 + n)
		}
		stop()
		if n := strings.Count(l.log.String(), "Events come back but"); n != 2 {
			t.Errorf("told %d times in 100 minutes", n)
		}
	})
}

// deaf is a ledger that does not answer.
type deaf struct{ *ledger.Ledger[offers.Record] }

func (deaf) Get(context.Context, string) (r offers.Record, rev uint64, err error) {
	return r, 0, errors.New("no answer from the broker")
}

// Without a broker the API is not read page after page for nothing.
func TestBrokerGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		for n := range 30 {
			w.job(n)
		}
		l := newLab(t, natstest.Start(t), w, noSweep, func(c *Config) { c.Poller.Limit = 10 })
		desk := l.desk
		l.desk = offers.NewDesk(deaf{}, nil, "", time.Hour)
		if err := l.poll(l.ctx); err == nil || w.count("/events") != 1 {
			t.Fatal(err, w.asked)
		}
		l.desk = desk
		if err := l.poll(l.ctx); err != nil || queued(t, l.bus) != 30 {
			t.Error(err, queued(t, l.bus))
		}
	})
}

// A stop is prompt, also in the middle of a request.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		hangs := make(chan struct{})
		w.before = func(_ http.ResponseWriter, r *http.Request) (bool, error) {
			if strings.HasSuffix(r.URL.Path, "/events") {
				close(hangs)
				<-r.Context().Done()
				return false, r.Context().Err()
			}
			return false, nil
		}
		l := newLab(t, natstest.Start(t), w)
		stop := l.run()
		<-hangs
		start := time.Now()
		stop()
		if took := time.Since(start); took > 0 {
			t.Errorf("took %s", took)
		}
		if strings.Contains(l.log.String(), "trying again") {
			t.Errorf("a stop is no failure:\n%s", l.log)
		}
		// Between polls, too.
		w.before = nil
		stop = l.run()
		later(t, 10*time.Second)
		start = time.Now()
		stop()
		if took := time.Since(start); took > 0 {
			t.Errorf("took %s", took)
		}
	})
}

// Once reports what it could not do, and tries what may pass.
func TestOnceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.before = func(rw http.ResponseWriter, r *http.Request) (bool, error) {
			answer(400, `{"detail":"Invalid id format"}`)(rw, r)
			return true, nil
		}
		l := newLab(t, natstest.Start(t), w)
		err := l.Once(l.ctx)
		var api *kernelci.APIError
		if !errors.As(err, &api) || w.count("/nodes") != 2 {
			t.Error(err, w.asked)
		}
	})
}

// What an operator set back is read again, and not offered again.
func TestCursorSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.job(1)
		l := newLab(t, natstest.Start(t), w, noSweep)
		l.once()
		later(t, 2*time.Hour)
		w.job(2)
		kv, err := l.bus.JS.KeyValue(t.Context(), topology.Cursor)
		if err != nil {
			t.Fatal(err)
		}
		key := "api=2eexample=3a9000." + runtime
		if _, err := kv.Put(t.Context(), key, fmt.Appendf(nil, `{"timestamp":%q}`, stamp(w.now().Add(-10*time.Hour)))); err != nil {
			t.Fatal(err)
		}
		newLab(t, l.bus, w, noSweep).once()
		if got := take(t, l.bus); !slices.Equal(got, ids(1, 2)) {
			t.Errorf("offered %v", got)
		}
	})
}

func TestPreflight(t *testing.T) {
	for name, tt := range map[string]struct {
		whoami http.HandlerFunc
		change func(*Config)
		said   []string
	}{
		"superuser": {answer(200, `{"username":"root","is_superuser":true,"groups":[]}`), nil, []string{"may edit this runtime's nodes"}},
		"editor":    {answer(200, sampleText("whoami.json")), nil, []string{"may edit this runtime's nodes", `"user":"pull-labs-aws-ec2"`}},
		"none": {answer(200, `{"username":"guest","is_superuser":false,"groups":[{"id":"1","name":"runtime:other:node-editor"}]}`), nil, []string{
			`"level":"warn"`, "not a superuser and in none of the groups node:edit:any, runtime:pull-labs-aws-ec2:node-editor, runtime:pull-labs-aws-ec2:node-admin", "will be refused",
		}},
		"401":      {answer(401, `{"detail":"Unauthorized"}`), nil, []string{`"level":"warn"`, "kernelci-api refuses kernelci.api_token", "claims will not be made"}},
		"500":      {answer(500, ``), nil, []string{`"level":"warn"`, "Could not check kernelci.api_token"}},
		"no token": {nil, func(c *Config) { c.KernelCI.APIToken = "" }, []string{`"level":"warn"`, "No kernelci.api_token (KERNELCI_API_TOKEN)", "claims will not be made"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.whoami = tt.whoami
				change := tt.change
				if change == nil {
					change = func(*Config) {}
				}
				w.job(1)
				l := newLab(t, natstest.Start(t), w, change)
				l.once()
				l.said(tt.said...)
				if got := take(t, l.bus); !slices.Equal(got, ids(1)) {
					t.Errorf("offered %v: the preflight must not be fatal", got)
				}
				if strings.Contains(l.log.String(), token) {
					t.Error("the token is in the log")
				}
			})
		})
	}
}

func TestConfig(t *testing.T) {
	none := func(string) (string, bool) { return "", false }
	var cfg Config
	if _, err := config.Load(&cfg, config.Source{Env: none}); err != nil {
		t.Fatal(err)
	}
	if cfg.Poller.Limit != 1000 || cfg.Poller.State != "available" || cfg.KernelCI.PollIntervalSec != 30 {
		t.Errorf("%+v", cfg)
	}
	for name, tt := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"runtime":  {func(c *Config) { c.KernelCI.RuntimeName = "" }, "Missing required configuration: kernelci.runtime_name"},
		"uri":      {func(c *Config) { c.KernelCI.APIBaseURI = "" }, "Missing required configuration: kernelci.api_base_uri"},
		"platform": {func(c *Config) { c.KernelCI.Platforms = []string{"a", ""} }, "kernelci.platforms"},
		"state":    {func(c *Config) { c.Poller.State = "" }, "poller.state"},
		"limit":    {func(c *Config) { c.Poller.Limit = 1001 }, "poller.limit is 1001"},
		"no limit": {func(c *Config) { c.Poller.Limit = 0 }, "poller.limit is 0"},
		"overlap":  {func(c *Config) { c.Poller.Overlap = -1 }, "poller.overlap"},
		"lookback": {func(c *Config) { c.Poller.Lookback = 8 * 24 * time.Hour }, "poller.lookback"},
		"sweep":    {func(c *Config) { c.Poller.SweepInterval = time.Millisecond }, "poller.sweep_interval"},
		"reoffer":  {func(c *Config) { c.Poller.ReofferAfter = 0 }, "poller.reoffer_after"},
		"workers":  {func(c *Config) { c.Poller.Concurrency = 0 }, "poller.concurrency"},
	} {
		c := cfg
		tt.change(&c)
		err := errors.Join(c.Validate(), c.Poller.Validate())
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

// A page of new jobs, each with its durable writes, in a memory store.
func BenchmarkPage(b *testing.B) {
	bus := natstest.Start(b)
	w := newWorld()
	l := newLab(b, bus, w, noSweep, func(c *Config) { c.Poller.Concurrency = 64 })
	l.once()
	for n := 0; b.Loop(); {
		b.StopTimer()
		for range 1000 {
			w.job(n)
			n++
		}
		b.StartTimer()
		l.once()
	}
	b.ReportMetric(float64(queued(b, bus))/b.Elapsed().Seconds(), "jobs/s")
}
