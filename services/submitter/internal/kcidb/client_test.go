package kcidb

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// handler is a RoundTripper that calls a handler, without sockets.
type handler func(w http.ResponseWriter, r *http.Request)

func (h handler) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	h(w, r)
	resp := w.Result()
	resp.Request = r
	return resp, nil
}

func client(h handler) *Client {
	return NewClient(Target{URL: "https://db.example.org/x/submit", Token: "secret-token"}, h, time.Minute, "pullab-submitter")
}

// TestRepliesOfTheServer plays every reply of kcidb-restd-rs to the client.
func TestRepliesOfTheServer(t *testing.T) {
	t.Parallel()
	var samples []struct {
		Request string
		HTTP    int
		Body    json.RawMessage
	}
	if err := json.Unmarshal(read(t, "kcidb.restd.responses.json"), &samples); err != nil {
		t.Fatal(err)
	}
	for _, s := range samples {
		c := client(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer secret-token" {
				t.Errorf("%s: Authorization %q", s.Request, r.Header.Get("Authorization"))
			}
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.WriteHeader(s.HTTP)
			w.Write(s.Body)
		})
		switch {
		case strings.HasPrefix(s.Request, "POST /submit"):
			id, err := c.Submit(t.Context(), []byte("{}"))
			var he *HTTPError
			switch {
			case s.HTTP == 200 && (err != nil || id != "wvTu6myNQOlM7IEWhHJz8WnnE0GTG1yz"):
				t.Errorf("%s: %q, %v", s.Request, id, err)
			case s.HTTP != 200 && (!errors.As(err, &he) || he.Status != s.HTTP || he.Unauthorized() != (s.HTTP == 401) || he.Refused() != (s.HTTP == 400)):
				t.Errorf("%s: %v", s.Request, err)
			}
		case strings.HasPrefix(s.Request, "GET /status"):
			st, err := c.Status(t.Context(), "X")
			if ok := s.HTTP == 200 || s.HTTP == 404; ok && (err != nil || !strings.Contains(string(s.Body), string(st))) || !ok && err == nil {
				t.Errorf("%s: %q, %v", s.Request, st, err)
			}
		case strings.HasPrefix(s.Request, "GET /authtest"):
			if err := c.AuthTest(t.Context()); err != nil {
				t.Errorf("%s: %v", s.Request, err)
			}
		}
	}
}

func TestRequests(t *testing.T) {
	t.Parallel()
	var got []string
	c := client(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = append(got, r.Method+" "+r.URL.String()+" "+string(b))
		w.Write([]byte(`{"id":"a1","status":"ok","message":""}`))
	})
	c.Submit(t.Context(), []byte(`{"x":1}`))
	c.Status(t.Context(), "a1")
	c.AuthTest(t.Context())
	want := `POST https://db.example.org/x/submit {"x":1}|GET https://db.example.org/x/status?id=a1 |GET https://db.example.org/x/authtest `
	if s := strings.Join(got, "|"); s != want {
		t.Errorf("got %s", s)
	}
}

func TestUnauthorizedHasTheGuidesWords(t *testing.T) {
	t.Parallel()
	c := client(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(401)
		w.Write([]byte(`{"id":"0","status":"error","message":"InvalidSignature"}`))
	})
	_, err := c.Submit(t.Context(), []byte("{}"))
	want := `HTTP 401 from KCIDB submit: JWT not signed by the kcidb-restd-rs unified_secret, expired, or origin claim mismatch (it says: "InvalidSignature")`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// TestTokenStaysHome: a redirect is an error, not another request.
func TestTokenStaysHome(t *testing.T) {
	t.Parallel()
	for _, to := range []string{"https://evil.example.com/submit", "https://db.example.org/elsewhere"} {
		n := 0
		c := client(func(w http.ResponseWriter, r *http.Request) {
			n++
			http.Redirect(w, r, to, http.StatusTemporaryRedirect)
		})
		_, err := c.Submit(t.Context(), []byte("{}"))
		if n != 1 || err == nil || !strings.Contains(err.Error(), "redirects are not followed") || strings.Contains(err.Error(), "secret-token") {
			t.Errorf("%d requests, %v", n, err)
		}
	}
}

func TestOddReplies(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"HTML": "<html>gateway</html>", "empty": "", "list": "[]", "truncated": `{"id":"a`, "two": `{"id":"a","status":"ok"} {}`,
		"no id": `{"status":"ok"}`, "path as id": `{"id":"../x","status":"ok"}`, "not ok": `{"id":"a","status":"error"}`,
		"endless": strings.Repeat(" ", maxReply+1) + `{"id":"a","status":"ok"}`,
	} {
		c := client(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(body)) })
		if id, err := c.Submit(t.Context(), []byte("{}")); err == nil {
			t.Errorf("%s: accepted as %q", name, id)
		}
	}
	c := client(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404); w.Write([]byte("not found")) })
	if st, err := c.Status(t.Context(), "a"); err == nil {
		t.Errorf("a proxy's 404 is taken for the state %q", st)
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for v, want := range map[string]time.Duration{"": 0, "7": 7 * time.Second, "-1": 0, "999999": time.Hour, "soon": 0} {
		if got := retryAfter(http.Header{"Retry-After": {v}}); got != want {
			t.Errorf("%q: %s, want %s", v, got, want)
		}
	}
}

func FuzzReply(f *testing.F) {
	f.Add([]byte(`{"id":"wvTu6myNQOlM7IEWhHJz8WnnE0GTG1yz","status":"ok","message":"Received"}`))
	f.Add([]byte(`{"id":1}`))
	f.Add([]byte(`null`))
	f.Add([]byte("\xff\xfe"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeReply(b)
		if err != nil && r != (reply{}) {
			t.Errorf("%q: both a reply and an error", b)
		}
		if s := said(r, b); len(s) > 210 || strings.ContainsAny(s, "\n\r") {
			t.Errorf("%q: said %q", b, s)
		}
	})
}
