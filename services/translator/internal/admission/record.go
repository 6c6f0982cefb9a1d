package admission

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/wire"
)

// Phase is how far a job's admission is. The translator alone moves it, always
// forward, except that a job let go may be offered again.
type Phase string

// Phases.
const (
	// Claiming: run id and job id are chosen; the claim may be on the node.
	Claiming Phase = "claiming"
	// Claimed: our claim was seen on the node, or is not wanted.
	Claimed Phase = "claimed"
	// Planned: the plan is on PULLAB_RUNS, or was.
	Planned Phase = "planned"
	// Refused: a refusal is on PULLAB_RUNS, or was.
	Refused Phase = "refused"
	// LetGo: the job is finished or someone else's; Reason says which.
	LetGo Phase = "let go"
)

// Record is a job's entry in pullab_admissions, keyed by its node.
type Record struct {
	Phase Phase  `json:"phase"`
	RunID string `json:"run_id,omitempty"`
	// JobID is our claim, <runtime>:<32 hex digits>; it is chosen even where
	// claims are off, and then written nowhere else.
	JobID string `json:"job_id,omitempty"`
	// Unclaimed says why the job runs without a claim; empty when it is
	// claimed.
	Unclaimed string `json:"unclaimed,omitempty"`
	// Reason of a refusal or of letting go.
	Reason string `json:"reason,omitempty"`
	// TakenUpAt is when the job was first seen; DecidedAt when the phase became
	// planned, refused or let go.
	TakenUpAt time.Time `json:"taken_up_at,omitzero"`
	ClaimedAt time.Time `json:"claimed_at,omitzero"`
	DecidedAt time.Time `json:"decided_at,omitzero"`
}

// published tells whether the job's plan or refusal was published before.
func (r Record) published() bool { return r.Phase == Planned || r.Phase == Refused }

// Ledger is the part of ledger.Ledger[Record] that admissions need.
type Ledger interface {
	Get(ctx context.Context, key string) (Record, uint64, error)
	Create(ctx context.Context, key string, r Record) (uint64, error)
	Update(ctx context.Context, key string, r Record, rev uint64) (uint64, error)
}

// page is one node's record and the revision it was read at.
type page struct {
	Record
	ledger Ledger
	key    string
	rev    uint64
}

func openPage(ctx context.Context, l Ledger, node string) (*page, error) {
	p := &page{ledger: l, key: wire.Token(node)}
	var err error
	p.Record, p.rev, err = l.Get(ctx, p.key)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return nil, queue.Retry(fmt.Errorf("reading the admission of node %s: %w", node, err))
	}
	return p, nil
}

// write records r, unless someone else wrote since: then another translator
// has the job, and the next delivery decides anew.
func (p *page) write(ctx context.Context, r Record) error {
	var rev uint64
	var err error
	if p.rev == 0 {
		rev, err = p.ledger.Create(ctx, p.key, r)
	} else {
		rev, err = p.ledger.Update(ctx, p.key, r, p.rev)
	}
	if err != nil {
		return queue.Retry(fmt.Errorf("recording %q for node %s: %w", r.Phase, p.key, err))
	}
	p.Record, p.rev = r, rev
	return nil
}
