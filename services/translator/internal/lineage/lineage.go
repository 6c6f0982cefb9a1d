// Package lineage walks from a job node to the kbuild and the checkout that it
// came from, and remembers what it read: one kbuild has dozens of jobs.
package lineage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pullab/pullab/pkg/kernelci"
)

// MaxHops from a job upwards, the predecessor's number (predecessor.md 1.1).
const MaxHops = 8

// nodes is the part of kernelci.Client that a walk needs.
type nodes interface {
	Node(ctx context.Context, id string) (*kernelci.Node, error)
}

// Chain is where a job comes from. Nodes that were not reached are nil.
type Chain struct {
	Job, Kbuild, Checkout *kernelci.Node
	// Broken says why the walk ended before the checkout; nil when it did not.
	Broken error
}

// Walker walks and remembers.
type Walker struct {
	api   nodes
	cache *cache
}

// NewWalker keeps at most size nodes, each for ttl: a kbuild's kind, parent and
// data do not change in that time in any way that matters here.
func NewWalker(api nodes, size int, ttl time.Duration) *Walker {
	return &Walker{api: api, cache: newCache(size, ttl)}
}

// Walk follows parents from job. An error is one that may pass; a chain that
// ends early for good is no error, but says so in Broken.
func (w *Walker) Walk(ctx context.Context, job *kernelci.Node) (Chain, error) {
	c := Chain{Job: job}
	at := job
	for range MaxHops {
		if at.Parent == "" {
			c.Broken = fmt.Errorf("node %s (%s) has no parent", at.ID, at.Kind)
			return c, nil
		}
		parent, err := w.node(ctx, at.Parent)
		if final(err) {
			c.Broken = fmt.Errorf("node %s, parent of %s: %w", at.Parent, at.ID, err)
			return c, nil
		}
		if err != nil {
			return Chain{}, fmt.Errorf("reading node %s, an ancestor of job %s: %w", at.Parent, job.ID, err)
		}
		switch {
		case parent.Kind == "kbuild" && c.Kbuild == nil:
			c.Kbuild = parent
		case parent.Kind == "checkout":
			c.Checkout = parent
			return c, nil
		}
		at = parent
	}
	c.Broken = fmt.Errorf("no checkout within %d hops", MaxHops)
	return c, nil
}

// final tells whether asking again cannot help: no such node, or an answer
// that the API would give again.
func final(err error) bool {
	var api *kernelci.APIError
	return errors.Is(err, kernelci.ErrNoNode) || errors.As(err, &api) && !api.Temporary()
}

func (w *Walker) node(ctx context.Context, id string) (*kernelci.Node, error) {
	if n := w.cache.get(id); n != nil {
		return n, nil
	}
	n, err := w.api.Node(ctx, id)
	if err != nil {
		return nil, err
	}
	slim := *n
	// The whole document is for writers, and large.
	slim.Doc = nil
	w.cache.put(id, &slim)
	return &slim, nil
}
