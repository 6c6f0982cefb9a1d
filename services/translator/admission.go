package translator

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

// Admission is a job's record in pullab_admissions, keyed by its node.
type Admission struct {
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
func (a Admission) published() bool { return a.Phase == Planned || a.Phase == Refused }

// records is the part of a ledger that admissions need.
type records interface {
	Get(ctx context.Context, key string) (Admission, uint64, error)
	Create(ctx context.Context, key string, a Admission) (uint64, error)
	Update(ctx context.Context, key string, a Admission, rev uint64) (uint64, error)
}

// page is one node's admission and the revision it was read at.
type page struct {
	Admission
	records records
	key     string
	rev     uint64
}

func openPage(ctx context.Context, r records, node string) (*page, error) {
	p := &page{records: r, key: wire.Token(node)}
	var err error
	p.Admission, p.rev, err = r.Get(ctx, p.key)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return nil, queue.Retry(fmt.Errorf("reading the admission of node %s: %w", node, err))
	}
	return p, nil
}

// write records a, unless someone else wrote since: then another translator
// has the job, and the next delivery decides anew.
func (p *page) write(ctx context.Context, a Admission) error {
	var rev uint64
	var err error
	if p.rev == 0 {
		rev, err = p.records.Create(ctx, p.key, a)
	} else {
		rev, err = p.records.Update(ctx, p.key, a, p.rev)
	}
	if err != nil {
		return queue.Retry(fmt.Errorf("recording %q for node %s: %w", a.Phase, p.key, err))
	}
	p.Admission, p.rev = a, rev
	return nil
}
