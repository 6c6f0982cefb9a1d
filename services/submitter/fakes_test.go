package submitter_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pullab/pullab/services/submitter/internal/kcidb"
)

const (
	jwt      = "kcidb-secret"
	apiToken = "api-secret"
)

// world is the two far sides, reached without sockets. Each sees its own token
// and no other.
type world struct {
	kcidb *fakeKCIDB
	api   *fakeAPI
}

func newWorld(t testing.TB) *world {
	return &world{
		kcidb: &fakeKCIDB{t: t, subs: map[string]*submission{}, sent: map[string]int{}, stored: map[string]int{}, delay: 3 * time.Second},
		api:   &fakeAPI{t: t, nodes: map[string]map[string]any{}, below: map[string][]string{}, patch: true, groups: []string{"node:edit:any"}},
	}
}

func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
		r.Body.Close()
	}
	rec := httptest.NewRecorder()
	var err error
	switch r.URL.Host {
	case "kcidb.test":
		err = w.kcidb.serve(rec, r, body)
	case "api.test":
		err = w.api.serve(rec, r, body)
	default:
		err = fmt.Errorf("a request to %s", r.URL.Host)
	}
	if err != nil {
		return nil, err
	}
	return rec.Result(), nil
}

type submission struct {
	at    time.Time
	doc   []byte
	state kcidb.State
}

// fakeKCIDB answers as kcidb-restd-rs, and takes submissions up after delay.
type fakeKCIDB struct {
	t  testing.TB
	mu sync.Mutex
	// down refuses connections; status other than 0 is answered to everything.
	down   bool
	status int
	delay  time.Duration
	subs   map[string]*submission
	posts  int
	// sent counts, by row id, how often a row was submitted, stored how often it
	// was in an accepted one.
	sent, stored map[string]int
	// verdict of a submission when it is taken up; nil accepts.
	verdict func(n int, doc []byte) kcidb.State
	// refuse with 400 at once.
	refuse func(doc []byte) bool
	// onPost is called with the number of the post, before it is answered.
	onPost func(n int)
	sizes  []int
}

func (k *fakeKCIDB) set(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
}

func (k *fakeKCIDB) serve(w http.ResponseWriter, r *http.Request, body []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.down {
		return fmt.Errorf("connection refused")
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	answer := func(status int, id, st, msg string) error {
		w.WriteHeader(status)
		return json.NewEncoder(w).Encode(map[string]string{"id": id, "status": st, "message": msg})
	}
	if r.Header.Get("Authorization") != "Bearer "+jwt {
		k.t.Errorf("KCIDB got Authorization %q", r.Header.Get("Authorization"))
	}
	if k.status == 401 {
		return answer(401, "0", "error", "InvalidSignature")
	}
	if k.status != 0 {
		return answer(k.status, "0", "error", "Internal server error")
	}
	switch r.Method + " " + r.URL.Path {
	case "GET /authtest":
		return answer(200, "0", "ok", "Authentication successful")
	case "POST /submit":
		id := k.submit(body)
		if id == "" {
			return answer(400, "0", "error", "refused")
		}
		return answer(200, id, "ok", "Received")
	case "GET /status":
		s := k.subs[r.URL.Query().Get("id")]
		if s == nil {
			return answer(404, "X", "notfound", "File not found")
		}
		k.take()
		return answer(200, "X", string(s.state), "")
	}
	k.t.Errorf("KCIDB has no %s %s", r.Method, r.URL)
	return answer(404, "0", "error", "")
}

func (k *fakeKCIDB) submit(doc []byte) string {
	if err := kcidb.Check(doc); err != nil {
		k.t.Errorf("an invalid document was sent: %v", err)
	}
	k.posts++
	if k.onPost != nil {
		k.onPost(k.posts)
	}
	if k.refuse != nil && k.refuse(doc) {
		return ""
	}
	ids := rowIDs(doc)
	k.sizes = append(k.sizes, len(ids))
	for _, id := range ids {
		k.sent[id]++
	}
	id := fmt.Sprintf("sub%029d", k.posts)
	k.subs[id] = &submission{at: time.Now(), doc: doc, state: kcidb.Ready}
	return id
}

// take is the ingester's round.
func (k *fakeKCIDB) take() {
	for id, s := range k.subs {
		if s.state != kcidb.Ready || time.Since(s.at) < k.delay {
			continue
		}
		s.state = kcidb.Processed
		if k.verdict != nil {
			var n int
			fmt.Sscanf(id, "sub%d", &n)
			s.state = k.verdict(n, s.doc)
		}
		if s.state == kcidb.Processed {
			for _, id := range rowIDs(s.doc) {
				k.stored[id]++
			}
		}
	}
}

func rowIDs(doc []byte) (ids []string) {
	var d struct{ Tests []struct{ ID string } }
	if json.Unmarshal(doc, &d) != nil {
		return nil
	}
	for _, t := range d.Tests {
		ids = append(ids, t.ID)
	}
	return ids
}

// fakeAPI is kernelci-api as far as the submitter sees it, with the traps of
// kernelci-wire.md 1.6: PUT resets what is left out, children without an id are
// made anew, unknown nodes are null.
type fakeAPI struct {
	t     testing.TB
	mu    sync.Mutex
	down  bool
	patch bool
	// deny answers every write with 401.
	deny bool
	// refuseTree answers PUT /nodes with 413.
	refuseTree bool
	// afterTree is called when a tree is stored; an error breaks the connection.
	afterTree func() error
	groups    []string
	nodes     map[string]map[string]any
	// below has the ids of children by their parent's.
	below  map[string][]string
	made   int
	writes []string
}

func (a *fakeAPI) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

func (a *fakeAPI) serve(w http.ResponseWriter, r *http.Request, body []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down {
		return fmt.Errorf("connection refused")
	}
	if r.Header.Get("Authorization") != "Bearer "+apiToken {
		a.t.Errorf("the API got Authorization %q", r.Header.Get("Authorization"))
	}
	answer := func(status int, v any) error {
		w.WriteHeader(status)
		return json.NewEncoder(w).Encode(v)
	}
	path, _ := strings.CutPrefix(r.URL.Path, "/latest")
	id := path[strings.LastIndexByte(path, '/')+1:]
	if r.Method != http.MethodGet {
		a.writes = append(a.writes, r.Method+" "+path)
		if a.deny {
			return answer(401, map[string]any{"detail": "Unauthorized to complete the operation"})
		}
		if a.nodes[id] == nil && r.Method != http.MethodPatch {
			return answer(404, map[string]any{"detail": "Node not found with id: " + id})
		}
	}
	switch {
	case path == "/whoami":
		var groups []any
		for _, g := range a.groups {
			groups = append(groups, map[string]any{"id": "1", "name": g})
		}
		return answer(200, map[string]any{"id": "1", "username": "lab", "is_superuser": false, "groups": groups})
	case r.Method == http.MethodGet && path == "/nodes":
		return answer(200, a.list(r.URL.Query().Get("parent")))
	case r.Method == http.MethodGet:
		return answer(200, a.nodes[id])
	case r.Method == http.MethodPatch && !a.patch:
		return answer(405, map[string]any{"detail": "Method Not Allowed"})
	case r.Method == http.MethodPatch:
		return a.patchNode(answer, id, body)
	case strings.HasPrefix(path, "/nodes/"):
		return a.putTree(answer, id, body)
	default:
		return answer(200, a.putNode(id, decode(a.t, body)))
	}
}

func decode(t testing.TB, b []byte) map[string]any {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		t.Errorf("the API got %q: %v", b, err)
	}
	return m
}

func (a *fakeAPI) list(parent string) any {
	items := []any{}
	for _, id := range a.below[parent] {
		items = append(items, a.nodes[id])
	}
	return map[string]any{"items": items, "total": len(items), "limit": 1000, "offset": 0}
}

func (a *fakeAPI) patchNode(answer func(int, any) error, id string, body []byte) error {
	if a.nodes[id] == nil {
		return answer(404, map[string]any{"detail": "Node not found with id: " + id})
	}
	maps.Copy(a.nodes[id], decode(a.t, body))
	return answer(200, a.nodes[id])
}

// putNode replaces a node by the body over the model's defaults.
func (a *fakeAPI) putNode(id string, body map[string]any) map[string]any {
	old := a.nodes[id]
	doc := map[string]any{
		"kind": "node", "group": nil, "parent": nil, "state": "running", "result": nil, "artifacts": map[string]any{}, "data": map[string]any{},
		"debug": map[string]any{}, "jobfilter": nil, "platform_filter": []any{}, "created": "2000-01-01T00:00:00", "timeout": "2000-01-01T06:00:00",
		"holdoff": nil, "treeid": nil, "processed_by_kcidb_bridge": false, "retry_counter": json.Number("0"), "user_groups": []any{},
	}
	maps.Copy(doc, body)
	doc["id"] = id
	if old != nil {
		doc["submitter"], doc["owner"] = old["submitter"], old["owner"]
	}
	a.nodes[id] = doc
	return doc
}

func (a *fakeAPI) putTree(answer func(int, any) error, id string, body []byte) error {
	if a.refuseTree {
		return answer(413, map[string]any{"detail": "too large"})
	}
	type tree struct {
		Node     map[string]any `json:"node"`
		Children []tree         `json:"child_nodes"`
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	var t tree
	if err := d.Decode(&t); err != nil {
		a.t.Errorf("PUT /nodes got %v", err)
	}
	var all []any
	var store func(t tree, id, parent string)
	store = func(t tree, id, parent string) {
		if id == "" {
			if id, _ = t.Node["id"].(string); id == "" {
				a.made++
				id = fmt.Sprintf("%024x", a.made)
				a.below[parent] = append(a.below[parent], id)
			}
			t.Node["parent"] = parent
		}
		all = append(all, a.putNode(id, t.Node))
		for _, c := range t.Children {
			store(c, "", id)
		}
	}
	store(t, id, "")
	if a.afterTree != nil {
		if err := a.afterTree(); err != nil {
			return err
		}
	}
	return answer(200, all)
}
