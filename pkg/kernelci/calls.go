package kernelci

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// escape for a query; a colon needs none, and stays readable in a log.
func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "%3A", ":") }

// Events asks once; the page is unsorted, as the API gives it.
func (c *Client) Events(ctx context.Context, q EventQuery) ([]Event, error) {
	k := call{method: http.MethodGet, path: "/events", query: eventsQuery(q), limit: maxPage}
	b, err := c.do(ctx, k)
	if err != nil {
		return nil, err
	}
	events, err := decodeEvents(b)
	if err != nil {
		return nil, c.scrub(k.bad(err))
	}
	for i := range events {
		events[i].Err = c.scrub(events[i].Err)
	}
	return events, nil
}

// EventsURL is the URL that Events would ask, for the log.
func (c *Client) EventsURL(q EventQuery) string {
	return c.base.String() + "/events?" + eventsQuery(q)
}

// nodeID is what may stand in a path: the API's ids are 24 hex digits, and a
// parent id is bytes from outside that must not lead to another route.
var nodeID = regexp.MustCompile(`^[0-9A-Za-z_-]{1,64}$`)

// nodePath refuses an impossible id as the API would, without asking it.
func nodePath(method, route, id string) (string, error) {
	if !nodeID.MatchString(id) {
		return "", &APIError{Method: method, Path: route, Status: http.StatusBadRequest,
			Detail: fmt.Sprintf("%.80q is not a valid ObjectId", id)}
	}
	return route + id, nil
}

// Node reads one node; ErrNoNode when there is none.
func (c *Client) Node(ctx context.Context, id string) (*Node, error) {
	path, err := nodePath(http.MethodGet, "/node/", id)
	if err != nil {
		return nil, err
	}
	k := call{method: http.MethodGet, path: path, limit: maxNode}
	b, err := c.do(ctx, k)
	if err != nil {
		return nil, err
	}
	return c.one(k, id, b)
}

func (c *Client) one(k call, id string, b []byte) (*Node, error) {
	n, err := decodeNode(b)
	switch {
	case err != nil:
		return nil, c.scrub(k.bad(err))
	case n == nil:
		return nil, fmt.Errorf("%s %s: %w", k.method, k.path, ErrNoNode)
	case !strings.EqualFold(n.ID, id):
		return nil, k.bad(fmt.Errorf("the answer is node %.40q, asked was %s", n.ID, id))
	}
	return n, nil
}

// Nodes reads one page of /nodes. Nodes that could not be decoded are left out
// and told by an *ItemsError; the others and total are good beside it.
func (c *Client) Nodes(ctx context.Context, filter url.Values, limit, offset int) (nodes []*Node, total int, err error) {
	q := maps.Clone(filter)
	if q == nil {
		q = url.Values{}
	}
	q.Set("limit", strconv.Itoa(limit))
	q.Set("offset", strconv.Itoa(offset))
	k := call{method: http.MethodGet, path: "/nodes", query: q.Encode(), limit: maxPage}
	b, err := c.do(ctx, k)
	if err != nil {
		return nil, 0, err
	}
	nodes, total, err = decodePage(b)
	var some *ItemsError
	switch {
	case errors.As(err, &some):
		return nodes, total, c.scrub(err)
	case err != nil:
		return nil, 0, c.scrub(k.bad(err))
	}
	return nodes, total, nil
}

// WhoAmI asks whose token it is.
func (c *Client) WhoAmI(ctx context.Context) (User, error) {
	k := call{method: http.MethodGet, path: "/whoami", limit: maxNode}
	b, err := c.do(ctx, k)
	if err != nil {
		return User{}, err
	}
	var d struct {
		Username    string `json:"username"`
		IsSuperuser bool   `json:"is_superuser"`
		Groups      []struct {
			Name string `json:"name"`
		} `json:"groups"`
	}
	if err := unmarshal(b, &d); err != nil {
		return User{}, c.scrub(k.bad(err))
	}
	if d.Username == "" {
		return User{}, k.bad(errors.New("a user without a username"))
	}
	u := User{Username: d.Username, IsSuperuser: d.IsSuperuser}
	for _, g := range d.Groups {
		u.Groups = append(u.Groups, g.Name)
	}
	return u, nil
}

// patchable are the fields that PATCH takes; it ignores others silently
// (kernelci-wire.md 1.6).
var patchable = []string{
	"state", "result", "artifacts", "data", "debug", "jobfilter", "platform_filter", "timeout", "holdoff", "processed_by_kcidb_bridge",
}

// Update writes the given top-level fields of a node, by PATCH, or where the API
// has none (405) by reading the document and PUTting all of it back with the
// fields changed. artifacts and data replace what was there: merge first. The
// node is as the API stored it.
func (c *Client) Update(ctx context.Context, id string, fields map[string]any) (*Node, error) {
	path, err := nodePath(http.MethodPatch, "/node/", id)
	if err != nil {
		return nil, err
	}
	k := call{method: http.MethodPatch, path: path, body: fields, limit: maxNode}
	if c.noEvent {
		k.query = "noevent=true"
	}
	for f := range fields {
		if !slices.Contains(patchable, f) {
			return c.replace(ctx, k, id, fields)
		}
	}
	b, err := c.do(ctx, k)
	var api *APIError
	if errors.As(err, &api) {
		switch api.Status {
		// 404 is either an unknown node or an unknown route: replace finds out.
		case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
			return c.replace(ctx, k, id, fields)
		}
	}
	if err != nil {
		return nil, err
	}
	return c.one(k, id, b)
}

// replace reads the node as late as possible and puts all of it back: a field
// left out is reset by the API, and a lost retry_counter makes KernelCI retry
// for ever.
func (c *Client) replace(ctx context.Context, k call, id string, fields map[string]any) (*Node, error) {
	n, err := c.Node(ctx, id)
	if err != nil {
		return nil, err
	}
	doc := n.Doc
	maps.Copy(doc, fields)
	k.method, k.body = http.MethodPut, doc
	b, err := c.do(ctx, k)
	if err != nil {
		return nil, err
	}
	return c.one(k, id, b)
}

// PutTree writes a result tree below an existing root. Root and children are
// stored as given, without a check of the state machine. The answer, all stored
// nodes with the root first, is looked at: a page that some proxy puts in its
// place with 200 is not a tree that was written.
func (c *Client) PutTree(ctx context.Context, id string, t Tree) error {
	path, err := nodePath(http.MethodPut, "/nodes/", id)
	if err != nil {
		return err
	}
	k := call{method: http.MethodPut, path: path, body: t, limit: maxPage}
	b, err := c.do(ctx, k)
	if err != nil {
		return err
	}
	stored, _, err := elements(b)
	switch {
	case err != nil:
		return c.scrub(k.bad(err))
	case len(stored) == 0:
		return k.bad(errors.New("the answer is an empty list, and should begin with the root"))
	}
	_, err = c.one(k, id, stored[0])
	return err
}
