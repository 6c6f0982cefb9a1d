// Package offers puts jobs on PULLAB_JOBS and keeps the ledger of them,
// pullab_offers.
//
// The order of writes for a job is: record "seen", publish and have it
// acknowledged, record "offered". Only then may the poller's cursor pass the
// job's event. Whatever dies between two of them, the next look at the job goes
// on where the record says; publishing twice is harmless, because the second
// has the same Nats-Msg-Id, or finds the first still on its subject, or meets
// the translator's own ledger.
//
// Two pollers may work on one job: every record is written with
// compare-and-set, and the loser reads again.
package offers

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/pkg/wire"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/poller/internal/judge"
)

// maxConflicts of one record before the poller gives up for now: each is
// another poller that got further.
const maxConflicts = 5

// Ledger is the part of ledger.Ledger[Record] that offers need.
type Ledger interface {
	Get(ctx context.Context, key string) (Record, uint64, error)
	Create(ctx context.Context, key string, r Record) (uint64, error)
	Update(ctx context.Context, key string, r Record, rev uint64) (uint64, error)
}

// Outbox is the part of queue.Outbox that offers need.
type Outbox interface {
	Publish(ctx context.Context, subject, node, id string, m proto.Message) (fresh bool, err error)
}

// Desk is where jobs are offered or skipped.
type Desk struct {
	ledger  Ledger
	out     Outbox
	api     string
	reoffer time.Duration
}

// NewDesk opens a desk for jobs of the API at base URI api. reoffer is the age
// of an offer at which the sweep may repeat it.
func NewDesk(l Ledger, out Outbox, api string, reoffer time.Duration) *Desk {
	return &Desk{ledger: l, out: out, api: api, reoffer: reoffer}
}

// Job is a node to be offered or skipped.
type Job struct {
	Node *kernelci.Node
	// Event that led to it; empty when the sweep found it.
	Event string
	// Now is the API's time.
	Now time.Time
	// Verdict on the node.
	Verdict judge.Verdict
}

// Result of handling a job.
type Result int

// Results.
const (
	// Known: nothing to do, the ledger has it so already.
	Known Result = iota
	// Made: offered for the first time.
	Made
	// Repeated: offered again, because the sweep found it still open.
	Repeated
	// Passed: skipped, and recorded for the first time for this reason.
	Passed
)

// Handle offers or skips a job as its verdict says. nil means that it is
// recorded, and the cursor may pass it.
func (d *Desk) Handle(ctx context.Context, j Job) (Result, error) {
	for n := 1; ; n++ {
		r, err := d.try(ctx, j)
		if errors.Is(err, ledger.ErrConflict) && n < maxConflicts {
			continue
		}
		if err != nil {
			return Known, fmt.Errorf("offering node %s: %w", j.Node.ID, err)
		}
		return r, nil
	}
}

func (d *Desk) try(ctx context.Context, j Job) (Result, error) {
	p, err := d.open(ctx, j.Node.ID)
	if err != nil {
		return Known, err
	}
	if j.Verdict.Reason != judge.None {
		return p.skip(ctx, j)
	}
	return d.offer(ctx, j, p)
}

func (d *Desk) offer(ctx context.Context, j Job, p *page) (Result, error) {
	result := Made
	switch {
	case p.Phase == Offered && (j.Node.Data.JobID != "" || !d.due(j, p.Record)):
		// A claim that passed the judge is our own. With an offer on record the
		// translator is at work on it; without one, our records were lost after the
		// claim, and only another offer brings the job back.
		return Known, nil
	case p.Phase == Offered:
		result = Repeated
		fallthrough
	case p.Phase != Seen:
		if err := p.write(ctx, Record{
			Phase: Seen, Round: p.Round + 1, Name: j.Node.Name, Platform: j.Node.Data.Platform, Event: j.Event, SeenAt: j.Now,
		}); err != nil {
			return Known, err
		}
	}
	id := j.Node.ID
	subject := topology.JobSubject(j.Node.Data.Runtime, j.Node.Data.Platform, id)
	_, err := d.out.Publish(ctx, subject, id, fmt.Sprintf("offer-%s-%d", id, p.Round), &pullabv1.JobOffered{Origin: origin(d.api, j)})
	if errors.Is(err, queue.ErrTooLarge) {
		// The node itself is monstrous; asking again will not make it smaller.
		j.Verdict = judge.Verdict{Reason: judge.TooLarge, Detail: err.Error()}
		return p.skip(ctx, j)
	}
	if err != nil {
		return Known, err
	}
	r := p.Record
	r.Phase, r.OfferedAt = Offered, j.Now
	return result, p.write(ctx, r)
}

// due tells whether an offer may be repeated. Only the sweep does: it sees a job
// that is still open and unclaimed long after its offer. Either it waits in the
// queue, and the repeated offer is refused there as long as it does; or it runs
// without a claim, and the translator knows it; or its message was lost with a
// stream. The time doubles with each round: a lab that does not claim has its
// jobs open for hours.
func (d *Desk) due(j Job, r Record) bool {
	if j.Event != "" {
		return false
	}
	wait := d.reoffer << min(max(r.Round-1, 0), 8)
	return j.Now.Sub(r.OfferedAt) >= wait
}

// page is one node's record and the revision it was read at.
type page struct {
	Record
	ledger Ledger
	key    string
	rev    uint64
}

func (d *Desk) open(ctx context.Context, node string) (*page, error) {
	p := &page{ledger: d.ledger, key: wire.Token(node)}
	var err error
	p.Record, p.rev, err = d.ledger.Get(ctx, p.key)
	if errors.Is(err, ledger.ErrNotFound) {
		err = nil
	}
	return p, err
}

// skip records why. A job that was offered stays so: what became of it is not
// the poller's to tell.
func (p *page) skip(ctx context.Context, j Job) (Result, error) {
	if p.Phase == Offered || p.Phase == Skipped && p.Reason == string(j.Verdict.Reason) {
		return Known, nil
	}
	return Passed, p.write(ctx, Record{
		Phase: Skipped, Round: p.Round, Reason: string(j.Verdict.Reason), Detail: j.Verdict.Detail,
		Name: j.Node.Name, Platform: j.Node.Data.Platform, Event: j.Event, SeenAt: p.SeenAt, SkippedAt: j.Now,
	})
}

func (p *page) write(ctx context.Context, r Record) error {
	var rev uint64
	var err error
	if p.rev == 0 {
		rev, err = p.ledger.Create(ctx, p.key, r)
	} else {
		rev, err = p.ledger.Update(ctx, p.key, r, p.rev)
	}
	if err != nil {
		return err
	}
	p.Record, p.rev = r, rev
	return nil
}

// origin is what every later message of the job carries on.
func origin(api string, j Job) *pullabv1.Origin {
	n := j.Node
	o := &pullabv1.Origin{
		ApiBaseUri: api, Runtime: n.Data.Runtime, Platform: n.Data.Platform,
		NodeId: n.ID, NodeName: n.Name, NodePath: n.Path, ParentId: n.Parent,
		JobDefinitionUrl: n.Artifacts["job_definition"], NodeCreated: timestamppb.New(created(j)),
		RetryCounter: int32(min(max(n.RetryCounter, 0), math.MaxInt32)), EventId: j.Event, OfferedAt: timestamppb.New(j.Now),
	}
	if !n.Timeout.IsZero() {
		o.NodeTimeout = timestamppb.New(n.Timeout)
	}
	return o
}

// created is never the zero time: an ObjectId begins with the second it was
// made in.
func created(j Job) time.Time {
	if !j.Node.Created.IsZero() {
		return j.Node.Created
	}
	var sec int64
	if _, err := fmt.Sscanf(j.Node.ID, "%8x", &sec); err != nil {
		return j.Now
	}
	return time.Unix(sec, 0).UTC()
}
