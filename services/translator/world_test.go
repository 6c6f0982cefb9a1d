package translator

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

const (
	apiHost  = "api.example"
	fileHost = "files.kernelci.org"
	token    = "secret-token"
	jobID    = "6a86d157c5867fba94731e66"
	kbuildID = "6a86cc10c5867fba94730b11"
	// definitionPath is where the sample node says its definition lies.
	definitionPath = "/pull_labs_jobs/20260820/b0019a56fe58a482707cf8538487b8b6.json"
)

// world is kernelci-api and the definition's host, without sockets: as strict as
// kernelci-wire.md 1.5 and 1.6 in what the translator touches.
type world struct {
	mu    sync.Mutex
	nodes map[string]map[string]any
	// patch tells whether the API has PATCH (405 otherwise).
	patch bool
	// files are answered at any host but the API's, by path; at the API's too.
	files map[string]http.HandlerFunc
	// before is called ahead of each request, and may answer or fail it.
	before func(*http.Request) (*http.Response, error)
	// after is called when a request was carried out, and may still fail it.
	after func(*http.Request) error
	seen  []seen
}

type seen struct{ Method, Host, Path, Authorization string }

func newWorld(t testing.TB) *world {
	t.Helper()
	data, err := os.ReadFile("testdata/node.chain.json")
	if err != nil {
		t.Fatal(err)
	}
	var chain []map[string]any
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := dec.Decode(&chain); err != nil {
		t.Fatal(err)
	}
	def, err := os.ReadFile("testdata/job_definition.boot.aws-ec2-x86_64.json")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{nodes: map[string]map[string]any{}, patch: true, files: map[string]http.HandlerFunc{definitionPath: answer(string(def))}}
	for _, n := range chain {
		w.nodes[n["id"].(string)] = n
	}
	// A retry counter that a write must not lose.
	w.node(jobID)["retry_counter"] = json.Number("2")
	return w
}

func answer(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, s) }
}

func (w *world) node(id string) map[string]any { return w.nodes[id] }

func (w *world) data(id string) map[string]any {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[id]["data"].(map[string]any)
}

func (w *world) claim() string {
	s, _ := w.data(jobID)["job_id"].(string)
	return s
}

// count of requests with the method whose path begins so.
func (w *world) count(method, path string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, s := range w.seen {
		if s.Method == method && strings.HasPrefix(s.Path, path) {
			n++
		}
	}
	return n
}

func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.seen = append(w.seen, seen{r.Method, r.URL.Host, r.URL.Path, r.Header.Get("Authorization")})
	before, after := w.before, w.after
	w.mu.Unlock()
	if before != nil {
		if resp, err := before(r); resp != nil || err != nil {
			return resp, err
		}
	}
	rec := httptest.NewRecorder()
	w.serve(rec, r)
	if after != nil {
		if err := after(r); err != nil {
			return nil, err
		}
	}
	resp := rec.Result()
	resp.Request = r
	return resp, nil
}

func (w *world) serve(rw http.ResponseWriter, r *http.Request) {
	id, isNode := strings.CutPrefix(r.URL.Path, "/latest/node/")
	if r.URL.Host != apiHost || !isNode {
		w.mu.Lock()
		h := w.files[r.URL.Path]
		w.mu.Unlock()
		if h == nil {
			h = http.NotFound
		}
		h(rw, r)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !nodeID.MatchString(id):
		detail(rw, http.StatusBadRequest, "'"+id+"' is not a valid ObjectId")
	case r.Method == http.MethodGet:
		reply(rw, w.nodes[id])
	case r.Header.Get("Authorization") != "Bearer "+token:
		detail(rw, http.StatusUnauthorized, "Unauthorized")
	case w.nodes[id] == nil:
		detail(rw, http.StatusNotFound, "Node not found with id: "+id)
	case r.Method == http.MethodPatch && w.patch:
		w.write(rw, r, id, false)
	case r.Method == http.MethodPut:
		w.write(rw, r, id, true)
	default:
		detail(rw, http.StatusMethodNotAllowed, "Method Not Allowed")
	}
}

// patchable are the fields that PATCH takes; PUT resets what the body leaves
// out, of which the tests look at these.
var (
	patchable = []string{"state", "result", "artifacts", "data", "debug", "jobfilter", "platform_filter", "timeout", "holdoff", "processed_by_kcidb_bridge"}
	kept      = []string{"id", "owner", "submitter", "user_groups"}
)

func (w *world) write(rw http.ResponseWriter, r *http.Request, id string, whole bool) {
	if r.URL.Query().Get("noevent") != "true" {
		detail(rw, http.StatusTeapot, "a claim must not make an event (noevent=true)")
		return
	}
	var body map[string]any
	dec := json.NewDecoder(r.Body)
	dec.UseNumber()
	if err := dec.Decode(&body); err != nil {
		detail(rw, http.StatusUnprocessableEntity, err.Error())
		return
	}
	n := maps.Clone(w.nodes[id])
	if whole {
		for k := range n {
			if !slices.Contains(kept, k) {
				n[k] = nil
			}
		}
		n["retry_counter"] = json.Number("0")
	}
	for k, v := range body {
		if slices.Contains(kept, k) || !whole && !slices.Contains(patchable, k) {
			continue
		}
		n[k] = v
	}
	w.nodes[id] = n
	reply(rw, n)
}

func reply(rw http.ResponseWriter, v any) {
	rw.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(rw).Encode(v)
}

func detail(rw http.ResponseWriter, status int, text string) {
	rw.WriteHeader(status)
	_ = json.NewEncoder(rw).Encode(map[string]string{"detail": text})
}

// respond makes a response outside of serve.
func respond(r *http.Request, status int, header ...string) *http.Response {
	h := http.Header{}
	for i := 0; i+1 < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{
		StatusCode: status, Header: h, Request: r, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: io.NopCloser(strings.NewReader(`{"detail":"injected"}`)),
	}
}

var errCrash = errors.New("the process died here")
