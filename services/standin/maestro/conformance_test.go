package maestro_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/services/standin/internal/inproc"
	"github.com/pullab/pullab/services/standin/maestro"
)

const (
	base    = "http://api.test"
	nodeID  = "6a86d157c5867fba94731e66"
	runtime = "pull-labs-aws-ec2"
)

// client of one stand-in.
type client struct {
	t    *testing.T
	s    *maestro.Server
	http *http.Client
}

func newClient(t *testing.T, o maestro.Options) *client {
	t.Helper()
	if o.Users == nil {
		o.Users = map[string]maestro.User{
			"lab":   {Username: "pull-labs-aws-ec2", Email: "lab@example.org", Groups: []string{"runtime:pull-labs-aws-ec2:node-editor"}},
			"other": {Username: "other-lab", Groups: []string{"runtime:other:node-editor"}},
			"admin": {Username: "root", IsSuperuser: true},
			"any":   {Username: "any", Groups: []string{"node:edit:any"}},
		}
	}
	s, err := maestro.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return &client{t, s, &http.Client{Transport: inproc.Transport{"api.test": s}}}
}

func (c *client) do(method, path, token string, body any) (int, []byte) {
	c.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	case []byte:
		r = bytes.NewReader(b)
	default:
		j, err := json.Marshal(b)
		if err != nil {
			c.t.Fatal(err)
		}
		r = bytes.NewReader(j)
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, base+path, r)
	if err != nil {
		c.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return res.StatusCode, b
}

func sample(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("../testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parse[T any](t *testing.T, b []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v in %.300s", err, b)
	}
	return v
}

// chain inserts the sample job, its kbuild and its checkout, as the pipeline
// has them.
func (c *client) chain() {
	c.t.Helper()
	nodes := parse[[]maestro.Node](c.t, sample(c.t, "node.chain.json"))
	for i := len(nodes) - 1; i >= 0; i-- {
		if _, err := c.s.Insert(nodes[i]); err != nil {
			c.t.Fatal(err)
		}
	}
}

type doc = map[string]any

// fixture is the sample job document with changes.
func fixture(t *testing.T, change func(doc)) doc {
	t.Helper()
	d := parse[doc](t, sample(t, "node.job.available.json"))
	if change != nil {
		change(d)
	}
	return d
}

// TestDocumentedReplies reproduces every reply of api.error.responses.json.
func TestDocumentedReplies(t *testing.T) {
	t.Parallel()
	c := newClient(t, maestro.Options{})
	c.chain()
	callback := maestro.Callback{Tokens: map[string]bool{"secret": true}}
	viaCallback := &client{t, nil, &http.Client{Transport: rawAuth{inproc.Transport{"api.test": callback}}}}
	const missing = "6a86d157c5867fba94731eff"
	set := func(k string, v any) doc { return fixture(t, func(d doc) { d[k] = v }) }
	type ask struct {
		method, path, token string
		body                any
	}
	asks := map[string][]ask{
		"GET /node/{24 hex, no such node}":                    {{"GET", "/latest/node/" + missing, "", nil}},
		"GET /node/xyz":                                       {{"GET", "/v0/node/xyz", "", nil}},
		"PUT|PATCH /node/{id} without token":                  {{"PUT", "/node/" + nodeID, "", doc{}}, {"PATCH", "/node/" + nodeID, "wrong", doc{}}},
		"PUT|PATCH /node/{id} unknown id":                     {{"PUT", "/node/" + missing, "lab", doc{}}, {"PATCH", "/node/" + missing, "lab", doc{}}},
		"PUT|PATCH /node/{id} user may not edit this node":    {{"PUT", "/node/" + nodeID, "other", doc{}}, {"PATCH", "/node/" + nodeID, "other", doc{}}},
		"PUT /node/{id} state available -> running":           {{"PUT", "/node/" + nodeID, "lab", set("state", "running")}},
		"PATCH /node/{id} state available -> running":         {{"PATCH", "/node/" + nodeID, "lab", doc{"state": "running"}}},
		"PUT /node/{id} kind not one of the submodels":        {{"PUT", "/node/" + nodeID, "lab", set("kind", "node")}},
		"PATCH /node/{id} with {}":                            {{"PATCH", "/node/" + nodeID, "lab", doc{}}, {"PATCH", "/node/" + nodeID, "lab", doc{"name": "x"}}},
		"PUT /node/{id} body without name":                    {{"PUT", "/node/" + nodeID, "lab", doc{"path": []string{"x"}}}},
		"GET /events?recursive=true":                          {{"GET", "/events?recursive=true", "", nil}, {"GET", "/events?recursive=false", "", nil}, {"GET", "/events?recursive=0&limit=", "", nil}},
		"GET /events?recursive=true&limit=1001":               {{"GET", "/events?recursive=true&limit=1001", "", nil}},
		"GET /events?from=1753000000":                         {{"GET", "/events?from=1753000000", "", nil}, {"GET", "/events?from=2026-08-20T10:00:00+00:00", "", nil}},
		"GET /events?limit=abc":                               {{"GET", "/events?limit=abc", "", nil}, {"GET", "/events?limit=1&limit=abc", "", nil}},
		"GET /events?id=A&ids=B":                              {{"GET", "/events?id=A&ids=B", "", nil}},
		"GET /events?id=xyz":                                  {{"GET", "/events?id=xyz", "", nil}},
		"GET /events?ids=xyz":                                 {{"GET", "/events?ids=xyz", "", nil}},
		"GET /events?ids=,":                                   {{"GET", "/events?ids=,", "", nil}},
		"GET /events?node_id=A&data.id=A":                     {{"GET", "/events?node_id=A&data.id=A", "", nil}},
		"GET /v1/events":                                      {{"GET", "/v1/events", "", nil}},
		"GET /listen/1 unknown subscription":                  {{"GET", "/listen/1", "lab", nil}},
		"POST /telemetry []":                                  {{"POST", "/telemetry", "other", []any{}}},
		"unhandled exception":                                 {{"GET", "/events?path=(", "", nil}},
		"callback POST {callback}/node/{id} ok":               {{"POST", "/node/1", "secret", sample(t, "callback.lava.json")}},
		"callback, missing or wrong token":                    {{"POST", "/node/1", "Bearer secret", doc{}}, {"POST", "/node/1", "", doc{}}},
		"callback, not JSON":                                  {{"POST", "/node/1", "secret", "{"}},
		"callback, PULL_LABS payload (no \"definition\" key)": {{"POST", "/node/1", "secret", sample(t, "callback.pull_labs.json")}},
	}
	for _, want := range parse[[]struct {
		Request  string
		HTTP     int
		Body     json.RawMessage
		BodyText *string `json:"body_text"`
	}](t, sample(t, "api.error.responses.json")) {
		if strings.HasPrefix(want.Request, "GET /nodes/fast slower") {
			continue // a World's faults make this one: TestFaultsOfTheWorld
		}
		if len(asks[want.Request]) == 0 {
			t.Errorf("no request is made for %q", want.Request)
		}
		for _, a := range asks[want.Request] {
			via := c
			if strings.HasPrefix(want.Request, "callback") {
				via = viaCallback
			}
			code, b := via.do(a.method, a.path, a.token, a.body)
			if code != want.HTTP {
				t.Errorf("%s: HTTP %d, want %d: %s", want.Request, code, want.HTTP, b)
			}
			if want.BodyText != nil {
				if string(b) != *want.BodyText {
					t.Errorf("%s: %q, want %q", want.Request, b, *want.BodyText)
				}
				continue
			}
			got, exp := parse[any](t, b), parse[any](t, want.Body)
			if want.Request == "PUT /node/{id} body without name" {
				// The sample's input is an empty body; ours has the path.
				got.(doc)["detail"].([]any)[0].(doc)["input"] = doc{}
			}
			if !reflect.DeepEqual(got, exp) {
				t.Errorf("%s: %s, want %s", want.Request, b, want.Body)
			}
		}
	}
}

// rawAuth sends tokens without the scheme, as the callback wants them.
type rawAuth struct{ next http.RoundTripper }

func (r rawAuth) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	if a := req.Header.Get("Authorization"); a != "" {
		req.Header.Set("Authorization", strings.TrimPrefix(a, "Bearer "))
	}
	return r.next.RoundTrip(req)
}

// TestEventShape compares the events of the sample job's life with the samples,
// key by key.
func TestEventShape(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, maestro.Options{Order: maestro.Ascending})
		n := parse[maestro.Node](t, sample(t, "node.job.available.json"))
		n.State, n.Artifacts = "running", map[string]string{"job_definition": "https://h.example/1.json"}
		if _, err := c.s.Insert(n); err != nil {
			t.Fatal(err)
		}
		if _, err := c.s.Update(n.ID, func(n *maestro.Node) { n.State = "available" }); err != nil {
			t.Fatal(err)
		}
		_, b := c.do("GET", "/latest/events?limit=1000&recursive=1&kind=job&channel=node", "", nil)
		got, want := parse[[]doc](t, b), parse[[]doc](t, sample(t, "events.tricky.json"))
		for i := range 2 {
			if g, w := shape(got[i]), shape(want[i]); !reflect.DeepEqual(g, w) {
				t.Errorf("event %d: keys differ: %v", i, difference(g, w))
			}
		}
		_, b = c.do("GET", "/latest/events?state=available", "", nil)
		plain := parse[[]doc](t, sample(t, "events.plain.json"))
		if g, w := shape(parse[[]doc](t, b)[0]), shape(plain[0]); !reflect.DeepEqual(g, w) {
			t.Errorf("plain event: keys differ: %v", difference(g, w))
		}
		// Fake time has no fraction at the start, so neither has the stamp.
		if got[0]["timestamp"] != "2000-01-01T00:00:00" {
			t.Errorf("timestamp %v", got[0]["timestamp"])
		}
	})
}

// shape is the set of dotted keys of a document.
func shape(v any) map[string]bool {
	out := map[string]bool{}
	var walk func(v any, at string)
	walk = func(v any, at string) {
		m, ok := v.(doc)
		if !ok {
			out[at] = true
			return
		}
		for k, e := range m {
			if strings.HasSuffix(at, ".artifacts") || k == "tree_priority" || k == "job_id" || k == "device" {
				continue
			}
			walk(e, at+"."+k)
		}
	}
	walk(v, "")
	return out
}

// difference lists what is only in one of the two.
func difference(a, b map[string]bool) []string {
	var out []string
	for k := range a {
		if !b[k] {
			out = append(out, "+"+k)
		}
	}
	for k := range b {
		if !a[k] {
			out = append(out, "-"+k)
		}
	}
	return out
}

func (c *client) events(query string) []doc {
	c.t.Helper()
	code, b := c.do("GET", "/events?"+query, "", nil)
	if code != 200 {
		c.t.Fatalf("/events?%s: %d %s", query, code, b)
	}
	return parse[[]doc](c.t, b)
}

// stream inserts n jobs a millisecond apart.
func (c *client) stream(n int) {
	c.t.Helper()
	for i := range n {
		node := c.s.NewNode("job", fmt.Sprintf("job-%d", i))
		node.Path = []string{"checkout", "kbuild", node.Name}
		node.Data = json.RawMessage(fmt.Sprintf(`{"runtime":%q,"platform":"p%d"}`, runtime, i%2))
		if _, err := c.s.Insert(node); err != nil {
			c.t.Fatal(err)
		}
		backoff.Sleep(c.t.Context(), time.Millisecond)
	}
}

func TestEventQueries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, maestro.Options{Seed: 1})
		c.stream(20)
		all := c.events("")
		sorted := true
		for i := range len(all) - 1 {
			sorted = sorted && all[i]["timestamp"].(string) <= all[i+1]["timestamp"].(string)
		}
		if sorted {
			t.Error("a page came in order, which the original does not promise")
		}
		for query, want := range map[string]int{
			"":                                   20,
			"limit=0":                            20,
			"limit=0&recursive=true":             20,
			"limit=7":                            7,
			"limit=%207%20":                      7,
			"limit=7&offset=18":                  2,
			"kind=job&kind=kbuild":               0,
			"kind=kbuild&kind=job":               20,
			"kind=":                              20,
			"name=job-3":                         1,
			"runtime=" + runtime:                 0,
			"data.data.runtime=" + runtime:       20,
			"data.data.platform=p1":              10,
			"data.is_hierarchy=FALSE":            20,
			"data.is_hierarchy=true":             0,
			"sequence_id=5":                      0,
			"state=running&op=created":           20,
			"channel=node":                       20,
			"channel=retry":                      0,
			"owner=production":                   20,
			"path=job-1.":                        10,
			"path=^kbuild$":                      20,
			"from=":                              20,
			"from=2000-01-01":                    19, // exclusive
			"from=1999-12-31T23:59:59.999999":    20,
			"from=2000-01-01T00:00:00.005999":    14, // cut to milliseconds
			"from=2000-01-01T00:00:00.005Z":      14,
			"from=2000-01-01%2001:00:00%2B01:00": 19,
			"from=20000101T000000.005":           14,
		} {
			if got := len(c.events(query)); got != want {
				t.Errorf("/events?%s: %d events, want %d", query, got, want)
			}
		}
		id := all[0]["id"].(string)
		if got := c.events("ids=" + id + ",%20ffffffffffffffffffffffff"); len(got) != 1 || got[0]["id"] != id {
			t.Errorf("ids: %v", got)
		}
		// With limit a page is the oldest matches.
		for _, e := range c.events("limit=5") {
			if e["sequence_id"].(float64) > 5 {
				t.Errorf("limit=5 gave sequence %v", e["sequence_id"])
			}
		}
		backoff.Sleep(t.Context(), 7*24*time.Hour)
		if got := c.events(""); len(got) != 0 {
			t.Errorf("%d events after a week", len(got))
		}
	})
}

// A scattered history still gives each event once to whoever pages by offset.
func TestScattered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, maestro.Options{Seed: 1, Order: maestro.Scattered})
		c.stream(20)
		seen := map[any]bool{}
		oldest := true
		for offset := 0; offset < 20; offset += 5 {
			for _, e := range c.events(fmt.Sprintf("limit=5&offset=%d", offset)) {
				seen[e["id"]] = true
				oldest = oldest && (offset > 0 || e["sequence_id"].(float64) <= 5)
			}
		}
		if len(seen) != 20 || oldest {
			t.Errorf("%d events seen; first page is the oldest: %v", len(seen), oldest)
		}
	})
}

// An event can become visible after a later-stamped one.
func TestHeldEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, maestro.Options{Order: maestro.Ascending})
		release := c.s.HoldEvents()
		c.stream(1)
		if got := c.events(""); len(got) != 0 {
			t.Fatalf("held: %v", got)
		}
		release()
		backoff.Sleep(t.Context(), time.Second)
		c.stream(1)
		if got := c.events(""); len(got) != 2 || got[0]["timestamp"].(string) >= got[1]["timestamp"].(string) {
			t.Errorf("released: %v", got)
		}
	})
}

// The node of a recursive event is the node as it is now; a vanished one is left
// out; an event about no node breaks the request.
func TestRecursive(t *testing.T) {
	t.Parallel()
	c := newClient(t, maestro.Options{})
	c.chain()
	if _, err := c.s.Update(nodeID, func(n *maestro.Node) { n.State = "done" }); err != nil {
		t.Fatal(err)
	}
	for _, e := range c.events("state=available&recursive=true&limit=10&node_id=" + nodeID) {
		if e["node"].(doc)["state"] != "done" {
			t.Errorf("node at event time: %v", e["node"])
		}
	}
	if err := c.s.Publish("node", doc{"id": "6a86d157c5867fba94731eff", "kind": "job"}); err != nil {
		t.Fatal(err)
	}
	got := c.events("recursive=true&limit=10&node_id=6a86d157c5867fba94731eff")
	if _, has := got[0]["node"]; has {
		t.Errorf("a vanished node: %v", got)
	}
	if err := c.s.Publish("other", "hello"); err != nil {
		t.Fatal(err)
	}
	if code, b := c.do("GET", "/events?recursive=true&limit=10", "", nil); code != 500 {
		t.Errorf("%d %s", code, b)
	}
}
