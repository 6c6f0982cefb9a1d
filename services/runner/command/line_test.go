package command

import (
	"bufio"
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/pullab/pullab/pkg/executor"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

func read(text string) (*tail, error) {
	t := &tail{r: bufio.NewReader(strings.NewReader(text))}
	err := t.read(true, func(pullabv1.RunPhase, string) {})
	return t, err
}

func TestBadLines(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, text, want string }{
		{"not JSON", "{\"done\": {}", "line 1, at byte 0"},
		{"second line", "{\"progress\":{\"phase\":\"booting\"}}\nBooting\n", "line 2, at byte 33"},
		{"wrong type", `{"row": 1}`, "row"},
		{"unknown key", `{"rows": {}}`, "unknown field"},
		{"unknown key inside", `{"row": {"path": "a", "status": "PASS", "color": "red"}}`, "color"},
		{"two keys", `{"done": {}, "kernel": {"fate": "booted"}}`, "exactly one"},
		{"no key", `{}`, "exactly one"},
		{"null", `null`, "exactly one"},
		{"two objects", `{"done": {}} {"done": {}}`, "follows"},
		{"status", `{"row": {"path": "a", "status": "ok"}}`, `"ok"`},
		{"no status", `{"row": {"path": "a"}}`, "row.status"},
		{"unspecified", `{"row": {"path": "a", "status": "UNSPECIFIED"}}`, "row.status"},
		{"no path", `{"row": {"status": "PASS"}}`, "row.path"},
		{"duration", `{"row": {"path": "a", "status": "PASS", "duration_s": -1}}`, "duration_s"},
		{"long duration", `{"row": {"path": "a", "status": "PASS", "duration_s": 1e300}}`, "duration_s"},
		{"early", `{"row": {"path": "a", "status": "PASS", "start_time": "0002-01-01T00:00:00Z"}}`, "start_time"},
		{"fate", `{"kernel": {"fate": "fine"}}`, "fine"},
		{"phase", `{"progress": {"phase": "dancing"}}`, "dancing"},
		{"file outside", `{"file": {"name": "../x"}}`, "plain"},
		{"file nowhere", `{"file": {"name": ".."}}`, "plain"},
		{"lab error", `{"lab_error": {"reason": "x"}}`, "lab_error needs"},
		{"long line", strings.Repeat("x", maxLine+2), "longer than"},
		{"long line in parts", strings.Repeat(" ", maxLine+2) + "\n", "longer than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r, err := read(c.text)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "line ") {
				t.Errorf("%v (over %v)", err, r.over)
			}
		})
	}
}

func TestManyRows(t *testing.T) {
	t.Parallel()
	line := `{"row":{"path":"a","status":"PASS"}}` + "\n"
	if _, err := read(strings.Repeat(line, maxRows+1)); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("line %d", maxRows+1)) {
		t.Error(err)
	}
}

// TestGrowing: a line that arrives in pieces is one line, and without its end it
// counts only when no more will come.
func TestGrowing(t *testing.T) {
	t.Parallel()
	var file bytes.Buffer
	tl := &tail{r: bufio.NewReader(&file)}
	quiet := func(pullabv1.RunPhase, string) {}
	for _, piece := range []string{`{"kernel": {"fate"`, `: "booted"}}`, "\n", "\n", `{"done": {}}`} {
		file.WriteString(piece)
		if err := tl.read(false, quiet); err != nil {
			t.Fatal(err)
		}
	}
	if tl.over || tl.outcome.Kernel != executor.KernelBooted {
		t.Errorf("%+v", tl.report)
	}
	if err := tl.read(true, quiet); err != nil || !tl.over || tl.lines != 3 {
		t.Errorf("%v %+v", err, tl.report)
	}
}

func TestBlame(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ text, console, want string }{
		{`{"kernel":{"fate":"failed","reason":"Oops"}}`, "", "Oops"},
		{`{"kernel":{"fate":"hung"}}`, "", "hung"},
		{`{"kernel":{"fate":"failed"}}` + "\n" + `{"file":{"name":"c.log","log":true}}`, "panic!", "panic!"},
		{`{"kernel":{"fate":"failed"}}` + "\n" + `{"row":{"path":"boot","status":"FAIL","log_excerpt":"mine"}}`, "panic!", "mine"},
		{`{"kernel":{"fate":"failed"}}` + "\n" + `{"row":{"path":"boot","status":"PASS"}}`, "", "failed"},
	} {
		r, err := read(c.text)
		if err != nil {
			t.Fatal(err)
		}
		r.blame(func(string) string { return c.console })
		last := r.outcome.Rows[len(r.outcome.Rows)-1]
		if last.GetStatus() != pullabv1.Status_STATUS_FAIL || !strings.Contains(last.GetLogExcerpt(), c.want) {
			t.Errorf("%s: %v", c.text, r.outcome.Rows)
		}
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	p, err := parseStat([]byte("42 (a) b (c) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1 1"))
	if err != nil || p.pid != 42 || p.session != 42 || p.start != "987654" || p.zombie {
		t.Errorf("%+v %v", p, err)
	}
	for _, bad := range []string{"", "42 (x", "42 (x) S 1 2", "x (x) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1"} {
		if p, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, p)
		}
	}
}

func FuzzOutput(f *testing.F) {
	f.Add("{\"kernel\":{\"fate\":\"failed\"}}\n{\"row\":{\"path\":\"boot\",\"status\":\"FAIL\"}}\n{\"done\":{}}\n")
	f.Add("{\"lab_error\":{\"reason\":\"a\",\"fix\":\"b\"}}")
	f.Add("{\"row\":{\"path\":\"a\",\"status\":\"PASS\",\"start_time\":\"2026-01-01T00:00:00Z\",\"duration_s\":1e9,\"number\":{\"value\":1}}}")
	f.Fuzz(func(t *testing.T, text string) {
		one, err1 := read(text)
		two, err2 := read(text)
		if (err1 == nil) != (err2 == nil) || one.over != two.over || len(one.outcome.Rows) != len(two.outcome.Rows) {
			t.Fatal("two readers of one output disagree")
		}
		one.blame(func(string) string { return "" })
		for _, r := range one.outcome.Rows {
			if r.GetPath() == "" || r.GetStatus() == 0 || r.GetDuration().AsDuration() < 0 || r.GetStartTime() != nil && r.GetStartTime().CheckValid() != nil {
				t.Fatalf("%v", r)
			}
		}
	})
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("42 (sh) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := parseStat(b); err == nil && p.pid <= 1 {
			t.Fatalf("%+v would be signalled", p)
		}
	})
}
