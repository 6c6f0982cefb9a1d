package fault_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pullab/pullab/services/standin/fault"
	"github.com/pullab/pullab/services/standin/internal/inproc"
)

// page answers with 100 KB and counts.
type page struct{ served atomic.Int32 }

func (p *page) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	p.served.Add(1)
	fmt.Fprint(w, strings.Repeat("0123456789", 10_000))
}

// result of one request: status, bytes read, and the error.
type result struct {
	status, n int
	body      string
	err       error
	header    http.Header
}

func get(t *testing.T, c *http.Client, method, url string) result {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		return result{err: err}
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return result{res.StatusCode, len(b), string(b[:min(len(b), 10)]), err, res.Header}
}

// Each fault looks the same in process and over a socket.
func TestFaults(t *testing.T) {
	t.Parallel()
	p := &page{}
	i := fault.New(p, 1)
	srv := httptest.NewServer(i)
	defer srv.Close()
	for name, via := range map[string]struct {
		c    *http.Client
		base string
	}{
		"socket":     {&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, srv.URL},
		"in process": {&http.Client{Transport: inproc.Transport{"h.test": i}}, "http://h.test"},
	} {
		ask := func(rule fault.Rule) result {
			i.Set(rule)
			return get(t, via.c, "POST", via.base+"/x")
		}
		if r := ask(fault.Rule{Status: 429, RetryAfterS: 7}); r.status != 429 || r.header.Get("Retry-After") != "7" || !strings.HasPrefix(r.body, "injected") {
			t.Errorf("%s: status: %+v", name, r)
		}
		if r := ask(fault.Rule{Body: "<html>", ContentType: "text/html"}); r.status != 200 || r.body != "<html>" || r.header.Get("Content-Type") != "text/html" {
			t.Errorf("%s: wrong content: %+v", name, r)
		}
		before := p.served.Load()
		if r := ask(fault.Rule{Drop: true}); !errors.Is(r.err, io.EOF) || p.served.Load() != before {
			t.Errorf("%s: drop: %+v", name, r)
		}
		if r := ask(fault.Rule{Lose: true}); !errors.Is(r.err, io.EOF) || p.served.Load() != before+1 {
			t.Errorf("%s: lose: %+v, served %d", name, r, p.served.Load()-before)
		}
		if r := ask(fault.Rule{Truncate: 12345}); r.status != 200 || !errors.Is(r.err, io.ErrUnexpectedEOF) || r.n != 12345 {
			t.Errorf("%s: truncate: %+v", name, r)
		}
		if r := ask(fault.Rule{Truncate: 5}); !errors.Is(r.err, io.ErrUnexpectedEOF) || r.n != 5 {
			t.Errorf("%s: truncate early: %+v", name, r)
		}
		if r := ask(fault.Rule{LatencyMS: 1}); r.status != 200 || r.n != 100_000 || r.err != nil {
			t.Errorf("%s: latency: %+v", name, r)
		}
	}
}

func TestSelection(t *testing.T) {
	t.Parallel()
	i := fault.New(&page{}, 1)
	c := &http.Client{Transport: inproc.Transport{"h.test": i}}
	statuses := func(n int, method, path string) []int {
		var out []int
		for range n {
			out = append(out, get(t, c, method, "http://h.test"+path).status)
		}
		return out
	}
	i.Set(fault.Rule{Method: "post", Path: "/submit", Skip: 1, Times: 2, Status: 500}, fault.Rule{Path: "/status", Status: 503})
	if got := statuses(5, "POST", "/submit"); !slices.Equal(got, []int{200, 500, 500, 200, 200}) {
		t.Errorf("skip and times: %v", got)
	}
	if got := append(statuses(1, "GET", "/submit"), statuses(1, "GET", "/status?id=1")...); !slices.Equal(got, []int{200, 503}) {
		t.Errorf("method and path: %v", got)
	}
	if got := i.Struck(); !slices.Equal(got, []int{2, 1}) {
		t.Errorf("struck: %v", got)
	}
	i.Set(fault.Rule{Probability: 0.5, Status: 500})
	hits := 0
	for _, s := range statuses(200, "GET", "/") {
		if s == 500 {
			hits++
		}
	}
	if hits < 60 || hits > 140 {
		t.Errorf("%d of 200 at a probability of one half", hits)
	}
}

// A client that goes away ends the wait.
func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := fault.New(&page{}, 1)
		i.Set(fault.Rule{LatencyMS: 60_000})
		c := &http.Client{Transport: inproc.Transport{"h.test": i}, Timeout: time.Second}
		start := time.Now()
		if r := get(t, c, "GET", "http://h.test/"); r.err == nil || time.Since(start) != time.Second {
			t.Errorf("%+v after %v", r, time.Since(start))
		}
		c.Timeout = 0
		start = time.Now()
		if r := get(t, c, "GET", "http://h.test/"); r.status != 200 || time.Since(start) != time.Minute {
			t.Errorf("%+v after %v", r, time.Since(start))
		}
	})
}

func TestParse(t *testing.T) {
	t.Parallel()
	c, err := fault.Parse([]byte("seed: 3\napi:\n- {path: /latest/events, status: 503, retry_after_s: 5, times: 2}\nkcidb:\n- {lose: true}\n"))
	if err != nil || c.Seed != 3 || len(c.API) != 1 || c.API[0].RetryAfterS != 5 || !c.KCIDB[0].Lose {
		t.Errorf("%+v, %v", c, err)
	}
	for text, want := range map[string]string{
		"api: [{path: /x, stauts: 503}]":          "stauts",
		"api: [{path: /x}]":                       "does nothing",
		"api: [{status: 99}]":                     "99",
		"api: [{drop: true, lose: true}]":         "only one",
		"storage: [{probability: 2, drop: true}]": "probability",
		"kcidb: [{latency_ms: -1, drop: true}]":   "negative",
		"maestro: []":                             "maestro",
	} {
		if _, err := fault.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if _, err := fault.Load("/does/not/exist"); err == nil {
		t.Error("a file that is not there")
	}
	defer func() {
		if recover() == nil {
			t.Error("Set took an invalid rule")
		}
	}()
	fault.New(nil, 0).Set(fault.Rule{})
}
