package kernelci

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const (
	token = "eyJ.secret.token"
	jobID = "6a86d157c5867fba94731e66"
)

// far is the other side: it calls the handler directly and keeps what was
// asked.
type far struct {
	handler http.HandlerFunc
	asked   []*http.Request
	bodies  []string
}

func (f *far) RoundTrip(r *http.Request) (*http.Response, error) {
	body := ""
	if r.Body != nil {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		body = string(b)
		r.Body = io.NopCloser(bytes.NewReader(b))
	}
	f.asked, f.bodies = append(f.asked, r), append(f.bodies, body)
	w := httptest.NewRecorder()
	f.handler(w, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return w.Result(), nil
}

func client(t testing.TB, h http.HandlerFunc, change ...func(*Options)) (*Client, *far) {
	t.Helper()
	f := &far{handler: h}
	o := Options{BaseURI: "https://api.example:9000/latest/", Token: token, Transport: f}
	for _, c := range change {
		c(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c, f
}

func reply(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

func TestNew(t *testing.T) {
	for uri, want := range map[string]string{
		"":                              "not an http",
		"api.example/latest":            "not an http",
		"ftp://api.example":             "not an http",
		"file:///etc/passwd":            "not an http",
		"https://u:hunter2@api.example": "credentials",
		"https://a b/:hunter2@x":        "not a URL",
		"https://api.example/?a=b":      "without ?",
		"https://api.example/#x":        "without ?",
		"https:///latest":               "not an http",
	} {
		_, err := New(Options{BaseURI: uri})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v, want %q", uri, err, want)
		}
	}
	if _, err := New(Options{BaseURI: "https://api.example", Token: "line\nhunter2"}); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("token with a newline: %v", err)
	}
	c, err := New(Options{BaseURI: "https://api.example/latest//"})
	if err != nil || c.BaseURI() != "https://api.example/latest" || c.Host() != "api.example" {
		t.Error(c, err)
	}
}

func TestEvents(t *testing.T) {
	c, f := client(t, reply(200, string(sample(t, "events.recursive.json"))))
	q := EventQuery{
		From:  time.Date(2026, 8, 20, 12, 5, 12, 874e6, time.FixedZone("", 7200)),
		State: "available", Kind: "job", Channel: "node", Limit: 1000, Offset: 2000, Recursive: true,
	}
	events, err := c.Events(t.Context(), q)
	if err != nil || len(events) != 3 || events[2].Timestamp.Nanosecond() != 0 || events[0].Node.Data.Runtime != "pull-labs-aws-ec2" {
		t.Fatal(events, err)
	}
	want := "https://api.example:9000/latest/events?state=available&kind=job&channel=node&recursive=true&limit=1000&from=2026-08-20T10:05:12.874000&offset=2000"
	if got := c.EventsURL(q); got != want || f.asked[0].URL.String() != want {
		t.Errorf("asked %s\nsaid  %s\nwant  %s", f.asked[0].URL, got, want)
	}
	if got := f.asked[0].Header.Get("Authorization"); got != "Bearer "+token {
		t.Errorf("Authorization %q", got)
	}
}

func TestNode(t *testing.T) {
	c, f := client(t, reply(200, string(sample(t, "node.job.available.json"))))
	if n, err := c.Node(t.Context(), jobID); err != nil || n.Name != "baseline-x86-aws-ec2" {
		t.Fatal(n, err)
	}
	if p := f.asked[0].URL.Path; p != "/latest/node/"+jobID {
		t.Error(p)
	}
	if _, err := c.Node(t.Context(), "6a86d157c5867fba94731e67"); err == nil {
		t.Error("another node's document was taken")
	}
	c, _ = client(t, reply(200, "null"))
	if _, err := c.Node(t.Context(), jobID); !errors.Is(err, ErrNoNode) {
		t.Error(err)
	}
	c, f = client(t, reply(200, "null"))
	for _, id := range []string{"", "..", "../whoami", "a/b", "a?b", "a%2fb", strings.Repeat("a", 65)} {
		var api *APIError
		if _, err := c.Node(t.Context(), id); !errors.As(err, &api) || api.Status != 400 || api.Temporary() || len(f.asked) > 0 {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestNodes(t *testing.T) {
	c, f := client(t, reply(200, `{"items":[{"id":"a"},{"id":7}],"total":31,"limit":2,"offset":4}`))
	filter := url.Values{"kind": {"job"}, "data.job_id": {"null"}}
	nodes, total, err := c.Nodes(t.Context(), filter, 2, 4)
	var some *ItemsError
	if !errors.As(err, &some) || total != 31 || len(nodes) != 1 {
		t.Fatal(nodes, total, err)
	}
	if q := f.asked[0].URL.RawQuery; q != "data.job_id=null&kind=job&limit=2&offset=4" || len(filter) != 2 {
		t.Error(q, filter)
	}
}

func TestWhoAmI(t *testing.T) {
	c, _ := client(t, reply(200, string(sample(t, "whoami.json"))))
	u, err := c.WhoAmI(t.Context())
	if err != nil || u.Username != "pull-labs-aws-ec2" || u.IsSuperuser {
		t.Fatal(u, err)
	}
	for _, tt := range []struct {
		u    User
		want bool
	}{
		{u, true},
		{User{}, false},
		{User{IsSuperuser: true}, true},
		{User{Groups: []string{"node:edit:any"}}, true},
		{User{Groups: []string{"runtime:pull-labs-aws-ec2:node-admin"}}, true},
		{User{Groups: []string{"runtime:other:node-editor", "runtime:pull-labs-aws-ec2"}}, false},
	} {
		if got := tt.u.MayEdit("pull-labs-aws-ec2"); got != tt.want {
			t.Errorf("%+v: %v", tt.u, got)
		}
	}
}

// Every sample of an error answer is understood.
func TestAPIErrors(t *testing.T) {
	var samples []struct {
		Request string          `json:"request"`
		HTTP    int             `json:"http"`
		Body    json.RawMessage `json:"body"`
		Text    string          `json:"body_text"`
	}
	if err := json.Unmarshal(sample(t, "api.error.responses.json"), &samples); err != nil {
		t.Fatal(err)
	}
	for _, s := range samples {
		if s.HTTP < 300 {
			continue
		}
		body := string(s.Body)
		if s.Text != "" {
			body = s.Text
		}
		c, _ := client(t, reply(s.HTTP, body))
		_, err := c.Events(t.Context(), EventQuery{})
		var api *APIError
		if !errors.As(err, &api) || api.Status != s.HTTP || api.Detail == "" || strings.HasPrefix(api.Detail, "{") {
			t.Errorf("%s: %v", s.Request, err)
		}
		if api != nil && api.Temporary() != (s.HTTP >= 500) {
			t.Errorf("%s: temporary %v", s.Request, api.Temporary())
		}
	}
}

func TestAPIErrorDetail(t *testing.T) {
	for name, tt := range map[string]struct{ body, want string }{
		"pydantic": {`{"detail":[{"type":"missing","loc":["body","name"],"msg":"Field required","input":{}},{"loc":["body",0],"msg":"no"}]}`, "body.name: Field required; body.0: no"},
		"lines":    {`{"detail":"1 validation error\n  data.error_code\u0000\u001b[31m"}`, "1 validation error data.error_code [31m"},
		"html":     {"<html>\n<h1>502 Bad Gateway</h1>\n</html>", "<html> <h1>502 Bad Gateway</h1> </html>"},
		"long":     {`{"detail":"` + strings.Repeat("ö", 600) + `"}`, strings.Repeat("ö", 500)},
		"binary":   {"\xff\xfe", "\uFFFD"},
		"object":   {`{"detail":{"a":1}}`, `{"a":1}`},
		"empty":    {"", ""},
		"echo":     {`{"detail":"bad token ` + token + `"}`, "bad token [token]"},
	} {
		c, _ := client(t, reply(400, tt.body))
		_, err := c.Events(t.Context(), EventQuery{})
		var api *APIError
		if !errors.As(err, &api) || api.Detail != tt.want {
			t.Errorf("%s: %q, want %q", name, api.Detail, tt.want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	for _, tt := range []struct {
		h, date string
		want    time.Duration
	}{
		{"120", "", 2 * time.Minute},
		{"Thu, 20 Aug 2026 10:05:30 GMT", "Thu, 20 Aug 2026 10:05:00 GMT", 30 * time.Second},
		{"Thu, 20 Aug 2026 10:04:00 GMT", "Thu, 20 Aug 2026 10:05:00 GMT", 0},
		{"99999999", "", time.Hour}, {"99999999999999999999", "", 0}, {"-5", "", 0}, {"soon", "", 0}, {"", "", 0},
	} {
		c, _ := client(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", tt.h)
			w.Header().Set("Date", tt.date)
			w.WriteHeader(429)
		})
		_, err := c.Events(t.Context(), EventQuery{})
		var api *APIError
		if !errors.As(err, &api) || api.RetryAfter != tt.want || !api.Temporary() {
			t.Errorf("%q: %+v", tt.h, api)
		}
	}
}

func zipped(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	io.WriteString(z, s)
	z.Close()
	return b.String()
}

func gzipReply(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		io.WriteString(w, body)
	}
}

func TestBodies(t *testing.T) {
	events := string(sample(t, "events.plain.json"))
	c, _ := client(t, gzipReply(zipped(events)))
	if got, err := c.Events(t.Context(), EventQuery{}); err != nil || len(got) != 3 {
		t.Error("gzip:", got, err)
	}
	bomb := zipped(strings.Repeat(" ", maxPage+10))
	for name, tt := range map[string]struct {
		h    http.HandlerFunc
		want string
		at   int64
	}{
		"truncated":      {reply(200, events[:len(events)/2]), "breaks off", int64(len(events) / 2)},
		"empty":          {reply(200, ""), "empty", 0},
		"html":           {reply(200, "<html>welcome"), "begins with", 1},
		"object":         {reply(200, `{"detail":"x"}`), "wanted a list", 1},
		"gzip truncated": {gzipReply(zipped(events)[:100]), "breaks off", -1},
		"not gzip":       {gzipReply(events), "says it is gzip", 0},
		"bomb":           {gzipReply(bomb), "over 64 MiB", maxPage},
	} {
		c, _ := client(t, tt.h)
		_, err := c.Events(t.Context(), EventQuery{})
		var bad *BodyError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), tt.want) || tt.at >= 0 && bad.Offset != tt.at {
			t.Errorf("%s: %v", name, err)
		}
		if !strings.Contains(err.Error(), "byte ") {
			t.Errorf("%s: no offset in %v", name, err)
		}
	}
	c, _ = client(t, reply(200, `{"id":"`+strings.Repeat("x", maxNode)+`"}`))
	if _, err := c.Node(t.Context(), jobID); !errors.Is(err, errTooLarge) {
		t.Error("node of 4 MiB:", err)
	}
}

// The token goes to its own scheme, host and port, whoever sends us elsewhere.
func TestRedirects(t *testing.T) {
	for _, tt := range []struct {
		name, to string
		token    bool
	}{
		{"same", "https://api.example:9000/v0/events", true},
		{"relative", "/v0/events", true},
		{"other host", "https://evil.example:9000/events", false},
		{"subdomain", "https://x.api.example:9000/events", false},
		{"other port", "https://api.example/events", false},
		{"plain", "http://api.example:9000/events", false},
	} {
		c, f := client(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/latest/events" {
				http.Redirect(w, r, tt.to, http.StatusFound)
				return
			}
			io.WriteString(w, "[]")
		})
		if _, err := c.Events(t.Context(), EventQuery{}); err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got := f.asked[1].Header.Get("Authorization") != ""; got != tt.token {
			t.Errorf("%s: token sent: %v", tt.name, got)
		}
	}
}

// A foreign host cannot make us come back with the token.
func TestRedirectBack(t *testing.T) {
	c, f := client(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/latest/events":
			http.Redirect(w, r, "https://evil.example/", http.StatusFound)
		case r.URL.Host == "evil.example":
			http.Redirect(w, r, "https://api.example:9000/latest/else", http.StatusFound)
		default:
			io.WriteString(w, "[]")
		}
	})
	if _, err := c.Events(t.Context(), EventQuery{}); err != nil {
		t.Fatal(err)
	}
	for i, r := range f.asked {
		if (r.Header.Get("Authorization") != "") != (i == 0) {
			t.Errorf("request %d to %s: %q", i, r.URL, r.Header.Get("Authorization"))
		}
	}
}

func TestRedirectLoop(t *testing.T) {
	c, f := client(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/latest/events?"+token, http.StatusFound)
	})
	_, err := c.Events(t.Context(), EventQuery{})
	if !errors.Is(err, errRedirects) || len(f.asked) != maxRedirects+1 || strings.Contains(err.Error(), token) {
		t.Errorf("%d requests, %v", len(f.asked), err)
	}
}

func TestRedirectedWrites(t *testing.T) {
	doc := string(sample(t, "node.job.available.json"))
	for _, tt := range []struct {
		status int
		to     string
		ok     bool
	}{
		{307, "/v0/node/" + jobID, true},
		{308, "/v0/node/" + jobID, true},
		{302, "/v0/node/" + jobID, false},
		{307, "https://evil.example/node/" + jobID, false},
	} {
		c, f := client(t, func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/latest/") {
				http.Redirect(w, r, tt.to, tt.status)
				return
			}
			io.WriteString(w, doc)
		})
		_, err := c.Update(t.Context(), jobID, map[string]any{"state": "done"})
		if (err == nil) != tt.ok || !tt.ok && !errors.Is(err, errMoved) {
			t.Errorf("%d to %s: %v", tt.status, tt.to, err)
		}
		if tt.ok && (f.asked[1].Method != "PATCH" || f.bodies[1] != `{"state":"done"}`) {
			t.Errorf("%d: %s %s", tt.status, f.asked[1].Method, f.bodies[1])
		}
		if !tt.ok && len(f.asked) != 1 {
			t.Errorf("%d to %s was followed", tt.status, tt.to)
		}
	}
}

func TestUpdatePatch(t *testing.T) {
	c, f := client(t, reply(200, string(sample(t, "node.job.done.json"))), func(o *Options) { o.NoEvent = true })
	n, err := c.Update(t.Context(), jobID, map[string]any{"result": "pass", "data": map[string]any{"error_msg": "<&>"}})
	if err != nil || n.State != "done" || len(f.asked) != 1 {
		t.Fatal(n, err)
	}
	r := f.asked[0]
	if r.Method != "PATCH" || r.URL.RawQuery != "noevent=true" || r.Header.Get("Content-Type") != "application/json" ||
		f.bodies[0] != `{"data":{"error_msg":"<&>"},"result":"pass"}` {
		t.Errorf("%s %s %s", r.Method, r.URL, f.bodies[0])
	}
}

// Without PATCH the whole document goes back, numbers exactly as they came.
func TestUpdateReplaces(t *testing.T) {
	var stored map[string]any
	if err := json.Unmarshal(sample(t, "node.job.available.json"), &stored); err != nil {
		t.Fatal(err)
	}
	stored["retry_counter"] = json.Number("2")
	stored["unknown"] = json.RawMessage(`{"big":12345678901234567890,"exp":1.50e3}`)
	doc, err := json.Marshal(stored)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		status int
		fields map[string]any
		asked  int
	}{
		"405":           {405, map[string]any{"state": "done"}, 3},
		"501":           {501, map[string]any{"state": "done"}, 3},
		"404 of route":  {404, map[string]any{"state": "done"}, 3},
		"not patchable": {200, map[string]any{"state": "done", "name": "other"}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			var got string
			c, f := client(t, func(w http.ResponseWriter, r *http.Request) {
				switch r.Method {
				case "PATCH":
					w.WriteHeader(tt.status)
				case "PUT":
					b, _ := io.ReadAll(r.Body)
					got = string(b)
					io.WriteString(w, got)
				default:
					w.Write(doc)
				}
			})
			n, err := c.Update(t.Context(), jobID, tt.fields)
			if err != nil || n.State != "done" || n.RetryCounter != 2 || len(f.asked) != tt.asked {
				t.Fatal(n, err, len(f.asked))
			}
			var back map[string]json.RawMessage
			if err := json.Unmarshal([]byte(got), &back); err != nil {
				t.Fatal(err)
			}
			if len(back) != 24 {
				t.Errorf("%d keys went back, want 24", len(back))
			}
			if s := string(back["unknown"]); s != `{"big":12345678901234567890,"exp":1.50e3}` {
				t.Errorf("numbers changed: %s", s)
			}
			for _, k := range []string{"created", "timeout", "treeid", "retry_counter", "user_groups", "data"} {
				want, _ := encode(stored[k])
				var a, b any
				if json.Unmarshal(want, &a) != nil || json.Unmarshal(back[k], &b) != nil || fmt.Sprint(a) != fmt.Sprint(b) {
					t.Errorf("%s went back as %s, was %s", k, back[k], want)
				}
			}
		})
	}
}

func TestUpdateErrors(t *testing.T) {
	c, f := client(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			io.WriteString(w, "null")
			return
		}
		reply(404, `{"detail":"Node not found with id: x"}`)(w, r)
	})
	if _, err := c.Update(t.Context(), jobID, map[string]any{"state": "done"}); !errors.Is(err, ErrNoNode) || len(f.asked) != 2 {
		t.Error(err, len(f.asked))
	}
	c, f = client(t, reply(401, `{"detail":"Unauthorized to complete the operation"}`))
	var api *APIError
	if _, err := c.Update(t.Context(), jobID, map[string]any{"state": "done"}); !errors.As(err, &api) || api.Status != 401 || len(f.asked) != 1 ||
		!strings.Contains(err.Error(), "KERNELCI_API_TOKEN") {
		t.Error(err)
	}
}

func TestPutTree(t *testing.T) {
	var tree Tree
	want := sample(t, "put.nodes.hierarchy.request.json")
	if err := json.Unmarshal(want, &tree); err != nil {
		t.Fatal(err)
	}
	c, f := client(t, reply(200, `[{"id":"`+jobID+`"}]`))
	if err := c.PutTree(t.Context(), jobID, tree); err != nil {
		t.Fatal(err)
	}
	var a, b any
	if json.Unmarshal(want, &a) != nil || json.Unmarshal([]byte(f.bodies[0]), &b) != nil || fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("sent %s", f.bodies[0])
	}
	if r := f.asked[0]; r.Method != "PUT" || r.URL.Path != "/latest/nodes/"+jobID {
		t.Error(r.Method, r.URL)
	}
	if err := c.PutTree(t.Context(), jobID, Tree{Node: map[string]any{"x": "<"}, Children: []Tree{{Node: map[string]any{}}}}); err != nil {
		t.Fatal(err)
	}
	if f.bodies[1] != `{"node":{"x":"<"},"child_nodes":[{"node":{},"child_nodes":[]}]}` {
		t.Errorf("leaf: %s", f.bodies[1])
	}
}

// An answer with 200 that is not the stored tree wrote nothing that we may
// believe in.
func TestPutTreeIsBelievedOnItsAnswerOnly(t *testing.T) {
	for _, body := range []string{"<html>it works</html>", "", "null", "[]", "{}", `[{"id":"6a86d157c5867fba94731eff"}]`, `[{"id":"` + jobID + `"}`} {
		c, _ := client(t, reply(200, body))
		if err := c.PutTree(t.Context(), jobID, Tree{Node: map[string]any{}}); err == nil {
			t.Errorf("%q was taken for a written tree", body)
		}
	}
}

// A far side that hangs ends at the client's limit; the caller's own end keeps
// its cause.
func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
		c, _ := client(t, hang)
		start := time.Now()
		_, err := c.Events(t.Context(), EventQuery{})
		if err == nil || !strings.Contains(err.Error(), "no complete answer within 30s") || time.Since(start) != 30*time.Second {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		stopped := errors.New("stopped by terminated")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(stopped) })
		if _, err := c.Events(ctx, EventQuery{}); !errors.Is(err, stopped) {
			t.Error(err)
		}
	})
}

func TestNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there := time.Now().Add(time.Hour)
		c, _ := client(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", there.UTC().Format(http.TimeFormat))
			w.WriteHeader(500)
		})
		if _, ok := c.Now(); ok {
			t.Error("the clock is known before any answer")
		}
		_, _ = c.Events(t.Context(), EventQuery{})
		if now, ok := c.Now(); !ok || now.Sub(there).Abs() > time.Second {
			t.Errorf("%s, %v; want about %s", now, ok, there)
		}
	})
}

// No error of any call repeats the token.
func TestTokenNeverInErrors(t *testing.T) {
	calls := map[string]func(*Client) error{
		"events": func(c *Client) error { _, err := c.Events(t.Context(), EventQuery{State: token}); return err },
		"node":   func(c *Client) error { _, err := c.Node(t.Context(), jobID); return err },
		"nodes":  func(c *Client) error { _, _, err := c.Nodes(t.Context(), url.Values{token: {token}}, 1, 0); return err },
		"whoami": func(c *Client) error { _, err := c.WhoAmI(t.Context()); return err },
		"update": func(c *Client) error {
			_, err := c.Update(t.Context(), jobID, map[string]any{"state": token})
			return err
		},
		"tree": func(c *Client) error { return c.PutTree(t.Context(), jobID, Tree{}) },
	}
	handlers := map[string]http.HandlerFunc{
		"401":  reply(401, `{"detail":"no such token: `+token+`"}`),
		"body": reply(200, token),
		"type": reply(200, `{"id":{"`+token+`":1}}`),
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "gopher://"+token+"/", http.StatusTemporaryRedirect)
		},
		"location": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "%zz"+token)
			w.WriteHeader(302)
		},
	}
	for name, call := range calls {
		for how, h := range handlers {
			if name == "tree" && (how == "body" || how == "type") {
				continue
			}
			c, _ := client(t, h)
			err := call(c)
			if err == nil {
				t.Errorf("%s, %s: no error", name, how)
			} else if strings.Contains(err.Error(), token) {
				t.Errorf("%s, %s: %v", name, how, err)
			}
		}
	}
}

// A page with one bad event that repeats the token.
func TestTokenNeverInEventErrors(t *testing.T) {
	c, _ := client(t, reply(200, `[{"id":"e","timestamp":"`+token+`"}]`))
	got, err := c.Events(t.Context(), EventQuery{})
	if err != nil || got[0].Err == nil || strings.Contains(got[0].Err.Error(), token) {
		t.Error(got, err)
	}
}
