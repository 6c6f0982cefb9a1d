package admission

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/pkg/queue"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

// elsewhereError says that a job is finished or someone else's.
type elsewhereError struct{ reason string }

func (e *elsewhereError) Error() string { return e.reason }

// API is the part of kernelci.Client that admission needs.
type API interface {
	Node(ctx context.Context, id string) (*kernelci.Node, error)
	Update(ctx context.Context, id string, fields map[string]any) (*kernelci.Node, error)
}

// Mode of claiming.
type Mode string

// Modes; their meaning is in the help of translator.claim.
const (
	Auto     Mode = "auto"
	Required Mode = "required"
	Off      Mode = "off"
)

// Settings of a desk.
type Settings struct {
	Claim Mode
	// HaveToken tells whether there is anything to claim with.
	HaveToken bool
	// States in which a job may be taken.
	States []string
	// Runtime of the lab, for messages.
	Runtime string
	// Lab is our name in claims (kernelci.ClaimID).
	Lab string
	// RetryClaim is how long a required claim waits for rights.
	RetryClaim time.Duration
}

// Desk is where jobs are admitted.
type Desk struct {
	api      API
	ledger   Ledger
	settings Settings
	// warn is for the one warning that jobs run without claims.
	warn sync.Once
}

// NewDesk opens a desk.
func NewDesk(api API, l Ledger, s Settings) *Desk { return &Desk{api: api, ledger: l, settings: s} }

// Case is an admitted job.
type Case struct {
	// Node as it was read at the gate.
	Node *kernelci.Node
	page *page
}

// RunID that the run has for good.
func (c *Case) RunID() string { return c.page.RunID }

// JobID is the claim; empty when the job runs without one.
func (c *Case) JobID() string {
	if c.page.Unclaimed != "" {
		return ""
	}
	return c.page.JobID
}

// Decide records what was published: Planned, or Refused and why.
func (c *Case) Decide(ctx context.Context, p Phase, reason string) error {
	r := c.page.Record
	if r.Phase == p && r.Reason == reason {
		return nil
	}
	r.Phase, r.Reason, r.DecidedAt = p, reason, time.Now()
	return c.page.write(ctx, r)
}

// Admit takes a job up, or goes on with one that was taken up before. nil without
// an error: the job is finished or someone else's, and that is recorded. Errors
// are verdicts of package queue. name gives a new job's run id.
func (d *Desk) Admit(ctx context.Context, origin *pullabv1.Origin, name func(*kernelci.Node) string) (*Case, error) {
	p, err := openPage(ctx, d.ledger, origin.GetNodeId())
	if err != nil {
		return nil, err
	}
	node, err := d.admit(ctx, origin, p, name)
	var elsewhere *elsewhereError
	switch {
	case errors.As(err, &elsewhere):
		return nil, letGo(ctx, p, elsewhere.reason)
	case err != nil:
		return nil, err
	}
	return &Case{Node: node, page: p}, nil
}

// letGo records why and is done: whoever has the job reports it. The record of
// a run that we started ourselves stays as it is.
func letGo(ctx context.Context, p *page, reason string) error {
	zerolog.Ctx(ctx).Info().Msgf("Job let go: %s", reason)
	if p.published() || p.Phase == LetGo && p.Reason == reason {
		return nil
	}
	a := p.Record
	a.Phase, a.Reason, a.DecidedAt = LetGo, reason, time.Now()
	return p.write(ctx, a)
}

// admit is the gate: it gives the node back when the job is ours to run.
func (d *Desk) admit(ctx context.Context, origin *pullabv1.Origin, p *page, name func(*kernelci.Node) string) (*kernelci.Node, error) {
	id := origin.GetNodeId()
	node, err := d.api.Node(ctx, id)
	if err != nil {
		return nil, Verdict("reading node "+id, err)
	}
	if err := d.gate(node, p); err != nil {
		return nil, err
	}
	if p.Phase == "" || p.Phase == LetGo {
		// Both names are on record before they can be anywhere else.
		r := Record{Phase: Claiming, RunID: name(node), JobID: d.claimID(node), TakenUpAt: time.Now()}
		if err := p.write(ctx, r); err != nil {
			return nil, err
		}
	}
	a := p.Record
	if node.Data.JobID != a.JobID {
		if a.Unclaimed, err = d.claim(ctx, node, a.JobID); err != nil {
			return nil, err
		}
	}
	if !a.published() {
		a.Phase = Claimed
	}
	if a.ClaimedAt.IsZero() && a.Unclaimed == "" {
		a.ClaimedAt = time.Now()
	}
	switch {
	case a == p.Record:
		return node, nil
	case a.Unclaimed != "":
		// No effect to record: the plan's own record says it too.
		p.Record = a
		return node, nil
	}
	return node, p.write(ctx, a)
}

// gate refuses a node that is not ours to run as it is now.
func (d *Desk) gate(node *kernelci.Node, p *page) error {
	switch {
	case node.State == "done":
		return &elsewhereError{fmt.Sprintf("node %s is done already (result %s)", node.ID, orNone(node.Result))}
	case node.Data.JobID != "" && node.Data.JobID != cmp.Or(p.JobID, d.claimID(node)):
		return &elsewhereError{fmt.Sprintf("node %s is claimed by someone else (job_id %.100s)", node.ID, node.Data.JobID)}
	case p.published():
		// The run exists; its node's state and age are the runner's and the
		// submitter's business now.
		return nil
	case !slices.Contains(d.settings.States, node.State):
		return queue.Drop(fmt.Errorf("node %s is in state %s; translator.states allows %v", node.ID, orNone(node.State), d.settings.States))
	case !node.Timeout.IsZero() && time.Now().After(node.Timeout):
		return queue.Drop(fmt.Errorf("node %s expired at %s, before the lab could take it: KernelCI closes it by itself; "+
			"if that is often so, the lab has too few machines or its clock is wrong", node.ID, node.Timeout.UTC().Format(time.RFC3339)))
	}
	return nil
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
