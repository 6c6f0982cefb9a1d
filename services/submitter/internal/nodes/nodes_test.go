package nodes_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/pkg/wire"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/submitter/internal/nodes"
)

var update = flag.Bool("update", false, "write the golden files anew")

type handler func(w http.ResponseWriter, r *http.Request)

func (h handler) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	h(w, r)
	return w.Result(), nil
}

func load(t testing.TB, name string) *pullabv1.RunFinished {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../testdata/runs", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	fin := &pullabv1.RunFinished{}
	if err := wire.DecodeInto(b, fin); err != nil {
		t.Fatal(err)
	}
	return fin
}

// node is the sample node under the run's id and name, as the client reads it.
func node(t testing.TB, fin *pullabv1.RunFinished, change func(doc map[string]any)) *kernelci.Node {
	t.Helper()
	b, err := os.ReadFile("testdata/node.job.available.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	doc["id"], doc["name"], doc["group"], doc["path"] = fin.Origin.NodeId, fin.Origin.NodeName, fin.Origin.NodeName, fin.Origin.NodePath
	doc["retry_counter"] = 2
	if change != nil {
		change(doc)
	}
	c, err := kernelci.New(kernelci.Options{BaseURI: "http://api.test/latest", Transport: handler(func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(doc)
	})})
	if err != nil {
		t.Fatal(err)
	}
	n, err := c.Node(context.Background(), fin.Origin.NodeId)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func golden(t *testing.T, name string, v any) {
	t.Helper()
	var got bytes.Buffer
	e := json.NewEncoder(&got)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("differs from %s (-update writes it): %v\n%s", file, err, got.Bytes())
	}
}

func TestGolden(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"boot-pass", "boot-panic", "ltp", "infrastructure", "refusal", "kselftest"} {
		fin := load(t, name)
		n := node(t, fin, nil)
		fields := nodes.Finish(n, fin, fin.Rows)
		golden(t, name+".fields.json", fields)
		if c := nodes.Children(n, fields, fin, fin.Rows); len(c) > 0 {
			golden(t, name+".tree.json", kernelci.Tree{Node: nodes.Document(n, fields), Children: c})
		}
	}
}

// TestNothingIsLost: every key that the node had, at any depth, is still there.
func TestNothingIsLost(t *testing.T) {
	t.Parallel()
	fin := load(t, "ltp")
	n := node(t, fin, func(doc map[string]any) {
		doc["user_groups"], doc["jobfilter"], doc["debug"] = []any{"g"}, []any{"j"}, map[string]any{"d": 1}
		doc["data"].(map[string]any)["misc"] = map[string]any{"ours": "kept"}
	})
	doc := nodes.Document(n, nodes.Finish(n, fin, fin.Rows))
	for k := range n.Doc {
		if _, ok := doc[k]; !ok {
			t.Errorf("%s is lost", k)
		}
	}
	data, arts := doc["data"].(map[string]any), doc["artifacts"].(map[string]any)
	for k := range n.Doc["data"].(map[string]any) {
		if _, ok := data[k]; !ok {
			t.Errorf("data.%s is lost", k)
		}
	}
	if data["misc"].(map[string]any)["ours"] != "kept" || arts["job_definition"] == nil || arts["test_log"] == nil || doc["retry_counter"] != json.Number("2") {
		t.Errorf("%v", doc)
	}
	if n.Doc["state"] != "available" || n.Doc["data"].(map[string]any)["misc"].(map[string]any)["run_id"] != nil {
		t.Error("the node that was read has been changed")
	}
}

func TestLateResultClearsTheTimeout(t *testing.T) {
	t.Parallel()
	timedOut := func(doc map[string]any) {
		doc["state"], doc["result"] = "done", "incomplete"
		d := doc["data"].(map[string]any)
		d["error_code"], d["error_msg"] = "node_timeout", "Node timed-out"
	}
	fin := load(t, "boot-panic")
	f := nodes.Finish(node(t, fin, timedOut), fin, fin.Rows)
	data := f["data"].(map[string]any)
	if f["result"] != "fail" || data["error_code"] != nil || data["error_msg"] != nil {
		t.Errorf("%v", f)
	}
	fin = load(t, "infrastructure")
	data = nodes.Finish(node(t, fin, timedOut), fin, nil)["data"].(map[string]any)
	if data["error_code"] != "Infrastructure" || data["error_msg"] != "no machine after 3 attempts" {
		t.Errorf("%v", data)
	}
}

// TestOnlyLegalValues: an illegal error code or artifact would make the API
// refuse the whole write.
func TestOnlyLegalValues(t *testing.T) {
	t.Parallel()
	fin := load(t, "infrastructure")
	fin.Verdict.ErrorCode = "lab_on_fire"
	fin.Files = []*pullabv1.StoredFile{{Name: "console.log", Role: "log", Url: "s3://bucket/console.log"}}
	n := node(t, fin, func(doc map[string]any) {
		doc["data"].(map[string]any)["misc"] = nil
		doc["artifacts"] = nil
	})
	f := nodes.Finish(n, fin, nil)
	if f["data"].(map[string]any)["error_code"] != "Infrastructure" || len(f["artifacts"].(map[string]any)) != 0 {
		t.Errorf("%v", f)
	}
}

func paths(trees []kernelci.Tree) (out []string) {
	for _, tr := range trees {
		var p []string
		for _, e := range tr.Node["path"].([]any) {
			p = append(p, e.(string))
		}
		out = append(out, strings.Join(p[3:], "/")+"="+tr.Node["kind"].(string)+":"+tr.Node["result"].(string))
		out = append(out, paths(tr.Children)...)
	}
	return out
}

func TestTreeShape(t *testing.T) {
	t.Parallel()
	fin := load(t, "ltp")
	fin.Rows = nil
	for _, r := range []struct {
		path string
		st   pullabv1.Status
	}{
		{"ltp", pullabv1.Status_STATUS_FAIL}, {"ltp.a", pullabv1.Status_STATUS_PASS}, {"ltp.a", pullabv1.Status_STATUS_FAIL},
		{"ltp.s", pullabv1.Status_STATUS_PASS}, {"ltp.s.x", pullabv1.Status_STATUS_MISS}, {"boot", pullabv1.Status_STATUS_DONE}, {"q.r", pullabv1.Status_STATUS_SKIP},
	} {
		fin.Rows = append(fin.Rows, &pullabv1.TestRow{Path: r.path, Status: r.st})
	}
	n := node(t, fin, nil)
	got := strings.Join(paths(nodes.Children(n, nodes.Finish(n, fin, fin.Rows), fin, fin.Rows)), " ")
	want := "ltp=job:fail ltp/a=test:pass ltp/a_2=test:fail ltp/s=job:pass ltp/s/x=test:incomplete boot=test:pass q=job:skip q/r=test:skip"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestAdopt: children of an earlier attempt are replaced under their ids, and
// only new ones are made.
func TestAdopt(t *testing.T) {
	t.Parallel()
	fin := load(t, "ltp")
	n := node(t, fin, nil)
	tree := nodes.Children(n, nodes.Finish(n, fin, fin.Rows), fin, fin.Rows)
	ltp := &kernelci.Node{ID: "L", Name: "ltp", Doc: map[string]any{"id": "L", "created": "then", "owner": "us"}}
	leaf := &kernelci.Node{ID: "S", Name: "splice02", Doc: map[string]any{"id": "S"}}
	err := nodes.Adopt(tree, []*kernelci.Node{ltp}, func(id string) ([]*kernelci.Node, error) {
		if id != "L" {
			return nil, io.ErrUnexpectedEOF
		}
		return []*kernelci.Node{leaf}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]any{}
	var walk func([]kernelci.Tree)
	walk = func(ts []kernelci.Tree) {
		for _, tr := range ts {
			if tr.Node["id"] != nil {
				ids[tr.Node["name"].(string)] = tr.Node["id"]
			}
			walk(tr.Children)
		}
	}
	walk(tree)
	if len(ids) != 2 || ids["ltp"] != "L" || ids["splice02"] != "S" {
		t.Errorf("%v", ids)
	}
	for _, tr := range tree {
		if tr.Node["name"] == "ltp" && (tr.Node["created"] != "then" || tr.Node["state"] != "done") {
			t.Errorf("%v", tr.Node)
		}
	}
}
