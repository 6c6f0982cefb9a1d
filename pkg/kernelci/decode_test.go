package kernelci

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func sample(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseTime(t *testing.T) {
	want := time.Date(2026, 8, 20, 10, 5, 12, 874000000, time.UTC)
	for in, want := range map[string]time.Time{
		"2026-08-20T10:05:12.874000":       want,
		"2026-08-20T10:05:12.874":          want,
		"2026-08-20T10:05:12.874000Z":      want,
		"2026-08-20T10:05:12.874000+00:00": want,
		"2026-08-20T12:05:12.874000+02:00": want,
		"2026-08-20T12:05:12.874000+0200":  want,
		"2026-08-20 10:05:12.874000":       want,
		"2026-08-20T10:05:12":              want.Truncate(time.Second),
		"2026-08-20":                       want.Truncate(24 * time.Hour),
	} {
		got, err := ParseTime(in)
		if err != nil || !got.Equal(want) || got.Location() != time.UTC {
			t.Errorf("ParseTime(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "1753000000", "yesterday", "2026-13-01T00:00:00", "2026-08-20T10:05:12.874000 02:00"} {
		if got, err := ParseTime(in); err == nil {
			t.Errorf("ParseTime(%q) = %v, want an error", in, got)
		}
	}
}

func TestDecodeNode(t *testing.T) {
	n, err := decodeNode(sample(t, "node.job.available.json"))
	if err != nil {
		t.Fatal(err)
	}
	if n.ID != "6a86d157c5867fba94731e66" || n.State != "available" || n.Result != "" || n.Parent != "6a86cc10c5867fba94730b11" ||
		n.Data.Runtime != "pull-labs-aws-ec2" || n.Data.Platform != "aws-ec2-x86_64" || n.Data.JobID != "" ||
		len(n.Path) != 3 || !strings.HasPrefix(n.Artifacts["job_definition"], "https://") ||
		n.Timeout != time.Date(2026, 8, 20, 16, 5, 11, 204000000, time.UTC) {
		t.Errorf("%+v", n)
	}
	if len(n.Doc) != 23 {
		t.Errorf("Doc has %d keys, want all 23", len(n.Doc))
	}
	if n.Doc["retry_counter"] != json.Number("0") {
		t.Errorf("retry_counter in Doc is %#v", n.Doc["retry_counter"])
	}
	if !bytes.Contains(n.Data.KernelRevision, []byte(`"commit": "5f3c2b1a`)) {
		t.Errorf("kernel_revision is not as it came: %s", n.Data.KernelRevision)
	}
}

func TestDecodeNodeBad(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want string
		at   int64
	}{
		"empty":       {"", "empty", 0},
		"truncated":   {`{"id":"6a86d157c5867fba94731e66","pa`, "breaks off", 36},
		"no id":       {`{"kind":"job"}`, "without an id", 0},
		"number id":   {`{"id":12}`, "id is a number", 8},
		"list":        {`[1]`, "array", 1},
		"data string": {`{"id":"x","data":"oops"}`, "data is a string", 23},
		"job_id":      {`{"id":"x","data":{"job_id":7}}`, "job_id is a number", 28},
		"trailing":    {`{"id":"x"} {}`, "follows", 12},
		"html":        {`<html><body>Bad Gateway`, "not JSON", 1},
		"stamp":       {`{"id":"x","timeout":"soon"}`, "not a timestamp", -1},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := decodeNode([]byte(c.in))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %+v, %v; want an error with %q", n, err, c.want)
			}
			var d *decodeError
			if !errors.As(err, &d) || c.at >= 0 && d.offset != c.at {
				t.Errorf("offset %+v, want %d", d, c.at)
			}
		})
	}
	if n, err := decodeNode([]byte(" null\n")); n != nil || err != nil {
		t.Errorf("null: %v, %v", n, err)
	}
}

func TestDecodeEvents(t *testing.T) {
	for name, count := range map[string]int{"events.plain.json": 3, "events.recursive.json": 3, "events.tricky.json": 7} {
		got, err := decodeEvents(sample(t, name))
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != count {
			t.Errorf("%s: %d events, want %d", name, len(got), count)
		}
		for _, e := range got {
			if e.Err != nil || e.ID == "" || e.NodeID == "" || e.Timestamp.IsZero() {
				t.Errorf("%s: %+v", name, e)
			}
			if name == "events.plain.json" && e.Node != nil {
				t.Errorf("%s: node without recursive", name)
			}
		}
	}
}

// One bad event costs the page nothing else, and keeps what was good of it.
func TestDecodeEventsOneBad(t *testing.T) {
	good := `{"timestamp":"2026-08-20T10:05:15","sequence_id":1,"channel":"node","data":{"op":"updated","id":"a"},"id":"e2","node":{"id":"a"}}`
	for name, bad := range map[string]string{
		"string":         `"boo"`,
		"null":           `null`,
		"number id":      `{"id":5,"timestamp":"2026-08-20T10:05:15"}`,
		"no time":        `{"id":"e1","channel":"node"}`,
		"epoch time":     `{"id":"e1","timestamp":1753000000}`,
		"node type":      `{"id":"e1","timestamp":"2026-08-20T10:05:15","data":{"id":"n"},"node":{"id":"n","path":"x"}}`,
		"node without":   `{"id":"e1","timestamp":"2026-08-20T10:05:15","data":{"id":"n"},"node":{}}`,
		"data on node":   `{"id":"e1","timestamp":"2026-08-20T10:05:15","channel":"node","data":[]}`,
		"number node id": `{"id":"e1","timestamp":"2026-08-20T10:05:15","channel":"node","data":{"id":7}}`,
	} {
		t.Run(name, func(t *testing.T) {
			page := "[" + bad + ", " + good + "]"
			got, err := decodeEvents([]byte(page))
			if err != nil || len(got) != 2 {
				t.Fatal(got, err)
			}
			if got[0].Err == nil || !strings.Contains(got[0].Err.Error(), "byte ") || got[0].Node != nil {
				t.Errorf("bad event: %+v", got[0])
			}
			if got[1].Err != nil || got[1].Node == nil || got[1].NodeID != "a" {
				t.Errorf("good event: %+v", got[1])
			}
			if strings.HasPrefix(name, "node ") && (got[0].ID != "e1" || got[0].Timestamp.IsZero() || got[0].NodeID != "n") {
				t.Errorf("what was good is lost: %+v", got[0])
			}
		})
	}
}

func TestDecodeEventsOtherChannels(t *testing.T) {
	for _, data := range []string{`"BEEP"`, `[1,2]`, `{"id":7}`, `null`, `{}`} {
		got, err := decodeEvents([]byte(`[{"id":"e","timestamp":"2026-08-20T10:05:15","channel":"retry","data":` + data + `,"extra":{"x":1e400}}]`))
		if err != nil || got[0].Err != nil || got[0].NodeID != "" {
			t.Errorf("%s: %+v, %v", data, got, err)
		}
	}
}

func TestDecodeEventsTruncated(t *testing.T) {
	page := sample(t, "events.recursive.json")
	for _, n := range []int{1, 2, 100, len(page) / 2, len(page) - 3} {
		_, err := decodeEvents(page[:n])
		var d *decodeError
		if !errors.As(err, &d) || d.offset != int64(n) {
			t.Errorf("cut at %d: %v (%+v)", n, err, d)
		}
	}
}

func TestDecodePage(t *testing.T) {
	nodes, total, err := decodePage([]byte(`{"items":[{"id":"a"},{"id":3},null,{"id":"b","data":null,"artifacts":null,"path":null}],"total":12,"limit":4,"offset":0}`))
	var some *ItemsError
	if !errors.As(err, &some) || len(some.Errs) != 2 || total != 12 || len(nodes) != 2 || nodes[1].ID != "b" {
		t.Errorf("%v, %d, %v", nodes, total, err)
	}
	for _, bad := range []string{`[]`, `{}`, `{"items":{}}`, `{"items":[{"id":"a"}`, `{"items":[],"total":"x"}`} {
		if nodes, _, err := decodePage([]byte(bad)); err == nil {
			t.Errorf("%s: %v", bad, nodes)
		}
	}
}

// Whatever comes: no panic, and a node that is decoded can be sent back with
// the same meaning.
func FuzzDecodeNode(f *testing.F) {
	for _, name := range []string{"node.job.available.json", "node.job.done.json", "node.kbuild.aws-ec2-x86.json", "node.checkout.json"} {
		f.Add(sample(f, name))
	}
	f.Add([]byte(`null`))
	f.Add([]byte(`{"id":"x","data":{"kernel_revision":null,"big":123456789012345678901234567890},"artifacts":{"a":null}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := decodeNode(b)
		if err != nil || n == nil {
			return
		}
		out, err := encode(n.Doc)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeNode(out)
		if err != nil {
			t.Fatalf("not decodable again: %v\n%s", err, out)
		}
		twice, err := encode(again.Doc)
		if err != nil || !bytes.Equal(out, twice) {
			t.Fatalf("%s\n%s\n%v", out, twice, err)
		}
	})
}

func FuzzDecodeEvents(f *testing.F) {
	for _, name := range []string{"events.plain.json", "events.recursive.json", "events.tricky.json"} {
		f.Add(sample(f, name))
	}
	f.Add([]byte(`[{"id":"e"},null,"x",{"timestamp":"2026-08-20T10:05:15","data":{"id":1}}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		events, err := decodeEvents(b)
		if err != nil && events != nil {
			t.Fatal("events beside an error")
		}
		for _, e := range events {
			if e.Err == nil && e.Timestamp.IsZero() {
				// The zero time is a legal stamp, but nothing that a cursor may hold.
				t.Fatalf("an event without error or time: %+v", e)
			}
			if e.Err != nil && e.Node != nil {
				t.Fatal("a node beside an error")
			}
		}
	})
}
