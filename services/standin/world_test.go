package standin_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/services/standin"
	"github.com/pullab/pullab/services/standin/fault"
)

func do(t *testing.T, c *http.Client, method, url, token string, body any) (int, []byte) {
	t.Helper()
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, r)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return res.StatusCode, b
}

func unmarshal[T any](t *testing.T, b []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	return v
}

// story is a job's whole life as a lab sees it.
func story(t *testing.T, w *standin.World, c *http.Client) {
	t.Helper()
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(kernel, []byte("MZ a kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := w.OfferJob(t.Context(), standin.Job{Kernel: kernel})
	if err != nil {
		t.Fatal(err)
	}
	_, b := do(t, c, "GET", w.APIURL()+"/events?state=available&kind=job&recursive=true&limit=1000", "", nil)
	events := unmarshal[[]struct {
		Node struct {
			ID        string
			Artifacts map[string]string
			Data      map[string]any
			Path      []string
		}
	}](t, b)
	if len(events) != 1 || events[0].Node.ID != id {
		t.Fatalf("events: %s", b)
	}
	_, b = do(t, c, "GET", events[0].Node.Artifacts["job_definition"], "", nil)
	if !strings.HasPrefix(string(b), "\n\n") {
		t.Error("the definition does not start with blank lines")
	}
	def := unmarshal[struct {
		Artifacts map[string]string
		Integrity map[string]map[string]string
	}](t, b)
	if def.Integrity["sha256"]["_comment"] == "" {
		t.Errorf("integrity: %v", def.Integrity)
	}
	if _, b = do(t, c, "GET", def.Artifacts["kernel"], "", nil); string(b) != "MZ a kernel" {
		t.Errorf("kernel: %q", b)
	}
	data := events[0].Node.Data
	data["job_id"] = "demo:1"
	if code, b := do(t, c, "PATCH", w.APIURL()+"/node/"+id, w.APIToken(), map[string]any{"state": "done", "result": "pass", "data": data}); code != 200 {
		t.Fatalf("PATCH: %d %s", code, b)
	}
	if n, ok := w.Node(id); !ok || n.State != "done" || n.DataString("job_id") != "demo:1" {
		t.Errorf("node: %+v", n)
	}
	row := map[string]any{"id": w.Origin() + ":" + id, "origin": w.Origin(), "build_id": "maestro:1", "path": "boot", "status": "PASS"}
	sub := map[string]any{"version": map[string]int{"major": 5, "minor": 3}, "tests": []any{row}}
	code, b := do(t, c, "POST", w.SubmitURL(), w.KCIDBToken(), sub)
	if code != 200 {
		t.Fatalf("submit: %d %s", code, b)
	}
	receipt := unmarshal[struct{ ID string }](t, b)
	_, b = do(t, c, "GET", strings.TrimSuffix(w.SubmitURL(), "/submit")+"/status?id="+receipt.ID, w.KCIDBToken(), nil)
	if !strings.Contains(string(b), `"processed"`) {
		t.Errorf("status: %s, because %s", b, w.KCIDB.Failure(receipt.ID))
	}
	if rows := w.Rows(id); len(rows) != 1 || rows[0].Text("status") != "PASS" {
		t.Errorf("rows: %v", rows)
	}
}

func TestStoryInProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, err := standin.New(standin.Options{})
		if err != nil {
			t.Fatal(err)
		}
		story(t, w, &http.Client{Transport: w.Transport()})
	})
}

func TestStoryOverSockets(t *testing.T) {
	w, err := standin.Start(t.Context(), standin.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	story(t, w, http.DefaultClient)
	if code, b := do(t, http.DefaultClient, "GET", strings.TrimSuffix(w.APIURL(), "/latest")+"/healthz", "", nil); code != 200 || string(b) != "OK" {
		t.Errorf("healthz: %d %s", code, b)
	}
}

// A restart with the same directory keeps nodes, uploads, rows and tokens.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	w, err := standin.New(standin.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	story(t, w, &http.Client{Transport: w.Transport()})
	again, err := standin.New(standin.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Transport: again.Transport()}
	_, b := do(t, c, "GET", again.APIURL()+"/nodes?kind=job", "", nil)
	page := unmarshal[struct{ Items []struct{ ID string } }](t, b)
	if len(page.Items) != 1 || len(again.Rows(page.Items[0].ID)) != 1 {
		t.Errorf("after the restart: %s, rows %v", b, again.KCIDB.Rows())
	}
	if again.APIToken() != w.APIToken() {
		t.Error("the token changed")
	}
	if _, before := do(t, c, "GET", w.APIURL()+"/events", "", nil); len(unmarshal[[]any](t, before)) != 5 {
		t.Errorf("events: %s", before)
	}
}

// A job of an earlier process whose definition cannot be fetched any more is not
// offered again.
func TestStaleJobs(t *testing.T) {
	o := standin.Options{Dir: t.TempDir()}
	var ids []string
	for range 2 {
		w, err := standin.Start(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			if n, _ := w.Node(id); n.State != "done" || n.DataString("error_code") != "submit_error" {
				t.Errorf("%s: %+v", id, n)
			}
		}
		id, err := w.OfferJob(t.Context(), standin.Job{})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
		defer w.Close() // keeps the port taken, so that the next one has another
	}
}

// What was incomplete is offered again, at most three times.
func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, err := standin.New(standin.Options{})
		if err != nil {
			t.Fatal(err)
		}
		id, err := w.OfferJob(t.Context(), standin.Job{})
		if err != nil {
			t.Fatal(err)
		}
		for n := range 4 {
			backoff.Sleep(t.Context(), 7*time.Hour)
			if closed, err := w.Maestro.TickTimeouts(); err != nil || len(closed) == 0 {
				t.Fatalf("timeouts: %v %v", closed, err)
			}
			if node, _ := w.Node(id); node.RetryCounter != n || node.DataString("error_code") != "node_timeout" {
				t.Fatalf("attempt %d: %+v", n, node)
			}
			ids, err := w.TickRetries(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if n == 3 {
				if len(ids) != 0 {
					t.Errorf("a fourth retry: %v", ids)
				}
				return
			}
			if len(ids) != 1 {
				t.Fatalf("retries: %v", ids)
			}
			id = ids[0]
		}
	})
}

func TestFaultsOfTheWorld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, err := standin.New(standin.Options{Faults: fault.Config{API: []fault.Rule{{Path: "/latest/events", Status: 503, Times: 1, RetryAfterS: 7}}}})
		if err != nil {
			t.Fatal(err)
		}
		c := &http.Client{Transport: w.Transport()}
		if code, _ := do(t, c, "GET", w.APIURL()+"/events", "", nil); code != 503 {
			t.Errorf("first: %d", code)
		}
		if code, _ := do(t, c, "GET", w.APIURL()+"/events", "", nil); code != 200 {
			t.Errorf("second: %d", code)
		}
		// The one documented reply that only time brings about: /nodes/fast slower
		// than 15 s.
		w.APIFaults.Set(fault.Rule{Path: "/latest/nodes/fast", LatencyMS: 15_000, Status: 504, Body: `{"detail":"Timeout while fetching nodes: "}`, ContentType: "application/json"})
		start := time.Now()
		if code, b := do(t, c, "GET", w.APIURL()+"/nodes/fast", "", nil); code != 504 || time.Since(start) != 15*time.Second || !json.Valid(b) {
			t.Errorf("504: %d %s after %v", code, b, time.Since(start))
		}
	})
}
