package translator

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/pkg/queue"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/translator/internal/planner"
)

// nodeID is a MongoDB ObjectId. Anything else would be a 400 from the API, and
// has no business in its URLs.
var nodeID = regexp.MustCompile(`^[0-9a-f]{24}$`)

// errElsewhere says that a job is finished or someone else's.
type errElsewhere struct{ reason string }

func (e *errElsewhere) Error() string { return e.reason }

// handle does the translator's verb on one offer.
func (s *Service) handle(ctx context.Context, d *queue.Delivery) error {
	offer, ok := d.Message.(*pullabv1.JobOffered)
	if !ok {
		return queue.Drop(fmt.Errorf("a %s is not a job offer: only the poller may publish to the jobs stream", d.Type))
	}
	origin := offer.GetOrigin()
	id := origin.GetNodeId()
	if !nodeID.MatchString(id) {
		return queue.Drop(fmt.Errorf("the offer names the node %.60q, which is no kernelci-api node id (24 hex digits)", id))
	}
	ctx = zerolog.Ctx(ctx).With().Str("node", id).Logger().WithContext(ctx)
	p, err := openPage(ctx, s.records, id)
	if err != nil {
		return err
	}
	node, err := s.admit(ctx, origin, p)
	var elsewhere *errElsewhere
	switch {
	case errors.As(err, &elsewhere):
		return s.letGo(ctx, p, elsewhere.reason)
	case err != nil:
		return err
	}
	return s.plan(ctx, origin, node, p)
}

// letGo records why and is done: whoever has the job reports it. The record of
// a run that we started ourselves stays as it is.
func (s *Service) letGo(ctx context.Context, p *page, reason string) error {
	zerolog.Ctx(ctx).Info().Msgf("Job let go: %s", reason)
	if p.published() || p.Phase == LetGo && p.Reason == reason {
		return nil
	}
	a := p.Admission
	a.Phase, a.Reason, a.DecidedAt = LetGo, reason, time.Now()
	return p.write(ctx, a)
}

// admit is the gate: it gives the node back when the job is ours to run.
func (s *Service) admit(ctx context.Context, origin *pullabv1.Origin, p *page) (*kernelci.Node, error) {
	id := origin.GetNodeId()
	node, err := s.api.Node(ctx, id)
	if err != nil {
		return nil, apiError("reading node "+id, err)
	}
	if err := s.gate(node, p); err != nil {
		return nil, err
	}
	if p.Phase == "" || p.Phase == LetGo {
		if err := p.write(ctx, s.takeUp(origin, node)); err != nil {
			return nil, err
		}
	}
	a := p.Admission
	if node.Data.JobID != a.JobID {
		if a.Unclaimed, err = s.claim(ctx, node, a.JobID); err != nil {
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
	case a == p.Admission:
		return node, nil
	case a.Unclaimed != "":
		// No effect to record: the plan's own record says it too.
		p.Admission = a
		return node, nil
	}
	return node, p.write(ctx, a)
}

// gate refuses a node that is not ours to run as it is now.
func (s *Service) gate(node *kernelci.Node, p *page) error {
	switch {
	case node.State == "done":
		return &errElsewhere{fmt.Sprintf("node %s is done already (result %s)", node.ID, orNone(node.Result))}
	case node.Data.JobID != "" && node.Data.JobID != p.JobID:
		return &errElsewhere{fmt.Sprintf("node %s is claimed by someone else (job_id %.100s)", node.ID, node.Data.JobID)}
	case p.published():
		// The run exists; its node's state and age are the runner's and the
		// submitter's business now.
		return nil
	case !slices.Contains(s.cfg.Translator.States, node.State):
		return queue.Drop(fmt.Errorf("node %s is in state %s; translator.states allows %v", node.ID, orNone(node.State), s.cfg.Translator.States))
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

// takeUp chooses the names that the job will have for good.
func (s *Service) takeUp(origin *pullabv1.Origin, node *kernelci.Node) Admission {
	now := time.Now()
	return Admission{
		Phase:     Claiming,
		RunID:     planner.RunID(s.fileArch(origin, node), node.ID, now),
		JobID:     origin.GetRuntime() + ":" + randomHex(),
		TakenUpAt: now,
	}
}

// fileArch is known before the definition is read: the catalog's for the
// platform, or what the node says.
func (s *Service) fileArch(origin *pullabv1.Origin, node *kernelci.Node) string {
	// A platform that is not in the catalog has the zero arch.
	p, _ := s.catalog.Lookup(origin.GetPlatform())
	return planner.FileArch(p.Arch, node.Data.Arch)
}

func randomHex() string {
	b := make([]byte, 16)
	// crypto/rand.Read never fails: it ends the process instead.
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// claim writes our job id on the node and looks whether it stuck. The first
// result says why the job goes on without a claim, when it does.
func (s *Service) claim(ctx context.Context, node *kernelci.Node, jobID string) (unclaimed string, err error) {
	switch {
	case s.cfg.Translator.Claim == ClaimOff:
		return "translator.claim is off", nil
	case s.cfg.KernelCI.APIToken == "":
		s.unclaimed(ctx, noToken)
		return noToken, nil
	}
	// data replaces what was there, so every field of it goes back.
	data, _ := node.Doc["data"].(map[string]any)
	data = maps.Clone(data)
	if data == nil {
		data = map[string]any{}
	}
	data["job_id"] = jobID
	if _, err := s.api.Update(ctx, node.ID, map[string]any{"data": data}); err != nil {
		return s.claimFailed(ctx, node.ID, err)
	}
	after, err := s.api.Node(ctx, node.ID)
	switch {
	case err != nil:
		return "", apiError("reading node "+node.ID+" after claiming it", err)
	case after.State == "done":
		return "", &errElsewhere{fmt.Sprintf("node %s became done (result %s) while it was claimed", node.ID, orNone(after.Result))}
	case after.Data.JobID != "" && after.Data.JobID != jobID:
		return "", &errElsewhere{fmt.Sprintf("node %s was claimed by someone else at the same moment (job_id %.100s)", node.ID, after.Data.JobID)}
	case after.Data.JobID == "":
		return "", queue.Retry(fmt.Errorf("the claim on node %s did not stick: someone wrote an older copy of the node over it", node.ID))
	}
	return "", nil
}

// claimFailed decides what a refused claim means: without rights, auto goes on.
func (s *Service) claimFailed(ctx context.Context, id string, err error) (string, error) {
	var api *kernelci.APIError
	if !errors.As(err, &api) || api.Status != http.StatusUnauthorized && api.Status != http.StatusForbidden {
		return "", apiError("claiming node "+id, err)
	}
	if s.cfg.Translator.Claim == ClaimRequired {
		return "", queue.RetryAfter(backoffMax, fmt.Errorf("claiming node %s: kernelci.api_token may not edit nodes of runtime %s, and translator.claim is required: %w",
			id, s.cfg.KernelCI.RuntimeName, err))
	}
	why := fmt.Sprintf("kernelci.api_token may not edit nodes (HTTP %d)", api.Status)
	s.unclaimed(ctx, why)
	return why, nil
}

// apiError says what a failed request to kernelci-api leads to.
func apiError(doing string, err error) error {
	wrapped := fmt.Errorf("%s: %w", doing, err)
	var api *kernelci.APIError
	switch {
	case errors.Is(err, kernelci.ErrNoNode):
		return queue.Drop(fmt.Errorf("%w: it was deleted, or the offer came from another API; nothing can be reported", wrapped))
	case !errors.As(err, &api):
		return queue.Retry(wrapped)
	case api.RetryAfter > 0 && api.Temporary():
		return queue.RetryAfter(api.RetryAfter, wrapped)
	case api.Temporary(), api.Status == http.StatusUnauthorized, api.Status == http.StatusForbidden:
		return queue.Retry(wrapped)
	default:
		return queue.Drop(wrapped)
	}
}
