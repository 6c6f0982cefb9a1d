// Package finisher finishes the nodes of jobs in kernelci-api: state, result,
// log, and the tree of rows. What it does with which node, and why in one write,
// is in package submitter's doc.
package finisher

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/pkg/queue"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/submitter/internal/intake"
	"github.com/pullab/pullab/services/submitter/internal/nodes"
	"github.com/pullab/pullab/services/submitter/internal/receipt"
)

const (
	// slowly is the pause where only a person can help.
	slowly = 5 * time.Minute
	// treeGrace is how long another process's unfinished tree write is left
	// alone: longer than a request may take on both ends.
	treeGrace = 2 * time.Minute
	// childPage is how many children are asked for at once.
	childPage = 1000
)

// API is the part of kernelci.Client that is used.
type API interface {
	Node(ctx context.Context, id string) (*kernelci.Node, error)
	Nodes(ctx context.Context, filter url.Values, limit, offset int) ([]*kernelci.Node, int, error)
	Update(ctx context.Context, id string, fields map[string]any) (*kernelci.Node, error)
	PutTree(ctx context.Context, id string, t kernelci.Tree) error
	WhoAmI(ctx context.Context) (kernelci.User, error)
}

// Finisher writes nodes.
type Finisher struct {
	desk   *intake.Desk
	api    API
	rights *rights
	// writer names this process in receipts.
	writer string
}

// New finisher. mode is On, Off or Auto; token is whether there is one.
func New(d *intake.Desk, a API, mode string, token bool) *Finisher {
	return &Finisher{desk: d, api: a, writer: rand.Text(), rights: newRights(mode, token, a)}
}

// Handle is the handler of consumer submitter-node.
func (s *Finisher) Handle(ctx context.Context, d *queue.Delivery) error {
	fin, err := intake.Finished(d)
	if err != nil || intake.Local(ctx, fin) {
		return err
	}
	may, err := s.rights.mayEdit(ctx, fin.GetOrigin().GetRuntime())
	if err != nil {
		return intake.Interruptible(ctx, queue.Retry(fmt.Errorf("asking kernelci-api for our rights; the node is finished when it answers: %w", err)))
	}
	if !may {
		return nil
	}
	r, err := s.desk.Receipt(ctx, fin)
	if err != nil {
		return err
	}
	if done := s.settled(ctx, r); done {
		return nil
	}
	return intake.Interruptible(ctx, s.finish(ctx, fin, r))
}

// settled tells whether the node needs nothing any more.
func (s *Finisher) settled(ctx context.Context, r *receipt.Record) bool {
	switch r.Node.State {
	case receipt.Written, receipt.Gone:
		if r.RunID != r.Run {
			zerolog.Ctx(ctx).Warn().Str("first", r.RunID).Str("run", r.Run).Msg("a second result for one node; the first one stands")
		}
		return true
	}
	return false
}

func (s *Finisher) finish(ctx context.Context, fin *pullabv1.RunFinished, r *receipt.Record) error {
	id := fin.GetOrigin().GetNodeId()
	n, err := s.api.Node(ctx, id)
	switch {
	case errors.Is(err, kernelci.ErrNoNode):
		zerolog.Ctx(ctx).Warn().Str("node", id).Str("offered_by", fin.GetOrigin().GetApiBaseUri()).Msg("the API does not know the node any more; nothing is left to finish")
		return s.note(ctx, r, receipt.Node{State: receipt.Gone})
	case err != nil:
		return s.later(fmt.Errorf("reading node %s: %w", id, err))
	}
	if n.Data.JobID != "" && n.Data.JobID != fin.GetJobId() {
		err := fmt.Errorf("node %s is claimed as %q, our run has %q: somebody else reports it, and our result is not written there; is another lab using runtime %q?",
			id, n.Data.JobID, fin.GetJobId(), fin.GetOrigin().GetRuntime())
		zerolog.Ctx(ctx).Error().Err(err).Msg("result of a node that is not ours")
		if err := s.note(ctx, r, receipt.Node{State: receipt.Foreign, Reason: err.Error()}); err != nil {
			return err
		}
		return queue.Drop(err)
	}
	tests, err := s.desk.Rows(ctx, fin)
	var lost *intake.RowsLostError
	switch {
	case errors.As(err, &lost):
		zerolog.Ctx(ctx).Error().Err(err).Msg("the node is finished without its tree")
	case err != nil:
		return err
	}
	fields := nodes.Finish(n, fin, tests)
	children := nodes.Children(n, fields, fin, tests)
	if err := s.write(ctx, r, n, fields, children); err != nil {
		return err
	}
	zerolog.Ctx(ctx).Info().Str("node", id).Any("result", fields["result"]).Int("children", len(children)).Msg("node finished")
	return s.note(ctx, r, receipt.Node{State: receipt.Written, Children: len(children)})
}

// write finishes the node in one request, whatever of it the API takes.
func (s *Finisher) write(ctx context.Context, r *receipt.Record, n *kernelci.Node, fields map[string]any, children []kernelci.Tree) error {
	if len(children) > 0 {
		err := s.writeTree(ctx, r, n, fields, children)
		if !refusedByAPI(err) {
			return err
		}
		zerolog.Ctx(ctx).Error().Err(err).Str("node", n.ID).Msg("the API refuses the result tree; finishing the node without it")
	}
	_, err := s.api.Update(ctx, n.ID, fields)
	switch {
	case refusedByAPI(err):
		return queue.Drop(fmt.Errorf("kernelci-api refuses to finish node %s: %w", n.ID, err))
	case errors.Is(err, kernelci.ErrNoNode):
		return queue.Retry(err) // reading it again tells for certain
	case err != nil:
		return s.later(fmt.Errorf("finishing node %s: %w", n.ID, err))
	}
	return nil
}

// writeTree replaces root and children in one request. Children have no key but
// their id, so those of an earlier attempt are looked up first; and as another
// process may still be in that attempt, the record says who writes since when.
func (s *Finisher) writeTree(ctx context.Context, r *receipt.Record, n *kernelci.Node, fields map[string]any, children []kernelci.Tree) error {
	if w := r.Node; w.State == receipt.Writing && w.Writer != s.writer && time.Since(w.At) < treeGrace {
		return queue.RetryAfter(treeGrace-time.Since(w.At), fmt.Errorf("another submitter began to write the tree of node %s at %s; looking again when it must have ended", n.ID, w.At.Format(time.RFC3339)))
	}
	if err := s.note(ctx, r, receipt.Node{State: receipt.Writing, Writer: s.writer}); err != nil {
		return err
	}
	below := func(id string) ([]*kernelci.Node, error) { return s.children(ctx, id) }
	existing, err := below(n.ID)
	if err == nil && len(existing) > 0 {
		err = nodes.Adopt(children, existing, below)
	}
	if err != nil {
		return s.later(fmt.Errorf("looking for children of node %s: %w", n.ID, err))
	}
	err = s.api.PutTree(ctx, n.ID, kernelci.Tree{Node: nodes.Document(n, fields), Children: children})
	if err != nil && !refusedByAPI(err) {
		return s.later(fmt.Errorf("writing the result tree of node %s: %w", n.ID, err))
	}
	return err
}

func (s *Finisher) children(ctx context.Context, id string) ([]*kernelci.Node, error) {
	var all []*kernelci.Node
	for {
		page, total, err := s.api.Nodes(ctx, url.Values{"parent": {id}}, childPage, len(all))
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		if len(page) == 0 || len(all) >= total {
			return all, nil
		}
	}
}

func (s *Finisher) note(ctx context.Context, r *receipt.Record, n receipt.Node) error {
	n.At = time.Now().UTC()
	return r.Change(ctx, func(rec *receipt.Receipt) { rec.Node = n })
}

// later tells how to go on after a failed request to the API.
func (s *Finisher) later(err error) error {
	var ae *kernelci.APIError
	switch {
	case !errors.As(err, &ae):
		return queue.Retry(err)
	case ae.Status == http.StatusUnauthorized, ae.Status == http.StatusForbidden:
		s.rights.doubt()
		return queue.RetryAfter(slowly, err)
	case ae.RetryAfter > 0:
		return queue.RetryAfter(ae.RetryAfter, err)
	case refusedByAPI(err):
		return queue.Drop(err)
	default:
		return queue.Retry(err)
	}
}

// refusedByAPI: the same request will never be taken.
func refusedByAPI(err error) bool {
	var ae *kernelci.APIError
	if !errors.As(err, &ae) {
		return false
	}
	switch ae.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return true
	}
	return false
}
