package maestro_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/services/standin/maestro"
)

func (c *client) node(id string) doc {
	c.t.Helper()
	_, b := c.do("GET", "/node/"+id, "", nil)
	return parse[doc](c.t, b)
}

// The sample writes go through and change only what they say.
func TestSampleWrites(t *testing.T) {
	t.Parallel()
	for _, s := range []struct{ method, file string }{
		{"PUT", "put.node.claim.request.json"}, {"PUT", "put.node.done.request.json"},
		{"PUT", "put.node.infra-error.request.json"}, {"PATCH", "patch.node.done.request.json"},
	} {
		t.Run(s.file, func(t *testing.T) {
			t.Parallel()
			c := newClient(t, maestro.Options{})
			c.chain()
			body := parse[doc](t, sample(t, s.file))
			id := nodeID
			if v, ok := body["id"].(string); ok && v != nodeID {
				n := parse[maestro.Node](t, sample(t, s.file))
				n.State, n.Result = "available", nil
				if _, err := c.s.Insert(n); err != nil {
					t.Fatal(err)
				}
				id = v
			}
			code, b := c.do(s.method, "/node/"+id, "lab", body)
			if code != 200 {
				t.Fatalf("%d %s", code, b)
			}
			got := parse[doc](t, b)
			if len(got) != 23 {
				t.Errorf("%d keys in the reply, want 23", len(got))
			}
			for k, v := range body {
				if k != "updated" && !reflect.DeepEqual(got[k], v) {
					t.Errorf("%s: %v, want %v", k, got[k], v)
				}
			}
			if !reflect.DeepEqual(got, c.node(id)) {
				t.Error("the reply is not the stored node")
			}
		})
	}
}

// PUT is a full replacement: what was left out goes back to the default.
func TestPutResets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, maestro.Options{})
		c.chain()
		if _, err := c.s.Update(nodeID, func(n *maestro.Node) { n.RetryCounter, n.KCIDBBridge = 2, true }); err != nil {
			t.Fatal(err)
		}
		body := doc{
			"name": "baseline-x86-aws-ec2", "path": []string{"checkout"}, "kind": "job", "state": "done", "unknown": 1,
			"owner": "me", "submitter": "me", "user_groups": []string{"mine"}, "id": "000000000000000000000000",
			"data": doc{"runtime": "x", "tree_priority": "high", "kernel_revision": nil},
		}
		code, b := c.do("PUT", "/node/"+nodeID, "lab", body)
		if code != 200 {
			t.Fatalf("%d %s", code, b)
		}
		want := doc{
			"id": nodeID, "kind": "job", "name": "baseline-x86-aws-ec2", "path": []any{"checkout"}, "group": nil, "parent": nil,
			"state": "done", "result": nil, "artifacts": doc{}, "data": doc{"runtime": "x", "tree_priority": "high", "kernel_revision": nil},
			"debug": doc{}, "jobfilter": nil, "platform_filter": []any{}, "created": "2000-01-01T00:00:00", "updated": "2000-01-01T00:00:00",
			"timeout": "2000-01-01T06:00:00", "holdoff": nil, "owner": "production", "submitter": "service:pipeline", "treeid": nil,
			"user_groups": []any{}, "processed_by_kcidb_bridge": false, "retry_counter": 0.0,
		}
		if got := parse[doc](t, b); !reflect.DeepEqual(got, want) {
			t.Errorf("\n got %v\nwant %v", got, want)
		}
	})
}

func TestRefusedDocuments(t *testing.T) {
	t.Parallel()
	c := newClient(t, maestro.Options{})
	c.chain()
	data := func(k string, v any) func(doc) { return func(d doc) { d["data"].(doc)[k] = v } }
	set := func(k string, v any) func(doc) { return func(d doc) { d[k] = v } }
	for name, s := range map[string]struct {
		change func(doc)
		code   int
		text   string
	}{
		"error_code outside the enum": {data("error_code", "Oops"), 400, "1 validation error for Job\ndata.error_code\n  Input should be 'invalid_job_params', 'submit_error'"},
		"job_id not a string":         {data("job_id", 5), 400, "data.job_id\n  Input should be a valid string [type=string_type, input_value=5, input_type=int]"},
		"device not a string":         {data("device", []int{1}), 400, "data.device"},
		"misc not an object":          {data("misc", "x"), 400, "data.misc"},
		"revision without commit":     {func(d doc) { delete(d["data"].(doc)["kernel_revision"].(doc), "commit") }, 400, "data.kernel_revision.commit\n  Field required"},
		"artifact s3":                 {set("artifacts", doc{"log": "s3://b/k"}), 422, "URL scheme should be 'http' or 'https'"},
		"artifact relative":           {set("artifacts", doc{"log": "/k"}), 422, "relative URL without a base"},
		"artifact null":               {set("artifacts", doc{"log": nil}), 422, "url_type"},
		"retry_counter a string":      {set("retry_counter", "1"), 422, "int_type"},
		"retry_counter a float":       {set("retry_counter", 1.5), 422, "int_type"},
		"state unknown":               {set("state", "prepared"), 422, "Input should be 'running', 'available', 'closing' or 'done'"},
		"result unknown":              {set("result", "PASS"), 422, "Input should be 'pass', 'fail', 'skip' or 'incomplete'"},
		"path a string":               {set("path", "a.b"), 422, "list_type"},
		"timeout not a time":          {set("timeout", "tomorrow"), 422, "datetime"},
		"bridge flag a number":        {set("processed_by_kcidb_bridge", 7), 422, "bool_type"},
	} {
		code, b := c.do("PUT", "/node/"+nodeID, "lab", fixture(t, s.change))
		reply := parse[struct{ Detail json.RawMessage }](t, b)
		text := string(reply.Detail)
		if code == 400 {
			text = parse[string](t, reply.Detail)
		}
		if code != s.code || !strings.Contains(text, s.text) {
			t.Errorf("%s: %d %s, want %d %q", name, code, text, s.code, s.text)
		}
	}
	for body, want := range map[string]int{"": 422, "{": 422, "[]": 422, "null": 422, "5": 422} {
		if code, b := c.do("PUT", "/node/"+nodeID, "lab", body); code != want {
			t.Errorf("PUT %q: %d %s", body, code, b)
		}
	}
	if code, b := c.do("PATCH", "/node/"+nodeID, "lab", doc{"data": doc{"error_code": "Oops"}}); code != 400 || !strings.Contains(string(b), "validation error for Job") {
		t.Errorf("PATCH: %d %s", code, b)
	}
	if !reflect.DeepEqual(c.node(nodeID), fixture(t, nil)) {
		t.Error("a refused write changed the node")
	}
	big := fixture(t, func(d doc) { d["debug"] = doc{"x": strings.Repeat("x", maestro.MaxBody)} })
	if code, b := c.do("PUT", "/node/"+nodeID, "lab", big); code != 413 {
		t.Errorf("too large: %d %.200s", code, b)
	}
}

// Every error code of the enum passes.
func TestErrorCodes(t *testing.T) {
	t.Parallel()
	c := newClient(t, maestro.Options{})
	c.chain()
	for _, code := range []string{
		"invalid_job_params", "submit_error", "node_timeout", "Infrastructure", "Canceled", "Job", "Bug", "Test", "Configuration", "LAVATimeout",
		"MultinodeTimeout", "ObjectNotPersisted", "Unexisting permission codename.", "job_generation_error", "kbuild_internal_error",
	} {
		if st, b := c.do("PATCH", "/node/"+nodeID, "lab", doc{"data": doc{"runtime": runtime, "error_code": code}}); st != 200 {
			t.Errorf("%s: %d %s", code, st, b)
		}
	}
}

// TestStateMachine tries every transition.
func TestStateMachine(t *testing.T) {
	t.Parallel()
	allowed := map[string]string{"running": "running available closing done", "available": "available closing done", "closing": "closing done", "done": "done"}
	states := []string{"running", "available", "closing", "done"}
	c := newClient(t, maestro.Options{})
	c.chain()
	for _, from := range states {
		for _, to := range states {
			for _, method := range []string{"PUT", "PATCH"} {
				if _, err := c.s.Update(nodeID, func(n *maestro.Node) { n.State = from }); err != nil {
					t.Fatal(err)
				}
				var body any = fixture(t, func(d doc) { d["state"] = to })
				if method == "PATCH" {
					body = doc{"state": to}
				}
				want := 400
				if strings.Contains(allowed[from], to) {
					want = 200
				}
				if code, b := c.do(method, "/node/"+nodeID, "admin", body); code != want {
					t.Errorf("%s %s -> %s: %d %s, want %d", method, from, to, code, b, want)
				}
			}
		}
	}
}

func TestPermissions(t *testing.T) {
	t.Parallel()
	c := newClient(t, maestro.Options{Users: map[string]maestro.User{
		"editor": {Username: "a", Groups: []string{"runtime:" + runtime + ":node-editor"}},
		"admin":  {Username: "b", Groups: []string{"runtime:" + runtime + ":node-admin"}},
		"root":   {Username: "c", IsSuperuser: true},
		"owner":  {Username: "production"},
		"any":    {Username: "d", Groups: []string{"node:edit:any"}},
		"member": {Username: "e", Groups: []string{"team"}},
		"no":     {Username: "f", Groups: []string{"runtime:other:node-editor", "nodes"}},
	}})
	c.chain()
	if _, err := c.s.Update(nodeID, func(n *maestro.Node) { n.UserGroups = []string{"team"} }); err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]int{"editor": 200, "admin": 200, "root": 200, "owner": 200, "any": 200, "member": 200, "no": 401, "": 401} {
		if code, b := c.do("PATCH", "/node/"+nodeID, token, doc{"debug": doc{}}); code != want {
			t.Errorf("%q: %d %s, want %d", token, code, b, want)
		}
	}
	// The rule looks at the stored runtime, not at the one in the body.
	if code, _ := c.do("PUT", "/node/"+nodeID, "no", fixture(t, func(d doc) { d["data"].(doc)["runtime"] = "other" })); code != 401 {
		t.Errorf("runtime of the body: %d", code)
	}
}

// PATCH changes the fields given and replaces artifacts and data whole.
func TestPatch(t *testing.T) {
	t.Parallel()
	c := newClient(t, maestro.Options{})
	c.chain()
	if _, err := c.s.Update(nodeID, func(n *maestro.Node) { n.RetryCounter, n.KCIDBBridge = 2, true }); err != nil {
		t.Fatal(err)
	}
	before := c.node(nodeID)
	code, b := c.do("PATCH", "/latest/node/"+nodeID, "lab", doc{"artifacts": doc{"test_log": "HTTPS://H.example"}, "data": doc{"runtime": runtime}, "owner": "me", "retry_counter": 0})
	if code != 200 {
		t.Fatalf("%d %s", code, b)
	}
	got := parse[doc](t, b)
	want := before
	want["artifacts"], want["data"], want["processed_by_kcidb_bridge"] = doc{"test_log": "HTTPS://H.example"}, doc{"runtime": runtime}, false
	want["updated"] = got["updated"]
	if !reflect.DeepEqual(got, want) {
		t.Errorf("\n got %v\nwant %v", got, want)
	}
	if _, b := c.do("PUT", "/node/"+nodeID, "lab", fixture(t, func(d doc) { d["artifacts"] = doc{"a": "https://h.example", "b": "HTTPS://H.example:443/x"} })); !strings.Contains(string(b), `{"a":"https://h.example/","b":"https://h.example/x"}`) {
		t.Errorf("PUT does not normalise artifact URLs: %s", b)
	}
	c.s.SetPatch(false)
	if code, b := c.do("PATCH", "/node/"+nodeID, "lab", doc{"debug": doc{}}); code != 405 || string(b) != `{"detail":"Method Not Allowed"}` {
		t.Errorf("without PATCH: %d %s", code, b)
	}
}

// Any update takes processed_by_kcidb_bridge back, unless it is what changes it.
func TestBridgeFlag(t *testing.T) {
	t.Parallel()
	c := newClient(t, maestro.Options{})
	c.chain()
	for _, s := range []struct{ stored, sent, want bool }{{true, true, false}, {false, true, true}, {true, false, false}, {false, false, false}} {
		for _, method := range []string{"PUT", "PATCH"} {
			if _, err := c.s.Update(nodeID, func(n *maestro.Node) { n.KCIDBBridge = s.stored }); err != nil {
				t.Fatal(err)
			}
			var body any = doc{"processed_by_kcidb_bridge": s.sent}
			if method == "PUT" {
				body = fixture(t, func(d doc) { d["processed_by_kcidb_bridge"] = s.sent })
			}
			_, b := c.do(method, "/node/"+nodeID, "lab", body)
			if got := parse[doc](t, b)["processed_by_kcidb_bridge"]; got != s.want {
				t.Errorf("%s %v over %v: %v, want %v", method, s.sent, s.stored, got, s.want)
			}
		}
	}
}

// A write makes an event with the states before it, unless told not to.
func TestWriteEvents(t *testing.T) {
	t.Parallel()
	c := newClient(t, maestro.Options{Order: maestro.Ascending})
	c.chain()
	before := len(c.events(""))
	c.do("PATCH", "/node/"+nodeID+"?noevent=true", "lab", doc{"debug": doc{"a": "b"}})
	if got := len(c.events("")); got != before {
		t.Errorf("%d events after noevent, want %d", got, before)
	}
	c.do("PUT", "/node/"+nodeID+"?noevent=false", "lab", fixture(t, func(d doc) { d["state"], d["result"] = "done", "fail" }))
	last := c.events("op=updated")
	if len(last) != 1 {
		t.Fatalf("updated events: %v", last)
	}
	data := last[0]["data"].(doc)
	if data["previous_state"] != "available" || data["previous_result"] != nil || data["state"] != "done" || data["result"] != "fail" || last[0]["owner"] != "production" {
		t.Errorf("event: %v", last[0])
	}
	if code, _ := c.do("PATCH", "/node/"+nodeID+"?noevent=perhaps", "lab", doc{"debug": doc{}}); code != 422 {
		t.Errorf("noevent=perhaps: %d", code)
	}
}

// TestHierarchy writes the sample result tree.
func TestHierarchy(t *testing.T) {
	t.Parallel()
	c := newClient(t, maestro.Options{})
	tree := parse[struct {
		Node     maestro.Node
		Children []json.RawMessage `json:"child_nodes"`
	}](t, sample(t, "put.nodes.hierarchy.request.json"))
	root := tree.Node
	root.State, root.Result = "available", nil
	if _, err := c.s.Insert(root); err != nil {
		t.Fatal(err)
	}
	code, b := c.do("PUT", "/nodes/"+root.ID, "lab", sample(t, "put.nodes.hierarchy.request.json"))
	if code != 200 {
		t.Fatalf("%d %s", code, b)
	}
	nodes := parse[[]doc](t, b)
	if nodes[0]["id"] != root.ID || nodes[0]["state"] != "done" || nodes[1]["parent"] != root.ID || nodes[2]["parent"] != nodes[1]["id"] {
		t.Errorf("tree: %s", b)
	}
	ids := map[any]bool{}
	for _, n := range nodes {
		ids[n["id"]] = true
		data := n["data"].(doc)
		if _, kept := data["tree_priority"]; kept {
			t.Error("an unknown key of data was kept")
		}
		if _, filled := data["error_code"]; !filled {
			t.Error("the model's keys were not filled in")
		}
		if n["treeid"] != *root.TreeID || n["submitter"] != "service:pipeline" {
			t.Errorf("treeid and submitter of %v: %v %v", n["name"], n["treeid"], n["submitter"])
		}
	}
	if len(ids) != len(nodes) || nodes[0]["owner"] != "production" || nodes[1]["owner"] != "pull-labs-aws-ec2" {
		t.Errorf("ids %d of %d, owners %v %v", len(ids), len(nodes), nodes[0]["owner"], nodes[1]["owner"])
	}
	events := c.events("op=updated")
	if len(events) != 1 || events[0]["data"].(doc)["is_hierarchy"] != true || len(c.events("op=created")) != 1 {
		t.Errorf("events: %v", events)
	}
	// The root is replaced without a look at the state machine.
	back := parse[doc](t, sample(t, "put.nodes.hierarchy.request.json"))
	back["node"].(doc)["state"], back["child_nodes"] = "available", []any{}
	if code, b := c.do("PUT", "/nodes/"+root.ID, "lab", back); code != 200 {
		t.Errorf("done -> available: %d %s", code, b)
	}
	back["child_nodes"] = []any{doc{"node": doc{"id": "6a86d157c5867fba94731eff", "name": "x", "path": []string{"x"}, "kind": "test"}, "child_nodes": []any{}}}
	if code, b := c.do("PUT", "/nodes/"+root.ID, "lab", back); code != 400 || !strings.Contains(string(b), "No object found with id") {
		t.Errorf("a child that is not there: %d %s", code, b)
	}
	delete(back, "child_nodes")
	if code, b := c.do("PUT", "/nodes/"+root.ID, "lab", back); code != 422 {
		t.Errorf("no child_nodes: %d %s", code, b)
	}
	if code, _ := c.do("PUT", "/nodes/"+root.ID, "other", back); code != 401 {
		t.Errorf("a stranger: %d", code)
	}
}

func TestPostNode(t *testing.T) {
	t.Parallel()
	c := newClient(t, maestro.Options{})
	c.chain()
	body := func(change func(doc)) doc {
		d := doc{"name": "x", "path": []string{"checkout", "x"}, "kind": "job", "parent": nodeID, "submitter": "me", "user_groups": []string{"node:edit:any"}}
		change(d)
		return d
	}
	code, b := c.do("POST", "/node", "lab", body(func(d doc) { d["owner"] = "somebody" }))
	got := parse[doc](t, b)
	if code != 200 || got["owner"] != "pull-labs-aws-ec2" || got["submitter"] != "me" || got["state"] != "running" {
		t.Errorf("%d %s", code, b)
	}
	for name, s := range map[string]struct {
		change func(doc)
		code   int
	}{
		"id":     {func(d doc) { d["id"] = nodeID }, 400},
		"parent": {func(d doc) { d["parent"] = "6a86d157c5867fba94731eff" }, 404},
		"group":  {func(d doc) { d["user_groups"] = []string{"nobody"} }, 400},
		"kind":   {func(d doc) { delete(d, "kind") }, 400},
		"name":   {func(d doc) { delete(d, "name") }, 422},
	} {
		if code, b := c.do("POST", "/node", "lab", body(s.change)); code != s.code {
			t.Errorf("%s: %d %s, want %d", name, code, b, s.code)
		}
	}
	if code, _ := c.do("POST", "/node", "", body(func(doc) {})); code != 401 {
		t.Errorf("without token: %d", code)
	}
}

func TestNodeQueries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, maestro.Options{})
		c.chain()
		backoff.Sleep(t.Context(), time.Minute)
		c.stream(60)
		count := func(q string) int {
			t.Helper()
			code, b := c.do("GET", "/count?"+q, "", nil)
			if code != 200 {
				t.Fatalf("/count?%s: %d %s", q, code, b)
			}
			return parse[int](t, b)
		}
		for q, want := range map[string]int{
			"":         63,
			"kind=job": 61,
			"kind=job&state=available&data.runtime=" + runtime + "&data.job_id=null": 1,
			"kind__in=checkout,kbuild":        2,
			"kind__nin=checkout,kbuild":       61,
			"kind__ne=job":                    2,
			"result=null":                     61,
			"result__ne=null":                 2,
			"retry_counter__lt=1":             63,
			"retry_counter=0":                 0,
			"created__gt=2026-08-01":          3,
			"created__lte=2000-01-01T00:01":   1,
			"parent=6a86cc10c5867fba94730b11": 1,
			"name__re=^job-1":                 11,
			"path=kbuild":                     60,
			"id=" + nodeID:                    0,
			"no.such.field=x":                 0,
			"processed_by_kcidb_bridge=True":  2,
		} {
			if got := count(q); got != want {
				t.Errorf("/count?%s = %d, want %d", q, got, want)
			}
		}
		_, b := c.do("GET", "/nodes?kind=job", "", nil)
		page := parse[struct {
			Items                []doc
			Total, Limit, Offset int
		}](t, b)
		if len(page.Items) != 50 || page.Total != 61 || page.Limit != 50 || page.Offset != 0 {
			t.Errorf("%d items, %d %d %d", len(page.Items), page.Total, page.Limit, page.Offset)
		}
		seen := map[any]bool{}
		for _, q := range []string{"limit=40", "limit=40&offset=40"} {
			_, b := c.do("GET", "/nodes?"+q, "", nil)
			for _, n := range parse[struct{ Items []doc }](t, b).Items {
				seen[n["id"]] = true
			}
		}
		if len(seen) != 63 {
			t.Errorf("paging saw %d nodes", len(seen))
		}
		for q, want := range map[string]int{
			"/nodes?limit=0": 422, "/nodes?limit=x": 422, "/nodes?offset=-1": 422, "/nodes?created__gt=x": 400, "/nodes?parent=x": 400,
			"/nodes?name__re=(": 500, "/nodes/fast?limit=0": 200, "/nowhere": 404, "/node": 405,
		} {
			if code, b := c.do("GET", q, "", nil); code != want {
				t.Errorf("%s: %d %s, want %d", q, code, b, want)
			}
		}
		_, b = c.do("GET", "/nodes/fast?kind=job", "", nil)
		if got := len(parse[[]doc](t, b)); got != 61 {
			t.Errorf("/nodes/fast: %d", got)
		}
	})
}

func TestAccountAndTelemetry(t *testing.T) {
	t.Parallel()
	c := newClient(t, maestro.Options{})
	_, b := c.do("GET", "/whoami", "lab", nil)
	got, want := parse[doc](t, b), parse[doc](t, sample(t, "whoami.json"))
	if !reflect.DeepEqual(shape(got), shape(want)) || got["username"] != want["username"] || !strings.HasPrefix(string(b), `{"id":`) {
		t.Errorf("whoami: %s", b)
	}
	code, b := c.do("POST", "/telemetry", "other", sample(t, "telemetry.post.request.json"))
	if code != 200 || string(b) != `{"inserted":2}` || len(c.s.Telemetry()) != 2 {
		t.Errorf("telemetry: %d %s", code, b)
	}
	if code, b := c.do("POST", "/telemetry", "other", []doc{{"kind": "x", "runtime": "y"}, {"kind": "x"}}); code != 400 || len(c.s.Telemetry()) != 2 {
		t.Errorf("bad element: %d %s", code, b)
	}
	if code, _ := c.do("GET", "/whoami", "", nil); code != 401 {
		t.Errorf("whoami without token: %d", code)
	}
	if code, b := c.do("PUT", "/batch/nodeset", "lab", doc{"nodes": []string{nodeID}, "field": "state", "value": "done"}); code != 400 {
		t.Errorf("nodeset: %d %s", code, b)
	}
}
