package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// longPull is how long an idle pull stays open: long, because each costs the
	// broker a request; short enough that a pull the broker forgot (restart,
	// network) is made anew soon.
	longPull = 5 * time.Second
	// sharedPull is for slots that cannot tell whether somebody else waits.
	sharedPull = time.Second
	// turn is how long an inbox may look for work while another one waits for
	// its slot.
	turn = 100 * time.Millisecond
	// pullGrace after a pull's end the broker has not answered: it forgot.
	pullGrace = 2 * time.Second

	statusHeader = "Status"
	// The statuses of ADR-13 that only say "nothing now".
	statusNoMessages = "404"
	statusTimeout    = "408"
	// statusCalledOff is ours, not the broker's.
	statusCalledOff = "204"
)

// errLookAgain says that a pull ended without a message for a reason that may
// need a look at the consumer: broker down, leader changed, consumer deleted.
var errLookAgain = errors.New("pull refused")

// puller pulls single messages from one consumer.
//
// It speaks the pull protocol itself (NATS ADR-13) for one property that
// nats.go's iterators do not have: a pull can be called off without losing a
// message that is on its way. The reply subject's subscription ends at the
// broker with the first message on it; calling off means publishing one there
// oneself. The broker delivers exactly one of the two, so the answer tells
// for certain whether a message was handed out.
type puller struct {
	nc      *nats.Conn
	subject string
}

func newPuller(nc *nats.Conn, js jetstream.JetStream, stream, consumer string) puller {
	prefix := js.Options().APIPrefix
	if prefix == "" {
		prefix = jetstream.DefaultAPIPrefix
	}
	return puller{nc, prefix + "CONSUMER.MSG.NEXT." + stream + "." + consumer}
}

// next asks for one message for up to wait, or only for what is there now when
// wait is 0. It is called off when ctx ends or one of the channels speaks. No
// message and no error: there was none.
func (p puller) next(ctx context.Context, wait time.Duration, off ...<-chan struct{}) (*nats.Msg, error) {
	if p.nc.IsReconnecting() {
		// The client would keep the request and send it on the next connection,
		// where the answer meets nobody.
		return nil, errLookAgain
	}
	inbox := p.nc.NewInbox()
	answer := make(chan *nats.Msg, 1)
	sub, err := p.nc.ChanSubscribe(inbox, answer)
	if err != nil {
		return nil, fmt.Errorf("subscribing for a pull: %w", err)
	}
	// Only what the server has already ended is left to remove.
	defer func() { _ = sub.Unsubscribe() }()
	if err := sub.AutoUnsubscribe(1); err != nil {
		return nil, fmt.Errorf("subscribing for a pull: %w", err)
	}
	if err := p.nc.PublishRequest(p.subject, inbox, pullRequest(wait)); err != nil {
		return nil, fmt.Errorf("pulling: %w", err)
	}
	forgotten := time.NewTimer(wait + pullGrace)
	defer forgotten.Stop()
	done := ctx.Done()
	off = append(off, nil, nil)
	for {
		select {
		case m := <-answer:
			return read(m)
		case <-forgotten.C:
			return nil, errLookAgain
		case <-done:
		case <-off[0]:
		case <-off[1]:
		}
		done, off[0], off[1] = nil, nil, nil
		err := p.nc.PublishMsg(&nats.Msg{Subject: inbox, Header: nats.Header{statusHeader: {statusCalledOff}}})
		if err != nil {
			return nil, fmt.Errorf("calling a pull off: %w", err)
		}
		forgotten.Reset(pullGrace)
	}
}

func pullRequest(wait time.Duration) []byte {
	r := struct {
		Batch   int           `json:"batch"`
		Expires time.Duration `json:"expires,omitempty"`
		NoWait  bool          `json:"no_wait,omitempty"`
	}{1, wait, wait == 0}
	b, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	return b
}

// read tells a message from the broker's word that there is none.
func read(m *nats.Msg) (*nats.Msg, error) {
	status := m.Header.Get(statusHeader)
	if status == "" || len(m.Data) > 0 {
		return m, nil
	}
	switch status {
	case statusNoMessages, statusTimeout, statusCalledOff:
		return nil, nil
	default:
		return nil, fmt.Errorf("%w: %s %s", errLookAgain, status, m.Header.Get("Description"))
	}
}
