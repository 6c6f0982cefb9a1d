package queue_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/natstest"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

func TestMain(m *testing.M) {
	natstest.Register()
	m.Run()
}

// bubble runs f inside a synctest bubble with a broker of its own. Time is
// fake: every duration in these tests is exact.
func bubble(t *testing.T, f func(t *testing.T, l *lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &lab{T: t, bus: natstest.Start(t), start: time.Now()}
		f(t, l)
	})
}

// lab is the bus, and what handlers saw.
type lab struct {
	*testing.T
	bus   *bus.Bus
	start time.Time

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
	go func() { done <- in.Run(ctx, slots, h) }()
	return func() error { cancel(); return <-done }
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
			time.Sleep(3 * time.Minute)
			return ctx.Err()
		}
		a := l.run(l.inbox(queue.InboxConfig{}), queue.FixedSlots(1), h)
		b := l.run(l.inbox(queue.InboxConfig{}), queue.FixedSlots(1), h)
		time.Sleep(9*time.Minute + time.Second)
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
