package admission

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/pkg/queue"
)

// claimID is what we write on a node. A node that carries it already without a
// record of ours was claimed before our records were lost.
func (d *Desk) claimID(n *kernelci.Node) string {
	return kernelci.ClaimID(n.Data.Runtime, d.settings.Lab, n.ID)
}

// claim writes our job id on the node and looks whether it stuck. The first
// result says why the job goes on without a claim, when it does.
func (d *Desk) claim(ctx context.Context, node *kernelci.Node, jobID string) (unclaimed string, err error) {
	switch {
	case d.settings.Claim == Off:
		return "translator.claim is off", nil
	case !d.settings.HaveToken:
		d.unclaimed(ctx, noToken)
		return noToken, nil
	}
	// data replaces what was there, so every field of it goes back.
	data, _ := node.Doc["data"].(map[string]any)
	data = maps.Clone(data)
	if data == nil {
		data = map[string]any{}
	}
	data["job_id"] = jobID
	if _, err := d.api.Update(ctx, node.ID, map[string]any{"data": data}); err != nil {
		return d.claimFailed(ctx, node.ID, err)
	}
	after, err := d.api.Node(ctx, node.ID)
	switch {
	case err != nil:
		return "", Verdict("reading node "+node.ID+" after claiming it", err)
	case after.State == "done":
		return "", &elsewhereError{fmt.Sprintf("node %s became done (result %s) while it was claimed", node.ID, orNone(after.Result))}
	case after.Data.JobID != "" && after.Data.JobID != jobID:
		return "", &elsewhereError{fmt.Sprintf("node %s was claimed by someone else at the same moment (job_id %.100s)", node.ID, after.Data.JobID)}
	case after.Data.JobID == "":
		return "", queue.Retry(fmt.Errorf("the claim on node %s did not stick: someone wrote an older copy of the node over it", node.ID))
	}
	return "", nil
}

// claimFailed decides what a refused claim means: without rights, auto goes on.
func (d *Desk) claimFailed(ctx context.Context, id string, err error) (string, error) {
	var api *kernelci.APIError
	if !errors.As(err, &api) || api.Status != http.StatusUnauthorized && api.Status != http.StatusForbidden {
		return "", Verdict("claiming node "+id, err)
	}
	if d.settings.Claim == Required {
		return "", queue.RetryAfter(d.settings.RetryClaim, fmt.Errorf("claiming node %s: kernelci.api_token may not edit nodes of runtime %s, and translator.claim is required: %w",
			id, d.settings.Runtime, err))
	}
	why := fmt.Sprintf("kernelci.api_token may not edit nodes (HTTP %d)", api.Status)
	d.unclaimed(ctx, why)
	return why, nil
}

// Verdict says what a failed request to kernelci-api leads to.
func Verdict(doing string, err error) error {
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

const noToken = "there is no kernelci.api_token"

// Announce warns at the start about what is known to be missing.
func (d *Desk) Announce(ctx context.Context) {
	if d.settings.Claim == Auto && !d.settings.HaveToken {
		d.unclaimed(ctx, noToken)
	}
}

func (d *Desk) unclaimed(ctx context.Context, why string) {
	d.warn.Do(func() {
		zerolog.Ctx(ctx).Warn().Msgf("Jobs are run without a claim, because %s: another lab of runtime %s may run them too. "+
			"Set translator.claim to off to silence this, or to required to wait for a working token.", why, d.settings.Runtime)
	})
}
