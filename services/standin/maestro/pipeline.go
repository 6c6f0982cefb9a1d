package maestro

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pullab/pullab/services/standin/internal/node"
	"github.com/pullab/pullab/services/standin/internal/pytime"
	"github.com/pullab/pullab/services/standin/internal/query"
)

// The pipeline's side of the API: what its services do to nodes, as methods that
// a test or a World calls.

// NewID makes an ObjectId of this second.
func (s *Server) NewID() string { return s.store.ids.next(time.Now()) }

// NewNode is a node with the model's defaults, owned by the pipeline.
func (s *Server) NewNode(kind, name string) Node {
	n := node.Defaults(time.Now())
	submitter := "service:pipeline"
	n.Kind, n.Name, n.Owner, n.Submitter = kind, name, &s.opts.Owner, &submitter
	return n
}

// Insert creates n as the pipeline does, with an event. An id is made unless n
// has one.
func (s *Server) Insert(n Node) (Node, error) {
	if err := checkKind(&n); err != nil {
		return Node{}, fmt.Errorf("node %s: %w", n.Name, err)
	}
	e, err := s.create(n)
	if err != nil {
		return Node{}, err
	}
	return e.node, nil
}

// Update changes a node as the pipeline does, with an event and without any
// check.
func (s *Server) Update(id string, change func(n *Node)) (Node, error) {
	old := s.store.get(id)
	if old == nil {
		return Node{}, fmt.Errorf("no node %s", id)
	}
	n := old.node
	change(&n)
	n.ID, n.Updated = old.node.ID, node.Stamp(pytime.Truncate(time.Now()))
	e, err := s.store.put(n)
	if err != nil {
		return Node{}, err
	}
	return e.node, s.updated(e, &old.node, false)
}

// Node by its id.
func (s *Server) Node(id string) (Node, bool) {
	if e := s.store.get(id); e != nil {
		return e.node, true
	}
	return Node{}, false
}

// Children of a node, in the order they came.
func (s *Server) Children(id string) []Node {
	var out []Node
	for _, e := range s.store.find(nil) {
		if node.Text(e.node.Parent) == id {
			out = append(out, e.node)
		}
	}
	return out
}

// Available lists the nodes of a kind that wait for somebody.
func (s *Server) Available(kind string) []Node {
	var out []Node
	for _, e := range s.store.find([]query.Cond{query.Equal("kind", kind), query.Equal("state", "available")}) {
		out = append(out, e.node)
	}
	return out
}

// Publish makes an event that is about no node, on any channel.
func (s *Server) Publish(channel string, data any) error {
	return s.store.publish(channel, &s.opts.Owner, data, nil)
}

// TickTimeouts is one round of the timeout service (kernelci-wire.md 2.4; the
// original's period is 60 s): nodes of the pipeline whose time is over are done,
// incomplete if they had no result. It gives their ids.
func (s *Server) TickTimeouts() ([]string, error) {
	now := time.Now()
	var closed []string
	for _, e := range s.store.find(nil) {
		n := e.node
		if n.State == "done" || node.Text(n.Owner) != s.opts.Owner || !n.Timeout.Time().Before(now) {
			continue
		}
		data := n.DataMap()
		result := n.Result
		if result == nil {
			incomplete := "incomplete"
			result = &incomplete
			if data == nil {
				data = map[string]any{}
			}
			data["error_code"], data["error_msg"] = "node_timeout", "Node timed-out"
		}
		raw, err := json.Marshal(data)
		if err != nil {
			return closed, err
		}
		if _, err := s.Update(n.ID, func(n *Node) { n.State, n.Result, n.Data = "done", result, raw }); err != nil {
			return closed, err
		}
		closed = append(closed, n.ID)
	}
	return closed, nil
}

// maxRetries is how often a job is offered again.
const maxRetries = 3

// Retries lists the jobs whose done events since the last call make the retry
// service offer them again (kernelci-wire.md 2.5): incomplete ones, and failed
// ones whose name starts with baseline. The new node has RetryCounter + 1 of the
// node as it is then.
func (s *Server) Retries() []Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.retried
	var out []Node
	for _, e := range s.store.findEvents(time.Time{}, nil, 0) {
		if e.seq <= seen {
			continue
		}
		s.retried = max(s.retried, e.seq)
		data, _ := e.doc["data"].(map[string]any)
		n, ok := s.Node(e.nodeID)
		if !ok || data["state"] != "done" || data["kind"] != "job" || data["previous_state"] == "done" || n.RetryCounter >= maxRetries {
			continue
		}
		failed := data["result"] == "fail" && strings.HasPrefix(n.Name, "baseline")
		if (data["result"] == "incomplete" || failed) && !slices.ContainsFunc(out, func(o Node) bool { return o.ID == n.ID }) {
			out = append(out, n)
		}
	}
	return out
}
