package queue_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pullab/pullab/pkg/broker"
	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/natstest"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/pkg/wire"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

// pass lets a bubble's clock run on by d; no real time goes by.
func pass(d time.Duration) { <-time.After(d) }

func TestMain(m *testing.M) {
	natstest.Register()
	m.Run()
}

// bubble runs f inside a synctest bubble with a broker of its own. Time is
// fake: every duration in these tests is exact.
func bubble(t *testing.T, f func(t *testing.T, l *lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		server, b := natstest.StartServer(t)
		l := &lab{T: t, server: server, bus: b, start: time.Now()}
		f(t, l)
	})
}

// lab is the bus, and what handlers saw.
type lab struct {
	*testing.T
	server *broker.Server
	bus    *bus.Bus
	start  time.Time

	mu   sync.Mutex
	seen []string
}

// note records an event with the time since the start, to the second.
func (l *lab) note(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := time.Since(l.start).Round(time.Second)
	l.seen = append(l.seen, fmt.Sprintf("%s %s", at, fmt.Sprintf(format, v...)))
}

func (l *lab) events() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.seen...)
}

func (l *lab) offer(node string) {
	l.Helper()
	fresh, err := queue.NewOutbox(l.bus, topology.Jobs).Publish(context.Background(),
		topology.JobSubject("lab", "pc", node), node, node, &pullabv1.JobOffered{Origin: &pullabv1.Origin{NodeId: node}})
	if err != nil || !fresh {
		l.Fatalf("publish %s: fresh %v, %v", node, fresh, err)
	}
}

func (l *lab) inbox(c queue.InboxConfig) *queue.Inbox {
	c.Service, c.Stream, c.Consumer = "translator", topology.Jobs, topology.Translator
	return queue.NewInbox(l.bus, c)
}

// run starts an inbox; stop ends it and waits.
func (l *lab) run(in *queue.Inbox, slots queue.Slots, h queue.Handler) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- in.Run(ctx, slots, h); close(done) }()
	stop = func() error { cancel(); return <-done }
	// A bubble waits for its goroutines also when the test has failed.
	l.Cleanup(func() { _ = stop() })
	return stop
}

// left on the queue: pending, and delivered but not acknowledged.
func (l *lab) left() (pending, unacked int) {
	l.Helper()
	c, err := l.bus.JS.Consumer(context.Background(), topology.Jobs, topology.Translator)
	if err != nil {
		l.Fatal(err)
	}
	i := c.CachedInfo()
	return int(i.NumPending), i.NumAckPending
}

func (l *lab) letters() []*pullabv1.DeadLetter {
	l.Helper()
	ctx := context.Background()
	s, err := l.bus.JS.Stream(ctx, topology.Dead)
	if err != nil {
		l.Fatal(err)
	}
	var out []*pullabv1.DeadLetter
	for seq := uint64(1); ; seq++ {
		m, err := s.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return out
		}
		if err != nil {
			l.Fatal(err)
		}
		out = append(out, decode[*pullabv1.DeadLetter](l.T, m.Data))
	}
}

func (l *lab) want(want ...string) {
	l.Helper()
	got := l.events()
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		l.Errorf("events\n got %q\nwant %q", got, want)
	}
}

func TestTwoWorkersLongJobs(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		for i := range 6 {
			l.offer(fmt.Sprint("job", i))
		}
		h := func(ctx context.Context, d *queue.Delivery) error {
			l.note("%s #%d", d.Node, d.Deliveries)
			pass(3 * time.Minute)
			return ctx.Err()
		}
		a := l.run(l.inbox(queue.InboxConfig{}), queue.FixedSlots(1), h)
		b := l.run(l.inbox(queue.InboxConfig{}), queue.FixedSlots(1), h)
		pass(9*time.Minute + time.Second)
		if err := errors.Join(a(), b()); err != nil {
			t.Fatal(err)
		}
		if n := len(l.events()); n != 6 {
			t.Errorf("%d handler calls, want 6: %q", n, l.events())
		}
		if p, u := l.left(); p+u != 0 {
			t.Errorf("left %d pending, %d unacked", p, u)
		}
	})
}

// A worker whose connection is gone must let go before the broker gives its
// message to another.
func TestCrashedWorker(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		old := natstest.Connect(t, l.server, "old")
		l.offer("job")
		in := queue.NewInbox(old, queue.InboxConfig{Service: "translator", Stream: topology.Jobs, Consumer: topology.Translator})
		stopOld := l.run(in, queue.FixedSlots(1), func(ctx context.Context, d *queue.Delivery) error {
			l.note("old #%d", d.Deliveries)
			<-ctx.Done()
			l.note("old: %v", context.Cause(ctx))
			return nil
		})
		pass(50 * time.Second) // renewed at 20 s and 40 s
		old.Conn.Close()
		l.note("connection lost")
		stop := l.run(l.inbox(queue.InboxConfig{}), queue.FixedSlots(1), func(ctx context.Context, d *queue.Delivery) error {
			l.note("new #%d", d.Deliveries)
			return nil
		})
		pass(2 * time.Minute)
		if err := stop(); err != nil {
			t.Error(err)
		}
		if err := stopOld(); err == nil {
			// Stopping comes after the connection was closed, which is an error of
			// its own, unless the inbox saw the stop first.
			t.Log("old inbox stopped without an error")
		}
		l.want("0s old #1", "50s connection lost", "1m35s old: lease lost", "1m40s new #2")
	})
}

// A handler may take hours.
func TestLeaseIsKept(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		l.offer("job")
		stop := l.run(l.inbox(queue.InboxConfig{}), queue.FixedSlots(1), func(ctx context.Context, d *queue.Delivery) error {
			select {
			case <-ctx.Done():
				l.note("%v", context.Cause(ctx))
			case <-time.After(6 * time.Hour):
				l.note("done #%d", d.Deliveries)
			}
			return nil
		})
		pass(7 * time.Hour)
		if err := stop(); err != nil {
			t.Error(err)
		}
		l.want("6h0m0s done #1")
	})
}

// restarting is a broker whose process can be replaced.
type restarting struct {
	mu     sync.Mutex
	server *broker.Server
}

func (r *restarting) InProcessConn() (net.Conn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.server.InProcessConn()
}

// The broker is away for a while and comes back with what it had. A short
// outage costs a running handler nothing, a long one its lease; what is
// published meanwhile arrives.
func TestBrokerRestart(t *testing.T) {
	for _, c := range []struct {
		outage time.Duration
		want   []string
	}{
		{30 * time.Second, []string{"5m0s first done #1", "5m0s second done #1"}},
		// Renewed last at 20 s, trusted until 1m15s.
		{10 * time.Minute, []string{"1m15s first: lease lost"}},
	} {
		t.Run(c.outage.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { brokerRestart(t, c.outage, c.want) })
		})
	}
}

func brokerRestart(t *testing.T, outage time.Duration, want []string) {
	dir := t.TempDir()
	server, setup := natstest.StartDir(t, dir)
	r := &restarting{server: server}
	b, err := bus.Connect(context.Background(), bus.Options{Name: "worker", Server: r})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	l := &lab{T: t, bus: b, start: time.Now()}
	l.offer("first")
	stop := l.run(l.inbox(queue.InboxConfig{}), queue.FixedSlots(2), func(ctx context.Context, d *queue.Delivery) error {
		end := time.NewTimer(5*time.Minute - time.Since(l.start))
		defer end.Stop()
		select {
		case <-ctx.Done():
			l.note("%s: %v", d.Node, context.Cause(ctx))
		case <-end.C:
			l.note("%s done #%d", d.Node, d.Deliveries)
		}
		return nil
	})
	pass(25 * time.Second)
	setup.Close()
	server.Stop()
	published := make(chan error, 1)
	go func() {
		// Not fresh, perhaps: an attempt whose answer was lost may have arrived.
		_, err := queue.NewOutbox(b, topology.Jobs).Publish(context.Background(), topology.JobSubject("lab", "pc", "second"), "second", "second",
			&pullabv1.JobOffered{})
		published <- err
	}()
	pass(outage)
	again, err := broker.Start(context.Background(), broker.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.Stop)
	r.mu.Lock()
	r.server = again
	r.mu.Unlock()
	if err := <-published; err != nil {
		t.Error(err)
	}
	pass(6 * time.Minute)
	if err := stop(); err != nil {
		t.Error(err)
	}
	for _, w := range want {
		if events := l.events(); !slices.Contains(events, w) {
			t.Errorf("events %q, want %q among them", events, w)
		}
	}
	if p, u := l.left(); p+u != 0 {
		t.Errorf("left: pending %d, unacked %d", p, u)
	}
}

// An idle inbox that was without a broker for long takes up work as soon as it
// has one again, and no pull of the time between eats a message.
func TestIdleAcrossOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		server, setup := natstest.StartDir(t, dir)
		r := &restarting{server: server}
		b, err := bus.Connect(context.Background(), bus.Options{Name: "worker", Server: r})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Close)
		l := &lab{T: t, bus: b, start: time.Now()}
		setup.Close()
		stop := l.run(l.inbox(queue.InboxConfig{}), queue.FixedSlots(1), func(ctx context.Context, d *queue.Delivery) error {
			l.note("%s #%d", d.Node, d.Deliveries)
			return nil
		})
		pass(time.Minute)
		server.Stop()
		pass(10 * time.Minute)
		again, other := natstest.StartDir(t, dir)
		for i := range 3 {
			node := fmt.Sprint("job", i)
			if _, err := queue.NewOutbox(other, topology.Jobs).Publish(context.Background(), topology.JobSubject("lab", "pc", node), node, node, &pullabv1.JobOffered{}); err != nil {
				t.Fatal(err)
			}
		}
		r.mu.Lock()
		r.server = again
		r.mu.Unlock()
		// Reconnecting and looking again are each at most 5 s apart.
		pass(11 * time.Second)
		if err := stop(); err != nil {
			t.Error(err)
		}
		if e := l.events(); len(e) != 3 || strings.Contains(fmt.Sprint(e), "#2") {
			t.Errorf("events %q", e)
		}
	})
}

func TestDrop(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		ctx := context.Background()
		l.offer("job")
		if err := l.bus.JS.DeleteStream(ctx, topology.Dead); err != nil {
			t.Fatal(err)
		}
		stop := l.run(l.inbox(queue.InboxConfig{}), queue.FixedSlots(1), func(ctx context.Context, d *queue.Delivery) error {
			l.note("#%d", d.Deliveries)
			return fmt.Errorf("outer: %w", queue.Drop(errors.New("the definition is beyond repair")))
		})
		pass(500 * time.Millisecond)
		if p, u := l.left(); p+u != 1 {
			t.Fatalf("acknowledged without a copy: pending %d, unacked %d", p, u)
		}
		if err := topology.Apply(ctx, l.bus, topology.Options{Memory: true}); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if p, u := l.left(); p+u != 0 {
			t.Errorf("left: pending %d, unacked %d", p, u)
		}
		letters := l.letters()
		if len(letters) != 1 {
			t.Fatalf("%d dead letters", len(letters))
		}
		d := letters[0]
		if d.Service != "translator" || d.NodeId != "job" || d.Type != "pullab.v1.JobOffered" ||
			d.Subject != topology.JobSubject("lab", "pc", "job") || d.Deliveries != 2 ||
			d.Reason != "the definition is beyond repair" || d.Headers["Pullab-Node"] != "job" || d.At == nil {
			t.Errorf("letter %v", d)
		}
		dead, err := l.bus.JS.Stream(ctx, topology.Dead)
		if err != nil {
			t.Fatal(err)
		}
		m, err := dead.GetLastMsgForSubject(ctx, topology.DeadSubject("translator", "job"))
		if err != nil {
			t.Fatal(err)
		}
		if got, was := m.Header.Get(wire.HeaderTrace), d.Headers[wire.HeaderTrace]; len(got) != 55 || got[:35] != was[:35] {
			t.Errorf("trace %q, the message's was %q", got, was)
		}
		if o := decode[*pullabv1.JobOffered](t, []byte(d.Payload)); o.Origin.NodeId != "job" {
			t.Errorf("payload %s", d.Payload)
		}
	})
}

func TestPoison(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		l.offer("job")
		l.offer("good")
		stop := l.run(l.inbox(queue.InboxConfig{MaxDeliveries: 3}), queue.FixedSlots(1), func(ctx context.Context, d *queue.Delivery) error {
			if d.Node == "good" {
				return nil
			}
			l.note("#%d", d.Deliveries)
			panic("no such machine")
		})
		pass(time.Minute)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if n := len(l.events()); n != 3 {
			t.Errorf("handled %d times, want 3", n)
		}
		letters := l.letters()
		if len(letters) != 1 || letters[0].Deliveries != 4 || letters[0].NodeId != "job" {
			t.Fatalf("letters %v", letters)
		}
		if p, u := l.left(); p+u != 0 {
			t.Errorf("left: pending %d, unacked %d", p, u)
		}
	})
}

func TestUndecodable(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		ctx := context.Background()
		send := func(node, typ string, data []byte) {
			_, err := l.bus.JS.PublishMsg(ctx, &nats.Msg{Subject: topology.JobSubject("lab", "pc", node), Data: data,
				Header: nats.Header{"Pullab-Type": {typ}}})
			if err != nil {
				t.Fatal(err)
			}
		}
		send("future", "pullab.v9.JobOffered", []byte(`{}`))
		send("truncated", "pullab.v1.JobOffered", []byte(`{"origin": {"node_`))
		send("binary", "pullab.v1.JobOffered", []byte{0xff, 0xfe, 0})
		send("untyped", "", []byte(`{}`))
		send("quoted", "", bytes.Repeat([]byte{1}, wire.MaxPayload))
		err := l.inbox(queue.InboxConfig{}).Drain(ctx, queue.FixedSlots(1), func(ctx context.Context, d *queue.Delivery) error {
			t.Errorf("handler called for %s", d.Node)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		reasons := map[string]string{}
		for _, d := range l.letters() {
			reasons[d.NodeId] = d.Reason
			if d.NodeId == "binary" && !bytes.Equal(d.PayloadRaw, []byte{0xff, 0xfe, 0}) {
				t.Errorf("payload %q", d.PayloadRaw)
			}
			if d.NodeId == "quoted" && len(d.PayloadRaw) != wire.MaxPayload {
				t.Errorf("payload of %d bytes", len(d.PayloadRaw))
			}
		}
		for node, want := range map[string]string{
			"future": "upgrade", "truncated": "malformed message", "binary": "malformed message", "untyped": "unknown message type", "quoted": "unknown message type",
		} {
			if !strings.Contains(reasons[node], want) {
				t.Errorf("%s: reason %q, want %q in it", node, reasons[node], want)
			}
		}
	})
}

func TestStopHandsBack(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		for i := range 3 {
			l.offer(fmt.Sprint("job", i))
		}
		stop := l.run(l.inbox(queue.InboxConfig{}), queue.FixedSlots(3), func(ctx context.Context, d *queue.Delivery) error {
			<-ctx.Done()
			l.note("%v", context.Cause(ctx))
			switch d.Node {
			case "job0":
				return queue.Drop(ctx.Err())
			case "job1":
				return queue.RetryAfter(time.Hour, context.Cause(ctx))
			default:
				return errors.New("signal: killed")
			}
		})
		pass(30 * time.Second)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		l.want("30s stopping", "30s stopping", "30s stopping")
		l.seen = nil
		err := l.inbox(queue.InboxConfig{}).Drain(context.Background(), queue.FixedSlots(1), func(ctx context.Context, d *queue.Delivery) error {
			l.note("#%d", d.Deliveries)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		l.want("30s #2", "30s #2", "30s #2")
		if n := len(l.letters()); n != 0 {
			t.Errorf("%d dead letters", n)
		}
	})
}

// A handler that finishes although it was told to stop is done.
func TestStopLetsFinish(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		l.offer("job")
		stop := l.run(l.inbox(queue.InboxConfig{}), queue.FixedSlots(1), func(ctx context.Context, d *queue.Delivery) error {
			<-ctx.Done()
			pass(90 * time.Second) // longer than AckWait: the lease goes on
			return nil
		})
		pass(time.Second)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if p, u := l.left(); p+u != 0 {
			t.Errorf("left: pending %d, unacked %d", p, u)
		}
	})
}

// A message that is on its way while the inbox stops goes back at once; it does
// not lie leased for a minute.
func TestStopRace(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		for i := range 300 {
			node := fmt.Sprint("job", i)
			handled := false
			stop := l.run(l.inbox(queue.InboxConfig{}), queue.FixedSlots(1), func(ctx context.Context, d *queue.Delivery) error {
				handled = true
				return nil
			})
			synctest.Wait()
			var wg sync.WaitGroup
			wg.Go(func() { l.offer(node) })
			for range i % 30 {
				runtime.Gosched()
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			if handled {
				continue
			}
			before := time.Now()
			err := l.inbox(queue.InboxConfig{}).Drain(context.Background(), queue.FixedSlots(1), func(ctx context.Context, d *queue.Delivery) error {
				handled = true
				return nil
			})
			if err != nil || !handled {
				t.Fatalf("%s: handled %v, %v", node, handled, err)
			}
			if d := time.Since(before); d > 10*time.Second {
				t.Fatalf("%s came back after %s", node, d)
			}
		}
	})
}

func TestStopError(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		l.offer("job")
		cause := errors.New("the token is refused")
		err := l.inbox(queue.InboxConfig{}).Run(context.Background(), queue.FixedSlots(4), func(ctx context.Context, d *queue.Delivery) error {
			return queue.Stop(cause)
		})
		if !errors.Is(err, cause) {
			t.Errorf("Run returned %v", err)
		}
		if p, u := l.left(); p+u != 1 {
			t.Errorf("left: pending %d, unacked %d", p, u)
		}
	})
}

func TestIdleStopsAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		stop := l.run(l.inbox(queue.InboxConfig{}), queue.FixedSlots(1), nil)
		pass(time.Hour + 1234*time.Millisecond)
		before := time.Now()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(before); d > 100*time.Millisecond {
			t.Errorf("took %s", d)
		}
	})
}

func TestRetryTimes(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		l.offer("job")
		var at []time.Duration
		stop := l.run(l.inbox(queue.InboxConfig{BackoffMin: time.Minute, BackoffMax: 5 * time.Minute}), queue.FixedSlots(1),
			func(ctx context.Context, d *queue.Delivery) error {
				at = append(at, time.Since(l.start))
				switch d.Deliveries {
				case 1:
					return queue.RetryAfter(90*time.Second, errors.New("busy"))
				case 6:
					return nil
				default:
					return errors.New("plain")
				}
			})
		pass(time.Hour)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if len(at) != 6 {
			t.Fatalf("handled at %v", at)
		}
		// RetryAfter is exact; the others are min × 2^(deliveries-1) up to max,
		// jittered over the upper half.
		want := [][2]time.Duration{{90 * time.Second, 90 * time.Second}, {time.Minute, 2 * time.Minute}, {2 * time.Minute, 4 * time.Minute},
			{150 * time.Second, 5 * time.Minute}, {150 * time.Second, 5 * time.Minute}}
		for i, w := range want {
			gap := (at[i+1] - at[i]).Round(100 * time.Millisecond)
			if gap < w[0] || gap > w[1] {
				t.Errorf("retry %d after %s, want %s to %s", i+1, gap, w[0], w[1])
			}
		}
	})
}

func TestPulledOnlyWithSlot(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		for i := range 7 {
			l.offer(fmt.Sprint("job", i))
		}
		stop := l.run(l.inbox(queue.InboxConfig{}), queue.FixedSlots(2), func(ctx context.Context, d *queue.Delivery) error {
			pass(10 * time.Minute)
			return nil
		})
		for range 35 {
			pass(time.Minute)
			if _, u := l.left(); u > 2 {
				t.Fatalf("%d messages held with 2 slots", u)
			}
		}
		pass(10 * time.Minute)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if p, u := l.left(); p+u != 0 {
			t.Errorf("left: pending %d, unacked %d", p, u)
		}
	})
}

// Five inboxes share one machine: an idle one does not sit on it.
func TestSharedSlots(t *testing.T) {
	for name, wrap := range map[string]func(queue.Slots) queue.Slots{
		"fixed": func(s queue.Slots) queue.Slots { return s },
		"own":   func(s queue.Slots) queue.Slots { return struct{ queue.Slots }{s} },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, l *lab) {
				slots := wrap(queue.FixedSlots(1))
				var stops []func() error
				h := func(ctx context.Context, d *queue.Delivery) error {
					l.note("%s", d.Node)
					pass(time.Minute)
					return nil
				}
				for _, c := range []string{"runner-qemu-arm64", "runner-qemu-x86_64", "runner-command-arm64", "runner-command-x86_64", "runner-none"} {
					in := queue.NewInbox(l.bus, queue.InboxConfig{Service: "runner", Stream: topology.Runs, Consumer: c})
					stops = append(stops, l.run(in, slots, h))
				}
				out := queue.NewOutbox(l.bus, topology.Runs)
				pass(10 * time.Minute)
				for i, e := range []string{"qemu", "command", "qemu"} {
					node := fmt.Sprint("n", i)
					if _, err := out.Publish(context.Background(), topology.RunSubject(e, topology.Arches[i%2], node), node, node, &pullabv1.RunPlanned{}); err != nil {
						t.Fatal(err)
					}
				}
				published := time.Since(l.start)
				pass(3*time.Minute + 30*time.Second)
				for _, stop := range stops {
					if err := stop(); err != nil {
						t.Error(err)
					}
				}
				if n := len(l.events()); n != 3 {
					t.Fatalf("events %q, published at %s", l.events(), published)
				}
			})
		})
	}
}

func TestDrain(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		ctx := context.Background()
		in := l.inbox(queue.InboxConfig{})
		h := func(ctx context.Context, d *queue.Delivery) error {
			l.note("%s #%d", d.Node, d.Deliveries)
			if d.Node == "later" && d.Deliveries == 1 {
				return queue.RetryAfter(3*time.Minute, errors.New("not yet"))
			}
			return nil
		}
		if err := in.Drain(ctx, queue.FixedSlots(4), h); err != nil {
			t.Fatal(err)
		}
		l.note("empty")
		l.offer("later")
		l.offer("now")
		if err := in.Drain(ctx, queue.FixedSlots(1), h); err != nil {
			t.Fatal(err)
		}
		l.want("0s empty", "0s later #1", "0s now #1", "3m0s later #2")

		l.offer("again")
		short, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		err := in.Drain(short, queue.FixedSlots(1), func(ctx context.Context, d *queue.Delivery) error {
			return queue.RetryAfter(time.Hour, errors.New("not yet"))
		})
		if err != nil {
			t.Fatal(err)
		}
		if at := time.Since(l.start).Round(time.Second); at != 4*time.Minute {
			t.Errorf("Drain ended with its context at %s", at)
		}
	})
}

func TestMissingConsumer(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		in := queue.NewInbox(l.bus, queue.InboxConfig{Stream: topology.Jobs, Consumer: "nobody"})
		if err := in.Run(context.Background(), queue.FixedSlots(1), nil); !errors.Is(err, jetstream.ErrConsumerNotFound) {
			t.Errorf("no consumer: %v", err)
		}
		errs := make(chan error, 1)
		go func() { errs <- l.inbox(queue.InboxConfig{}).Run(context.Background(), queue.FixedSlots(1), nil) }()
		pass(time.Minute)
		if err := l.bus.JS.DeleteConsumer(context.Background(), topology.Jobs, topology.Translator); err != nil {
			t.Fatal(err)
		}
		if err := <-errs; !errors.Is(err, jetstream.ErrConsumerNotFound) {
			t.Errorf("deleted consumer: %v", err)
		}
	})
}
