package kcidb

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
)

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSamplesPass(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"kcidb.submission.tests.json", "kcidb.maestro-rows.reference.json"} {
		if err := Check(read(t, name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestInvalidCases holds every document that was refused by production's
// validator against ours, which must refuse it with the path and the rule.
func TestInvalidCases(t *testing.T) {
	t.Parallel()
	var cases []struct {
		Why string
		Doc json.RawMessage
	}
	if err := json.Unmarshal(read(t, "kcidb.invalid-cases.json"), &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) != 30 {
		t.Fatalf("%d cases, want 30", len(cases))
	}
	want := map[string]string{
		"no version":                      "$: required: ",
		"minor newer than the schema":     "$.version.minor: maximum: ",
		"null value":                      ": type: got null",
		"unknown top-level key":           "$: additionalProperties: ",
		"origin with hyphen":              "$.tests[0].origin: pattern: ",
		"path with space":                 "$.tests[0].path: pattern: ",
		"start_time without offset":       "$.tests[0].start_time: format: ",
		"start_time with space":           "$.tests[0].start_time: format: ",
		"log_excerpt of 16385 characters": "$.tests[0].log_excerpt: maxLength: ",
		"NUL in log_excerpt":              "$.tests[0].log_excerpt: pattern: ",
		"output_files name with slash":    "$.tests[0].output_files[0].name: pattern: ",
		"output_files without url":        "$.tests[0].output_files[0]: required: ",
		"number prefix not in the enum":   "$.tests[0].number.prefix: enum: ",
		"compatible item with space":      "$.tests[0].environment.compatible[0]: pattern: ",
		"misc as list":                    "$.tests[0].misc: type: ",
		"status not in the enum":          "$.tests[0].status: enum: ",
		"unknown key in environment":      "$.tests[0].environment: additionalProperties: ",
		"id without colon":                "$.tests[0].id: pattern: ",
		"path with empty segment":         "$.tests[0].path: pattern: ",
		"output_files name empty":         "$.tests[0].output_files[0].name: pattern: ",
		"number without value":            "$.tests[0].number: required: ",
		"duration as string":              "$.tests[0].duration: type: ",
		"build_id missing":                "$.tests[0]: required: ",
		"status lower case":               "$.tests[0].status: enum: ",
		"id prefix with hyphen":           "$.tests[0].id: pattern: ",
		"origin upper case":               "$.tests[0].origin: pattern: ",
		"path with slash":                 "$.tests[0].path: pattern: ",
		"path with colon":                 "$.tests[0].path: pattern: ",
		"path leading dot":                "$.tests[0].path: pattern: ",
		"unknown key in a test":           "$.tests[0]: additionalProperties: ",
	}
	for _, c := range cases {
		doc := []byte(c.Doc)
		if c.Why == "log_excerpt of 16385 characters" {
			doc = sample(t, func(row map[string]any) { row["log_excerpt"] = strings.Repeat("x", MaxExcerpt+1) })
		}
		err := Check(doc)
		var complaint *Complaint
		if !errors.As(err, &complaint) || len(complaint.Problems) == 0 {
			t.Errorf("%s: got %v, want a complaint", c.Why, err)
			continue
		}
		if want[c.Why] == "" || !strings.Contains(err.Error(), want[c.Why]) {
			t.Errorf("%s: %v does not name %q", c.Why, err, want[c.Why])
		}
	}
}

// sample is the submission sample with its first row changed.
func sample(t testing.TB, change func(row map[string]any)) []byte {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal(read(t, "kcidb.submission.tests.json"), &doc); err != nil {
		t.Fatal(err)
	}
	change(doc["tests"].([]any)[0].(map[string]any))
	b, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRulesOutsideTheSchema(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(row map[string]any)
		want   string
	}{
		"origin of 101 characters": {func(r map[string]any) { r["origin"] = strings.Repeat("a", 101) }, "$.tests[0].origin: column width"},
		"platform of 101 characters": {func(r map[string]any) {
			r["environment"].(map[string]any)["misc"].(map[string]any)["platform"] = strings.Repeat("a", 101)
		}, "$.tests[0].environment.misc.platform: column width"},
		"NUL in misc":      {func(r map[string]any) { r["misc"] = map[string]any{"a": []any{"x\x00"}} }, "$.tests[0].misc.a[0]: jsonb"},
		"NUL in a key":     {func(r map[string]any) { r["misc"] = map[string]any{"a\x00": 1} }, "$.tests[0].misc: jsonb"},
		"final newline":    {func(r map[string]any) { r["path"] = "boot\n" }, "$.tests[0].path: pattern"},
		"log_url not URI":  {func(r map[string]any) { r["log_url"] = "https://h/a b" }, "$.tests[0].log_url: format"},
		"null in a misc":   {func(r map[string]any) { r["misc"] = map[string]any{"a": nil} }, ""},
		"100 is not above": {func(r map[string]any) { r["origin"] = strings.Repeat("a", 100) }, ""},
		"16384 code points of three bytes": {func(r map[string]any) {
			r["log_excerpt"] = strings.Repeat("€", MaxExcerpt)
		}, ""},
	} {
		err := Check(sample(t, c.change))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestComplaintIsShort(t *testing.T) {
	t.Parallel()
	var rows []Test
	for range 50 {
		rows = append(rows, Test{BuildID: "b", ID: "i", Origin: strings.Repeat("A", 10_000)})
	}
	_, err := Pack(rows)
	if err == nil || len(err.Error()) > 2500 || !strings.Contains(err.Error(), "more") {
		t.Errorf("%d bytes: %.200v", len(err.Error()), err)
	}
}

func TestDateTime(t *testing.T) {
	t.Parallel()
	for s, ok := range map[string]bool{
		"2026-08-20T10:18:02.000000+00:00": true, "2026-08-20T10:18:02Z": true, "2024-02-29T00:00:00Z": true,
		"2026-08-20T10:18:02": false, "2026-08-20 10:18:02+00:00": false, "2026-02-29T00:00:00Z": false,
		"2026-08-20T24:00:00Z": false, "2026-08-20T10:18:60Z": false, "0000-08-20T10:18:02Z": false,
		"2026-08-20T10:18:02+0000": false, "": false, "2026-08-20T10:18:02.Z": false, "2026-08-20T10:18:02Z\n": false,
	} {
		if got := dateTime(s) == nil; got != ok {
			t.Errorf("%q: %v, want %v", s, got, ok)
		}
	}
}

func TestURI(t *testing.T) {
	t.Parallel()
	for s, ok := range map[string]bool{
		"https://example-bucket.s3.us-east-1.amazonaws.com/logs/6a/console.log": true,
		"http://127.0.0.1:8001/a?b=c%20d#e":                                     true,
		"http://[::1]:80/":                                                      true, "mailto:a@b": true, "urn:x:y": true, "https://h": true,
		"https://h/a b": false, "https://h/ä": false, "/relative": false, "": false, "https://h/%zz": false,
		"http://[::1/": false, "http://[1.2.3.4]/": false, "h ttp://a": false, "https://h/{x}": false, "https://h/\n": false,
	} {
		if got := uri(s) == nil; got != ok {
			t.Errorf("%q: %v, want %v", s, got, ok)
		}
	}
}

func TestPublicURL(t *testing.T) {
	t.Parallel()
	for s, ok := range map[string]bool{
		"https://h/x": true, "http://h:80": true, "s3://b/k": false, "file:///x": false, "https://u:p@h/x": false, "https:///x": false, "": false,
		"https://h/a@b": true,
	} {
		if got := PublicURL(s); got != ok {
			t.Errorf("%q: %v, want %v", s, got, ok)
		}
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(read(f, "kcidb.submission.tests.json"))
	f.Add([]byte(`{"version":{"major":5}}`))
	f.Add([]byte(`{"version":{"major":5},"tests":[{"misc":{"a":[["\u0000"]]}},1]}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := Check(b); err == nil && !json.Valid(b) {
			t.Errorf("accepted what is no JSON: %q", b)
		}
	})
}
