package maestro

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/pullab/pullab/services/standin/internal/node"
	"github.com/pullab/pullab/services/standin/internal/pytime"
)

// tree is a parsed body of PUT /nodes/{id}.
type tree struct {
	node     Node
	children []tree
}

// putNodes replaces a root by the body, without a look at the state machine,
// and writes what is below it. Permission is checked on the root alone, and only
// the root makes an event.
func (s *Server) putNodes(w http.ResponseWriter, r *http.Request, u User) {
	old, ok := s.editable(w, r, u)
	if !ok {
		return
	}
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	t, err := parseTree(body, []any{"body"})
	if err != nil {
		refuseNode(w, err)
		return
	}
	stored, err := s.storeTree(t, nil, &old.node, u)
	if err != nil {
		refuseNode(w, err)
		return
	}
	if err := s.updated(stored[0], &old.node, true); err != nil {
		fail(w)
		return
	}
	replyRaw(w, http.StatusOK, array(stored))
}

func parseTree(raw []byte, loc []any) (tree, error) {
	var fields struct {
		Node     json.RawMessage    `json:"node"`
		Children *[]json.RawMessage `json:"child_nodes"`
	}
	at := func(l ...any) []any { return append(slices.Clone(loc), l...) }
	var missing node.Problems
	if err := json.Unmarshal(raw, &fields); err != nil {
		return tree{}, node.Problems{{Type: "model_attributes_type", Loc: loc, Msg: "Input should be a valid dictionary or object to extract fields from"}}
	}
	if fields.Node == nil {
		missing = append(missing, node.Problem{Type: "missing", Loc: at("node"), Msg: "Field required"})
	}
	if fields.Children == nil {
		missing = append(missing, node.Problem{Type: "missing", Loc: at("child_nodes"), Msg: "Field required"})
	}
	if missing != nil {
		return tree{}, missing
	}
	n, err := node.Parse(fields.Node, time.Now(), at("node")...)
	if err != nil {
		return tree{}, err
	}
	t := tree{node: n}
	for i, c := range *fields.Children {
		child, err := parseTree(c, at("child_nodes", i))
		if err != nil {
			return tree{}, err
		}
		t.children = append(t.children, child)
	}
	return t, nil
}

// storeTree writes t depth first, as the original does: what came before a
// refusal stays written. root is the stored root, which rules submitter and
// treeid of all.
func (s *Server) storeTree(t tree, parent *Node, root *Node, u User) ([]*entry, error) {
	n := t.node
	if err := checkKind(&n); err != nil {
		return nil, err
	}
	if err := n.StripData(); err != nil {
		return nil, err
	}
	if node.Text(n.Owner) == "" {
		n.Owner = &u.Username
	}
	n.Submitter, n.TreeID = root.Submitter, root.TreeID
	if parent != nil {
		n.Parent = &parent.ID
	}
	n.ID = strings.ToLower(n.ID)
	if n.ID == "" {
		n.ID = s.store.ids.next(time.Now())
	} else {
		if s.store.get(n.ID) == nil {
			return nil, badRequest("No object found with id: " + n.ID)
		}
		n.Updated = node.Stamp(pytime.Truncate(time.Now()))
	}
	e, err := s.store.put(n)
	if err != nil {
		return nil, err
	}
	stored := []*entry{e}
	for _, c := range t.children {
		below, err := s.storeTree(c, &e.node, root, u)
		if err != nil {
			return nil, err
		}
		stored = append(stored, below...)
	}
	return stored, nil
}

// putNodeset sets processed_by_kcidb_bridge of many nodes; those that the caller
// may not edit are skipped.
func (s *Server) putNodeset(w http.ResponseWriter, r *http.Request, u User) {
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	var req struct {
		Nodes []string `json:"nodes"`
		Field string   `json:"field"`
		Value string   `json:"value"`
	}
	if err := json.Unmarshal(body, &req); err != nil {
		refuseNode(w, node.Problems{{Type: "model_attributes_type", Loc: []any{"body"}, Msg: "Input should be a valid dictionary or object to extract fields from"}})
		return
	}
	if req.Field != "processed_by_kcidb_bridge" || req.Value != "true" && req.Value != "false" {
		refuseNode(w, badRequest(fmt.Sprintf("Field %s is not allowed to be set to %s", req.Field, req.Value)))
		return
	}
	count := 0
	for _, id := range req.Nodes {
		e := s.store.get(id)
		if e == nil || !mayEdit(u, &e.node) {
			continue
		}
		n := e.node
		n.KCIDBBridge = req.Value == "true"
		if _, err := s.store.put(n); err != nil {
			fail(w)
			return
		}
		count++
	}
	reply(w, http.StatusOK, count)
}
