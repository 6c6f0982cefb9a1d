package maestro

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/pullab/pullab/services/standin/internal/node"
	"github.com/pullab/pullab/services/standin/internal/pytime"
	"github.com/pullab/pullab/services/standin/internal/query"
)

// editable finds the node of the request's path that u may edit, in the order of
// checks of kernelci-wire.md 1.6; it answers for itself when there is none.
func (s *Server) editable(w http.ResponseWriter, r *http.Request, u User) (*entry, bool) {
	id := r.PathValue("id")
	if !validID(w, id) {
		return nil, false
	}
	e := s.store.get(id)
	switch {
	case e == nil:
		detail(w, http.StatusNotFound, "Node not found with id: "+id)
	case !mayEdit(u, &e.node):
		detail(w, http.StatusUnauthorized, "Unauthorized to complete the operation")
	default:
		return e, true
	}
	return nil, false
}

// refuseNode answers for a document that does not fit: what the door checks is
// 422, what a handler checks 400.
func refuseNode(w http.ResponseWriter, err error) {
	var problems node.Problems
	if errors.As(err, &problems) {
		detail(w, http.StatusUnprocessableEntity, problems)
		return
	}
	detail(w, http.StatusBadRequest, err.Error())
}

// noevent reads the flag; it answers for itself.
func noevent(w http.ResponseWriter, r *http.Request) (bool, bool) {
	params, _ := lastValues(r.URL.RawQuery)
	v, given := params["noevent"]
	switch strings.ToLower(v) {
	case "true", "1", "yes", "on", "t", "y":
		return true, true
	case "false", "0", "no", "off", "f", "n":
		return false, true
	}
	if !given {
		return false, true
	}
	detail(w, http.StatusUnprocessableEntity, node.Problems{{
		Type: "bool_parsing", Loc: []any{"query", "noevent"}, Msg: "Input should be a valid boolean, unable to interpret input", Input: v,
	}})
	return false, false
}

// putNode replaces a node by the body: what was left out goes back to the
// model's default. owner, submitter and user_groups stay as they are.
func (s *Server) putNode(w http.ResponseWriter, r *http.Request, u User) {
	old, ok := s.editable(w, r, u)
	if !ok {
		return
	}
	quiet, ok := noevent(w, r)
	if !ok {
		return
	}
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	n, err := node.Parse(body, time.Now(), "body")
	if err != nil {
		refuseNode(w, err)
		return
	}
	n.ID, n.Owner, n.Submitter, n.UserGroups = old.node.ID, old.node.Owner, old.node.Submitter, old.node.UserGroups
	if err := checkKind(&n); err != nil {
		refuseNode(w, err)
		return
	}
	if !old.node.MayBecome(n.State) {
		refuseNode(w, badRequest("Transition not allowed with state: "+n.State))
		return
	}
	if n.KCIDBBridge == old.node.KCIDBBridge {
		n.KCIDBBridge = false
	}
	s.replace(w, old, n, quiet)
}

// checkKind is what parsing through the kind's own model refuses.
func checkKind(n *Node) error {
	if !node.Known(n.Kind) {
		return badRequest("Unsupported node kind: " + n.Kind)
	}
	return n.CheckData()
}

// replace stores n in the place of old, tells, and replies.
func (s *Server) replace(w http.ResponseWriter, old *entry, n Node, quiet bool) {
	n.Updated = node.Stamp(pytime.Truncate(time.Now()))
	e, err := s.store.put(n)
	if err == nil && !quiet {
		err = s.updated(e, &old.node, false)
	}
	if err != nil {
		fail(w)
		return
	}
	replyRaw(w, http.StatusOK, e.raw)
}

// patchNode changes the fields in the body; artifacts and data are replaced
// whole.
func (s *Server) patchNode(w http.ResponseWriter, r *http.Request, u User) {
	old, ok := s.editable(w, r, u)
	if !ok {
		return
	}
	quiet, ok := noevent(w, r)
	if !ok {
		return
	}
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(body, &fields) != nil || fields == nil {
		refuseNode(w, node.Problems{{Type: "dict_type", Loc: []any{"body"}, Msg: "Input should be a valid dictionary"}})
		return
	}
	for k := range fields {
		if !slices.Contains(node.PatchFields, k) {
			delete(fields, k)
		}
	}
	if len(fields) == 0 {
		refuseNode(w, badRequest("No fields to update"))
		return
	}
	n, err := node.Patch(old.node, fields)
	var problems node.Problems
	if errors.As(err, &problems) {
		err = badRequest(old.node.ClassText(problems))
	} else if err == nil {
		err = checkKind(&n)
	}
	if err == nil && !old.node.MayBecome(n.State) {
		err = badRequest("Transition not allowed with state: StateValues." + strings.ToUpper(n.State))
	}
	if err != nil {
		refuseNode(w, err)
		return
	}
	if _, asked := fields["processed_by_kcidb_bridge"]; !asked || n.KCIDBBridge == old.node.KCIDBBridge {
		n.KCIDBBridge = false
	}
	s.replace(w, old, n, quiet)
}

// postNode creates a node that the caller owns.
func (s *Server) postNode(w http.ResponseWriter, r *http.Request, u User) {
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	n, err := node.Parse(body, time.Now(), "body")
	if err != nil {
		refuseNode(w, err)
		return
	}
	if p := node.Text(n.Parent); n.Parent != nil {
		if !validID(w, p) {
			return
		}
		if s.store.get(p) == nil {
			detail(w, http.StatusNotFound, "Parent not found with id: "+p)
			return
		}
	}
	for _, g := range n.UserGroups {
		if !s.groupExists(g) {
			refuseNode(w, badRequest("User group does not exist with name: "+g))
			return
		}
	}
	if err := checkKind(&n); err != nil {
		refuseNode(w, err)
		return
	}
	if n.ID != "" {
		refuseNode(w, badRequest("Object cannot be created with id: "+n.ID))
		return
	}
	n.Owner = &u.Username
	e, err := s.create(n)
	if err != nil {
		fail(w)
		return
	}
	replyRaw(w, http.StatusOK, e.raw)
}

func (s *Server) groupExists(name string) bool {
	if slices.Contains(s.opts.Groups, name) {
		return true
	}
	for _, u := range s.opts.Users {
		if slices.Contains(u.Groups, name) {
			return true
		}
	}
	return false
}

func (s *Server) create(n Node) (*entry, error) {
	if n.ID == "" {
		n.ID = s.store.ids.next(time.Now())
	}
	e, err := s.store.put(n)
	if err != nil {
		return nil, err
	}
	data := newEventData("created", &e.node, false)
	return e, s.store.publish("node", n.Owner, data, data.doc(e))
}

// eventData is the data of a node event (kernelci-wire.md 1.4).
type eventData struct {
	Op        string          `json:"op"`
	ID        string          `json:"id"`
	Kind      string          `json:"kind"`
	Name      string          `json:"name"`
	Path      []string        `json:"path"`
	Group     *string         `json:"group"`
	State     string          `json:"state"`
	Result    *string         `json:"result"`
	Owner     *string         `json:"owner"`
	Data      json.RawMessage `json:"data"`
	Hierarchy bool            `json:"is_hierarchy"`
}

type updateData struct {
	eventData
	PreviousState  string  `json:"previous_state"`
	PreviousResult *string `json:"previous_result"`
}

func newEventData(op string, n *Node, hierarchy bool) eventData {
	return eventData{op, n.ID, n.Kind, n.Name, n.Path, n.Group, n.State, n.Result, n.Owner, n.Data, hierarchy}
}

// doc is what queries see of the event: the node's own document, so that it is
// not decoded a second time.
func (d eventData) doc(e *entry) query.Doc {
	return query.Doc{
		"op": d.Op, "id": e.doc["id"], "kind": e.doc["kind"], "name": e.doc["name"], "path": e.doc["path"], "group": e.doc["group"],
		"state": e.doc["state"], "result": e.doc["result"], "owner": e.doc["owner"], "data": e.doc["data"], "is_hierarchy": d.Hierarchy,
	}
}

func (s *Server) updated(e *entry, old *Node, hierarchy bool) error {
	data := updateData{newEventData("updated", &e.node, hierarchy), old.State, old.Result}
	doc := data.doc(e)
	doc["previous_state"], doc["previous_result"] = old.State, nil
	if old.Result != nil {
		doc["previous_result"] = *old.Result
	}
	return s.store.publish("node", e.node.Owner, data, doc)
}
