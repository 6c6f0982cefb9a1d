package queue_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/natstest"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/pkg/wire"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

func TestPublishIsUnique(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		ctx := context.Background()
		out := queue.NewOutbox(l.bus, topology.Jobs)
		publish := func(node, id string) bool {
			t.Helper()
			fresh, err := out.Publish(ctx, topology.JobSubject("lab", "pc", node), node, id, &pullabv1.JobOffered{})
			if err != nil {
				t.Fatal(err)
			}
			return fresh
		}
		drain := func(h queue.Handler) {
			t.Helper()
			if err := l.inbox(queue.InboxConfig{}).Drain(ctx, queue.FixedSlots(1), h); err != nil {
				t.Fatal(err)
			}
		}
		if !publish("a", "1") {
			t.Error("first: not fresh")
		}
		if publish("a", "1") {
			t.Error("same id: fresh")
		}
		if publish("a", "2") {
			t.Error("other id, still queued: fresh")
		}
		drain(func(ctx context.Context, d *queue.Delivery) error {
			if publish("a", "3") {
				t.Error("other id, being worked on: fresh")
			}
			return nil
		})
		if publish("a", "1") {
			t.Error("same id after it was acknowledged, within the window: fresh")
		}
		if !publish("a", "4") {
			t.Error("other id after it was acknowledged: not fresh")
		}
		drain(func(context.Context, *queue.Delivery) error { return nil })
		if err := backoff.Sleep(t.Context(), 11*time.Minute); err != nil {
			t.Fatal(err)
		}
		if !publish("a", "1") {
			t.Error("same id after the duplicate window: not fresh")
		}
	})
}

func TestPublishRefuses(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		ctx := context.Background()
		out := queue.NewOutbox(l.bus, topology.Runs)
		big := &pullabv1.RunPlanned{RunId: strings.Repeat("x", wire.MaxPayload)}
		_, err := out.Publish(ctx, topology.RunSubject("qemu", "x86_64", "n"), "n", "n", big)
		if !errors.Is(err, queue.ErrTooLarge) {
			t.Errorf("too large: %v", err)
		}
		_, err = out.Publish(ctx, topology.RunSubject("rocket", "x86_64", "n"), "n", "n", &pullabv1.RunPlanned{})
		if !errors.Is(err, jetstream.ErrStreamNotFound) {
			t.Errorf("an executor without a consumer: %v", err)
		}
		_, err = out.Publish(ctx, topology.JobSubject("lab", "pc", "n"), "n", "n", &pullabv1.JobOffered{})
		if err == nil || !strings.Contains(err.Error(), "pullab.jobs.lab.pc.n") {
			t.Errorf("a subject of another stream: %v", err)
		}
		if at := time.Since(l.start); at > time.Second {
			t.Errorf("hopeless errors took %s", at)
		}
	})
}

// A full stream is waited for: nothing is lost and the publisher is held back.
func TestPublishWaitsForRoom(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		ctx := context.Background()
		s, err := l.bus.JS.Stream(ctx, topology.Jobs)
		if err != nil {
			t.Fatal(err)
		}
		c := s.CachedInfo().Config
		c.MaxMsgs = 1
		if _, err := l.bus.JS.UpdateStream(ctx, c); err != nil {
			t.Fatal(err)
		}
		l.offer("one")
		out := queue.NewOutbox(l.bus, topology.Jobs)
		short, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if _, err := out.Publish(short, topology.JobSubject("lab", "pc", "two"), "two", "two", &pullabv1.JobOffered{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("full stream: %v", err)
		}
		stop := l.run(l.inbox(queue.InboxConfig{}), queue.FixedSlots(1), func(ctx context.Context, d *queue.Delivery) error {
			return backoff.Sleep(ctx, time.Minute)
		})
		if fresh, err := out.Publish(ctx, topology.JobSubject("lab", "pc", "two"), "two", "two", &pullabv1.JobOffered{}); !fresh || err != nil {
			t.Errorf("fresh %v, %v", fresh, err)
		}
		if at := time.Since(l.start); at < 2*time.Minute || at > 2*time.Minute+6*time.Second {
			t.Errorf("published at %s", at)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// Without a broker Publish ends with its context, and Tell at once.
func TestNoBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, b := natstest.StartServer(t)
		s.Stop()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		start := time.Now()
		queue.NewOutbox(b, topology.Progress).Tell(ctx, topology.ProgressSubject("n"), "n", &pullabv1.RunProgress{})
		if d := time.Since(start); d > 0 {
			t.Errorf("Tell took %s", d)
		}
		_, err := queue.NewOutbox(b, topology.Jobs).Publish(ctx, topology.JobSubject("lab", "pc", "n"), "n", "n", &pullabv1.JobOffered{})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start).Round(time.Second) != time.Minute {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

func TestTell(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		ctx := context.Background()
		out := queue.NewOutbox(l.bus, topology.Progress)
		for i := range 100 {
			out.Tell(ctx, topology.ProgressSubject("n"), "n", &pullabv1.RunProgress{NodeId: "n", Attempt: int32(i)})
		}
		synctest.Wait()
		s, err := l.bus.JS.Stream(ctx, topology.Progress)
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.GetLastMsgForSubject(ctx, topology.ProgressSubject("n"))
		if err != nil {
			t.Fatal(err)
		}
		if p := decode[*pullabv1.RunProgress](t, m.Data); p.Attempt != 99 || m.Header.Get(wire.HeaderType) != wire.TypeOf(p) {
			t.Errorf("last is %v, header %v", p, m.Header)
		}
		if n := s.CachedInfo().State.Msgs; n != 24 {
			t.Errorf("%d messages kept, want the last 24", n)
		}
	})
}

// One trace from the first message to the last, through two inboxes.
func TestTrace(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		ctx := context.Background()
		l.offer("job")
		err := l.inbox(queue.InboxConfig{}).Drain(ctx, queue.FixedSlots(1), func(ctx context.Context, d *queue.Delivery) error {
			l.note("%s", queue.Trace(ctx))
			_, err := queue.NewOutbox(l.bus, topology.Runs).Publish(ctx, topology.RunSubject("qemu", "arm64", "job"), "job", "job", &pullabv1.RunPlanned{})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		in := queue.NewInbox(l.bus, queue.InboxConfig{Service: "runner", Stream: topology.Runs, Consumer: topology.RunnerConsumer("qemu", "arm64")})
		err = in.Drain(ctx, queue.FixedSlots(1), func(ctx context.Context, d *queue.Delivery) error {
			l.note("%s", queue.Trace(ctx))
			if d.Node != "job" || d.Type != "pullab.v1.RunPlanned" || d.Deliveries != 1 || d.Published.IsZero() {
				t.Errorf("delivery %+v", d)
			}
			if _, ok := d.Message.(*pullabv1.RunPlanned); !ok {
				t.Errorf("message %T", d.Message)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		e := l.events()
		if len(e) != 2 {
			t.Fatalf("events %q", e)
		}
		first, second := strings.Split(e[0], "-"), strings.Split(e[1], "-")
		if len(first) != 4 || len(second) != 4 || first[1] != second[1] || first[2] == second[2] || len(first[1]) != 32 || len(first[2]) != 16 {
			t.Errorf("traces %q", e)
		}
	})
}

func TestOutcomes(t *testing.T) {
	cause := errors.New("cause")
	for _, err := range []error{queue.Drop(cause), queue.Retry(cause), queue.RetryAfter(time.Second, cause), queue.Stop(cause)} {
		if !errors.Is(err, cause) || err.Error() != "cause" {
			t.Errorf("%T %v loses its cause", err, err)
		}
	}
	var r *queue.RetryError
	if !errors.As(queue.RetryAfter(time.Minute, cause), &r) || r.After != time.Minute {
		t.Errorf("%+v", r)
	}
	if err := queue.Drop(nil); err == nil || err.Error() == "" {
		t.Errorf("Drop(nil) is %v", err)
	}
}

func TestOutermostWordCounts(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		l.offer("job")
		err := l.inbox(queue.InboxConfig{BackoffMin: time.Minute}).Drain(context.Background(), queue.FixedSlots(1), func(ctx context.Context, d *queue.Delivery) error {
			inner := errors.New("inner")
			switch d.Deliveries {
			case 1:
				return queue.Retry(queue.Drop(inner))
			default:
				return errors.Join(errors.New("beside"), queue.Drop(queue.Retry(inner)))
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if n := l.letters(); len(n) != 1 || n[0].Deliveries != 2 {
			t.Errorf("letters %v", n)
		}
	})
}

// The header of a message without a legal trace starts one.
func TestForeignTrace(t *testing.T) {
	bubble(t, func(t *testing.T, l *lab) {
		ctx := context.Background()
		data, err := wire.Encode(proto.Message(&pullabv1.JobOffered{}))
		if err != nil {
			t.Fatal(err)
		}
		_, err = l.bus.JS.PublishMsg(ctx, &nats.Msg{Subject: topology.JobSubject("lab", "pc", "x"), Data: data, Header: nats.Header{
			wire.HeaderType: {"pullab.v1.JobOffered"}, wire.HeaderTrace: {"00-zz-1-\r\nX: y"}}})
		if err != nil {
			t.Fatal(err)
		}
		err = l.inbox(queue.InboxConfig{}).Drain(ctx, queue.FixedSlots(1), func(ctx context.Context, d *queue.Delivery) error {
			if got := queue.Trace(ctx); got != "" || d.Node != "x" {
				t.Errorf("trace %q, node %q", got, d.Node)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
