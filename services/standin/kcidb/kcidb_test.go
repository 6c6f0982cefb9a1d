package kcidb_test

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/services/standin/internal/inproc"
	"github.com/pullab/pullab/services/standin/internal/jwt"
	"github.com/pullab/pullab/services/standin/kcidb"
)

const secret = "a secret"

type client struct {
	t    *testing.T
	s    *kcidb.Server
	http *http.Client
}

func newClient(t *testing.T, o kcidb.Options) *client {
	t.Helper()
	s, err := kcidb.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return &client{t, s, &http.Client{Transport: inproc.Transport{"kcidb.test": s}}}
}

// reply is a response whose body was read.
type reply struct {
	StatusCode int
	Header     http.Header
}

func (c *client) do(method, path, authorization, body string) (reply, string) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, "http://kcidb.test"+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
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
	return reply{res.StatusCode, res.Header}, string(b)
}

func bearer() string {
	return "Bearer " + kcidb.Mint(secret, "pullab_demo", time.Now().Add(time.Hour))
}

// submit gives the submission's id.
func (c *client) submit(body string) string {
	c.t.Helper()
	res, b := c.do("POST", "/submit", bearer(), body)
	if res.StatusCode != 200 {
		c.t.Fatalf("submit: %d %s", res.StatusCode, b)
	}
	var receipt struct{ ID string }
	if err := json.Unmarshal([]byte(b), &receipt); err != nil {
		c.t.Fatal(err)
	}
	return receipt.ID
}

func (c *client) status(id string) string {
	c.t.Helper()
	_, b := c.do("GET", "/status?id="+id, bearer(), "")
	var s struct{ Status string }
	if err := json.Unmarshal([]byte(b), &s); err != nil {
		c.t.Fatalf("%v in %s", err, b)
	}
	return s.Status
}

func sample(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("../testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var anyID = regexp.MustCompile(`[A-Za-z0-9]{32}`)

// TestDocumentedReplies reproduces every reply of kcidb.restd.responses.json.
func TestDocumentedReplies(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put := func(path string) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("submission-T.json.temp")
	put("submission-S.json")
	put("archive/submission-A.json")
	put("failed/submission-F.json")
	c := newClient(t, kcidb.Options{Secret: secret, Dir: dir, Delay: time.Hour})
	broken := newClient(t, kcidb.Options{Secret: secret, Dir: filepath.Join(t.TempDir(), "d")})
	breakSpool(t, broken)
	size4821 := `{"data":"` + strings.Repeat("x", 4821-len(`{"data":""}`)) + `"}`
	wrong := "Bearer " + kcidb.Mint("another", "x", time.Now().Add(time.Hour))
	type ask struct{ method, path, auth, body, id string }
	asks := map[string]ask{
		"POST /submit, valid JSON and token":                               {"POST", "/submit", bearer(), size4821, ""},
		"POST /submit, no Authorization header":                            {"POST", "/submit", "", "{}", ""},
		"POST /submit, Authorization with one word only":                   {"POST", "/submit", "Bearer", "{}", ""},
		"POST /submit, bad signature":                                      {"POST", "/submit", wrong, "{}", ""},
		"POST /submit, body is not JSON (message is the serde_json error)": {"POST", "/submit", bearer(), "x", ""},
		"POST /submit, disk error":                                         {"POST", "/submit", bearer(), "{}", ""},
		"GET /status?id=X while .json.temp exists":                         {"GET", "/status?id=T", bearer(), "", "T"},
		"GET /status?id=X while spooled":                                   {"GET", "/status?id=S", bearer(), "", "S"},
		"GET /status?id=X in archive/":                                     {"GET", "/status?id=A", bearer(), "", "A"},
		"GET /status?id=X in failed/":                                      {"GET", "/status?id=F", bearer(), "", "F"},
		"GET /status?id=X nowhere":                                         {"GET", "/status?id=N", bearer(), "", "N"},
		"GET /status?id=":                                                  {"GET", "/status?id=", bearer(), "", ""},
		"GET /status?id=a-b":                                               {"GET", "/status?id=a-b", bearer(), "", ""},
		"GET /authtest ok":                                                 {"GET", "/authtest", bearer(), "", ""},
		"GET /health":                                                      {"GET", "/health", "", "", ""},
	}
	var cases []struct {
		Request  string
		HTTP     int
		Type     string            `json:"content_type"`
		Body     map[string]string `json:"body"`
		BodyText string            `json:"body_text"`
	}
	if err := json.Unmarshal(sample(t, "kcidb.restd.responses.json"), &cases); err != nil {
		t.Fatal(err)
	}
	for _, want := range cases {
		a, ok := asks[want.Request]
		if !ok {
			t.Errorf("no request is made for %q", want.Request)
			continue
		}
		via := c
		if strings.Contains(want.Request, "disk error") {
			via = broken
		}
		res, b := via.do(a.method, a.path, a.auth, a.body)
		exp := want.BodyText
		if want.Body != nil {
			if a.id != "" {
				want.Body["id"] = a.id
			}
			exp = `{"id":"` + want.Body["id"] + `","status":"` + want.Body["status"] + `","message":"` + want.Body["message"] + `"}`
		}
		b, exp = anyID.ReplaceAllString(b, "ID"), anyID.ReplaceAllString(exp, "ID")
		if res.StatusCode != want.HTTP || b != exp || res.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("%s:\n got %d %s (%s)\nwant %d %s", want.Request, res.StatusCode, b, res.Header.Get("Content-Type"), want.HTTP, exp)
		}
	}
}

// breakSpool takes the spool away, as a full disk does.
func breakSpool(t *testing.T, c *client) {
	t.Helper()
	dir := c.s.Dir()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	c := newClient(t, kcidb.Options{Secret: secret, UnifiedSecret: "unified"})
	now := time.Now()
	sign := func(claims map[string]any) string { return "Bearer " + jwt.Sign(secret, claims) }
	for name, s := range map[string]struct{ auth, message string }{
		"good":                  {bearer(), "Authentication successful"},
		"scheme is not checked": {strings.Replace(bearer(), "Bearer", "Basic", 1), "Authentication successful"},
		"unified secret":        {"Bearer " + kcidb.Mint("unified", "x", now.Add(time.Hour)), "Authentication successful"},
		"within the leeway":     {sign(map[string]any{"origin": "x", "exp": now.Add(-30 * time.Second).Unix()}), "Authentication successful"},
		"expired":               {sign(map[string]any{"origin": "x", "exp": now.Add(-90 * time.Second).Unix()}), "ExpiredSignature"},
		"no exp":                {sign(map[string]any{"origin": "x"}), "Missing required claim: exp"},
		"no origin":             {sign(map[string]any{"exp": now.Add(time.Hour).Unix()}), "JSON error: missing field `origin`"},
		"aud":                   {"Bearer " + kcidb.MintUnified(secret, "x", now.Add(time.Hour)), "InvalidAudience"},
		"two parts":             {"Bearer a.b", "InvalidToken"},
		"another algorithm":     {"Bearer eyJhbGciOiJub25lIn0.e30.", "InvalidAlgorithm"},
		"empty":                 {"Bearer ", "InvalidToken"},
	} {
		res, b := c.do("GET", "/authtest", s.auth, "")
		want := 401
		if strings.HasPrefix(s.message, "Auth") {
			want = 200
		}
		if res.StatusCode != want || !strings.Contains(b, `"message":"`+s.message+`"`) {
			t.Errorf("%s: %d %s, want %q", name, res.StatusCode, b, s.message)
		}
	}
	open := newClient(t, kcidb.Options{})
	if res, _ := open.do("GET", "/authtest", "", ""); res.StatusCode != 200 {
		t.Errorf("an empty secret turns authentication off: %d", res.StatusCode)
	}
	// The query's extractor comes before the token.
	if res, _ := c.do("GET", "/status", "", ""); res.StatusCode != 400 {
		t.Errorf("/status without id: %d", res.StatusCode)
	}
	if res, b := c.do("GET", "/nowhere", "", ""); res.StatusCode != 404 || b != "" {
		t.Errorf("/nowhere: %d %q", res.StatusCode, b)
	}
	if res, _ := c.do("GET", "/submit", "", ""); res.StatusCode != 405 {
		t.Errorf("GET /submit: %d", res.StatusCode)
	}
}

func TestNotJSON(t *testing.T) {
	t.Parallel()
	c := newClient(t, kcidb.Options{})
	for body, want := range map[string]string{
		"":                       "EOF while parsing a value at line 1 column 0",
		"{\n":                    "EOF while parsing a value at line 2 column 0",
		"{\n\"a\": x}":           "expected value at line 2 column 6",
		"{} {}":                  "trailing characters at line 1 column 4",
		"\xff":                   "invalid utf-8 sequence",
		strings.Repeat("[", 200): "recursion limit exceeded at line 1 column 129",
	} {
		res, b := c.do("POST", "/submit", "", body)
		if res.StatusCode != 400 || !strings.Contains(b, want) {
			t.Errorf("%.20q: %d %s, want %q", body, res.StatusCode, b, want)
		}
	}
	for _, body := range []string{`{"data":"test"}`, " 5 ", "null", `"[[["`} {
		if res, b := c.do("POST", "/submit", "", body); res.StatusCode != 200 {
			t.Errorf("%s: %d %s", body, res.StatusCode, b)
		}
	}
}

// The 30 invalid documents are taken with 200 and end in failed/; the valid ones
// end in archive/.
func TestSchema(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := newClient(t, kcidb.Options{Secret: secret, Dir: dir})
	var cases []struct {
		Why string
		Doc json.RawMessage
	}
	if err := json.Unmarshal(sample(t, "kcidb.invalid-cases.json"), &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) != 30 {
		t.Fatalf("%d cases", len(cases))
	}
	for _, bad := range cases {
		id := c.submit(string(bad.Doc))
		if got := c.status(id); got != "failed" {
			t.Errorf("%s: %s", bad.Why, got)
		}
		if _, err := os.Stat(filepath.Join(dir, "failed", "submission-"+id+".json")); err != nil {
			t.Error(err)
		}
		if c.s.Failure(id) == "" {
			t.Errorf("%s: no reason", bad.Why)
		}
	}
	if rows := c.s.Rows(); len(rows) != 0 {
		t.Errorf("rows of refused submissions: %v", rows)
	}
	for _, name := range []string{"kcidb.submission.tests.json", "kcidb.maestro-rows.reference.json"} {
		id := c.submit(string(sample(t, name)))
		if got := c.status(id); got != "processed" {
			t.Errorf("%s: %s: %s", name, got, c.s.Failure(id))
		}
		if _, err := os.Stat(filepath.Join(dir, "archive", "submission-"+id+".json")); err != nil {
			t.Error(err)
		}
	}
	if len(c.s.NodeRows("6a86d157c5867fba94731e66")) < 2 {
		t.Errorf("rows: %v", c.s.Rows())
	}
}

func doc(rows ...string) string {
	return `{"version":{"major":5,"minor":3},"tests":[` + strings.Join(rows, ",") + `]}`
}

func row(id, more string) string {
	return `{"id":"` + id + `","origin":"a","build_id":"maestro:1"` + more + `}`
}

// More formats than the 30 cases have.
func TestFormats(t *testing.T) {
	t.Parallel()
	for body, ok := range map[string]bool{
		row("a:1", `,"log_url":"https://h.example/a%20b"`):            true,
		row("a:1", `,"log_url":"https://h.example/a b"`):              false,
		row("a:1", `,"log_url":"https://h.example/ä"`):                false,
		row("a:1", `,"log_url":"/relative"`):                          false,
		row("a:1", `,"log_url":"https://h.example/%zz"`):              false,
		row("a:1", `,"start_time":"2026-08-20T10:18:02+00:00"`):       true,
		row("a:1", `,"start_time":"2026-08-20T10:18:02Z"`):            true,
		row("a:1", `,"start_time":"2026-13-20T10:18:02Z"`):            false,
		row("a:1", `,"misc":{"x":null}`):                              true,
		row("a:1", `,"log_excerpt":"`+strings.Repeat("ä", 16384)+`"`): true,
		row("a:1", `,"log_excerpt":"`+strings.Repeat("ä", 16385)+`"`): false,
	} {
		if _, err := kcidb.Validate([]byte(doc(body))); (err == nil) != ok {
			t.Errorf("%.120s: %v", body, err)
		}
	}
}

// A submission is ready for a while before its fate is known.
func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, kcidb.Options{Secret: secret, Delay: 5 * time.Second})
		good, bad := c.submit(doc(row("a:1", ""))), c.submit(`{"data":"test"}`)
		if c.status(good) != "ready" || c.status(bad) != "ready" || len(c.s.Rows()) != 0 {
			t.Error("ingested too early")
		}
		backoff.Sleep(t.Context(), 5*time.Second)
		if c.status(good) != "processed" || c.status(bad) != "failed" || len(c.s.Rows()) != 1 {
			t.Errorf("%s %s %v", c.status(good), c.status(bad), c.s.Rows())
		}
	})
}

// The database refuses a batch for the fault of one, or of nobody.
func TestNeighbours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, kcidb.Options{Secret: secret, Delay: time.Second})
		for name, fault := range map[string]string{
			"NUL in misc":   row("a:2", `,"misc":{"x":"a\u0000b"}`),
			"long platform": row("a:2", `,"environment":{"misc":{"platform":"`+strings.Repeat("x", 101)+`"}}`),
		} {
			innocent, guilty := c.submit(doc(row("a:1", ""))), c.submit(doc(fault))
			backoff.Sleep(t.Context(), time.Second)
			if c.status(innocent) != "failed" || c.status(guilty) != "failed" {
				t.Errorf("%s: %s %s", name, c.status(innocent), c.status(guilty))
			}
		}
		c.s.FailBatches(1)
		first := c.submit(doc(row("a:1", "")))
		backoff.Sleep(t.Context(), time.Second)
		if c.status(first) != "failed" {
			t.Errorf("first: %s", c.status(first))
		}
		again := c.submit(doc(row("a:1", "")))
		backoff.Sleep(t.Context(), time.Second)
		if c.status(again) != "processed" {
			t.Errorf("again: %s: %s", c.status(again), c.s.Failure(again))
		}
		// Nothing to insert: not moved until others are.
		empty := c.submit(doc())
		backoff.Sleep(t.Context(), time.Hour)
		if c.status(empty) != "ready" {
			t.Errorf("empty: %s", c.status(empty))
		}
		c.submit(doc(row("a:9", "")))
		backoff.Sleep(t.Context(), time.Second)
		if c.status(empty) != "processed" {
			t.Errorf("empty after another: %s", c.status(empty))
		}
	})
}

// The first value of a column wins; a missing one is added.
func TestFirstValueWins(t *testing.T) {
	t.Parallel()
	c := newClient(t, kcidb.Options{Secret: secret})
	c.status(c.submit(doc(row("a:n.boot", `,"status":"PASS","environment":{"comment":"x"}`))))
	c.status(c.submit(doc(row("a:n.boot", `,"status":"FAIL","duration":3,"environment":{"comment":"y","misc":{"platform":"p"}},"misc":{"runtime":"lab"}`))))
	rows := c.s.NodeRows("n")
	if len(rows) != 1 {
		t.Fatalf("%v", rows)
	}
	d := rows[0].Doc
	env := d["environment"].(map[string]any)
	if d["status"] != "PASS" || d["duration"] != 3.0 || env["comment"] != "x" || env["misc"] == nil {
		t.Errorf("%v", d)
	}
	// The lab was missing at first, so the origin took its place for good.
	if d["misc"].(map[string]any)["runtime"] != "a" {
		t.Errorf("misc %v", d["misc"])
	}
	if _, b := c.do("GET", "/rows?node=n", "", ""); !strings.Contains(b, `"PASS"`) || !strings.Contains(b, "no such route") {
		t.Errorf("/rows: %s", b)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(kcidb.Mint(secret, "x", time.Unix(1<<32, 0)))
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJIUzI1NiJ9.bnVsbA.")
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := jwt.Verify(token, time.Now(), "a secret of which the fuzzer knows nothing"); err == nil {
			t.Errorf("%q was accepted", token)
		}
	})
}

func FuzzValidate(f *testing.F) {
	f.Add(sample(f, "kcidb.submission.tests.json"))
	f.Add([]byte(doc(row("a:1", ""))))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := kcidb.Validate(b); err == nil && d["version"] == nil {
			t.Errorf("accepted without version: %q", b)
		}
	})
}
