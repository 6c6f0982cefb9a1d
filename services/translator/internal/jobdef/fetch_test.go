package jobdef

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// web answers requests by host and path, without sockets, and remembers them.
type web struct {
	handlers map[string]http.HandlerFunc
	seen     []*http.Request
}

func (w *web) RoundTrip(r *http.Request) (*http.Response, error) {
	w.seen = append(w.seen, r)
	h, ok := w.handlers[r.URL.Host+r.URL.Path]
	if !ok {
		h = http.NotFound
	}
	rec := httptest.NewRecorder()
	h(rec, r)
	resp := rec.Result()
	resp.Request = r
	return resp, nil
}

func redirect(to string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) }
}

func text(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, s) }
}

func status(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

const where = "https://files.example/jobs/1.json"

func TestFetch(t *testing.T) {
	t.Parallel()
	w := &web{handlers: map[string]http.HandlerFunc{"files.example/jobs/1.json": text(minimal)}}
	f := NewFetcher(Options{Transport: w, UserAgent: "pullab-test"})
	def, err := f.Read(t.Context(), where)
	if err != nil || def.Platform != "qemu-x86_64" {
		t.Fatalf("got %+v, %v", def, err)
	}
	if ua := w.seen[0].UserAgent(); ua != "pullab-test" {
		t.Errorf("User-Agent %q", ua)
	}
}

// A redirect is followed, and nothing that identifies the lab is sent on
// either leg, also when the first host sets a cookie.
func TestFetchRedirectWithoutCredentials(t *testing.T) {
	t.Parallel()
	w := &web{handlers: map[string]http.HandlerFunc{
		"files.example/jobs/1.json": func(rw http.ResponseWriter, r *http.Request) {
			http.SetCookie(rw, &http.Cookie{Name: "session", Value: "secret"})
			redirect("http://mirror.example/1.json")(rw, r)
		},
		"mirror.example/1.json": text(minimal),
	}}
	if _, err := NewFetcher(Options{Transport: w}).Fetch(t.Context(), where); err != nil {
		t.Fatal(err)
	}
	if len(w.seen) != 2 {
		t.Fatalf("%d requests, want 2", len(w.seen))
	}
	for _, r := range w.seen {
		for _, h := range []string{"Authorization", "Cookie"} {
			if v := r.Header.Get(h); v != "" {
				t.Errorf("%s to %s: %q", h, r.URL.Host, v)
			}
		}
	}
}

func TestFetchRefuses(t *testing.T) {
	t.Parallel()
	w := &web{handlers: map[string]http.HandlerFunc{
		"h.example/gone":     status(http.StatusGone),
		"h.example/denied":   status(http.StatusForbidden),
		"h.example/created":  status(http.StatusNoContent),
		"h.example/big":      text(strings.Repeat(" ", 10<<20)),
		"h.example/over":     text(strings.Repeat(" ", MaxSize+1)),
		"h.example/loop":     redirect("http://h.example/loop2"),
		"h.example/loop2":    redirect("http://h.example/loop"),
		"h.example/file":     redirect("file:///etc/passwd"),
		"h.example/userinfo": redirect("http://user:hunter2@h.example/ok"),
		"h.example/ftp":      redirect("ftp://h.example/ok"),
		"h.example/ok":       text(minimal),
	}}
	for i := range MaxRedirects + 1 {
		w.handlers["h.example/chain"+strconv.Itoa(i)] = redirect("/chain" + strconv.Itoa(i+1))
	}
	for location, want := range map[string]string{
		"http://h.example/missing":           "answered 404 Not Found",
		"http://h.example/gone":              "answered 410 Gone",
		"http://h.example/denied":            "answered 403 Forbidden",
		"http://h.example/created":           "answered 204",
		"http://h.example/big":               "larger than 1048576 bytes (1 MiB)",
		"http://h.example/over":              "larger than 1048576 bytes (1 MiB)",
		"http://h.example/loop":              "redirects in a loop",
		"http://h.example/chain0":            "redirects more than 5 times",
		"http://h.example/file":              "redirects to a URL that is a file:// URL",
		"http://h.example/userinfo":          "redirects to a URL that carries credentials",
		"http://h.example/ftp":               `redirects to a URL that has the scheme "ftp"`,
		"http://user:hunter2@h.example/ok":   "carries credentials",
		"http://hunter2@h.example/ok":        "carries credentials",
		"http://u:hunter2@h.example:x/ok":    "is malformed",
		"http:///ok":                         "has no host",
		"https://:443/ok":                    "has no host",
		"ftp://h.example/ok":                 `has the scheme "ftp": only http and https are fetched`,
		"s3://bucket/ok":                     `has the scheme "s3"`,
		"javascript:alert(1)":                `has the scheme "javascript"`,
		"file:///etc/passwd":                 "is a file:// URL",
		"/etc/passwd":                        `has the scheme ""`,
		"":                                   `has the scheme ""`,
		"http://h.example/%zz":               "is malformed",
		"http://h.example/\x00":              "is malformed",
		"http://h.example/job.yaml":          `"job.yaml" is a LAVA job (.yaml)`,
		"http://h.example/d/JOB.YML?x=.json": `"JOB.YML" is a LAVA job (.yml)`,
	} {
		_, err := NewFetcher(Options{Transport: w}).Fetch(t.Context(), location)
		var refused *RefusedError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v\nwant a refusal with %q", location, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: the error tells the password: %v", location, err)
		}
	}
}

func TestFetchAtTheLimit(t *testing.T) {
	t.Parallel()
	w := &web{handlers: map[string]http.HandlerFunc{"files.example/jobs/1.json": text(strings.Repeat(" ", MaxSize))}}
	data, err := NewFetcher(Options{Transport: w}).Fetch(t.Context(), where)
	if err != nil || len(data) != MaxSize {
		t.Errorf("got %d bytes, %v", len(data), err)
	}
}

// The cap is on what comes out of gzip: a small answer cannot become a large
// one.
func TestFetchGzipBomb(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = z.Write(make([]byte, 10<<20))
		_ = z.Close()
	}))
	defer srv.Close()
	_, err := NewFetcher(Options{}).Fetch(t.Context(), srv.URL+"/x.json")
	var refused *RefusedError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("got %v", err)
	}
}

func TestFetchUnavailable(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		h     http.HandlerFunc
		after time.Duration
	}{
		"500":           {status(http.StatusInternalServerError), 0},
		"503":           {status(http.StatusServiceUnavailable, "Retry-After", "120"), 2 * time.Minute},
		"429":           {status(http.StatusTooManyRequests, "Retry-After", "7"), 7 * time.Second},
		"429, far off":  {status(http.StatusTooManyRequests, "Retry-After", "99999999999"), time.Hour},
		"429, negative": {status(http.StatusTooManyRequests, "Retry-After", "-7"), 0},
		"429, a date":   {status(http.StatusTooManyRequests, "Retry-After", "Fri, 31 Dec 2027 23:59:59 GMT"), 0},
		"408":           {status(http.StatusRequestTimeout), 0},
	} {
		w := &web{handlers: map[string]http.HandlerFunc{"files.example/jobs/1.json": c.h}}
		_, err := NewFetcher(Options{Transport: w}).Fetch(t.Context(), where)
		var later *UnavailableError
		if !errors.As(err, &later) || later.RetryAfter != c.after {
			t.Errorf("%s: got %v (%+v), want to retry after %s", name, err, later, c.after)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// dribble gives a byte a second, for ever.
type dribble struct{ ctx context.Context }

func (d dribble) Read(p []byte) (int, error) {
	select {
	case <-time.After(time.Second):
		p[0] = ' '
		return 1, nil
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	}
}

func (dribble) Close() error { return nil }

func TestFetchTakesNoLongerThanItsTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rt := roundTripper(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: http.StatusOK, Body: dribble{r.Context()}, Request: r}, nil
		})
		start := time.Now()
		_, err := NewFetcher(Options{Transport: rt, Timeout: 30 * time.Second}).Fetch(t.Context(), where)
		var later *UnavailableError
		if !errors.As(err, &later) || !strings.Contains(err.Error(), "did not answer in full within 30s") {
			t.Errorf("got %v", err)
		}
		if d := time.Since(start); d != 30*time.Second {
			t.Errorf("took %s", d)
		}
	})
}

// A service that shuts down has not learnt anything about the host.
func TestFetchCancelled(t *testing.T) {
	t.Parallel()
	why := errors.New("shutting down")
	ctx, cancel := context.WithCancelCause(t.Context())
	rt := roundTripper(func(r *http.Request) (*http.Response, error) {
		cancel(why)
		return nil, r.Context().Err()
	})
	if _, err := NewFetcher(Options{Transport: rt}).Fetch(ctx, where); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
}

func TestFetchBrokenConnection(t *testing.T) {
	t.Parallel()
	for name, rt := range map[string]roundTripper{
		"refused": func(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") },
		"cut off": func(r *http.Request) (*http.Response, error) {
			body := io.MultiReader(strings.NewReader(minimal[:50]), brokenReader{})
			return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(body), Request: r}, nil
		},
	} {
		_, err := NewFetcher(Options{Transport: rt}).Fetch(t.Context(), where)
		var later *UnavailableError
		if !errors.As(err, &later) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestFetchFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "job.json")
	if err := os.WriteFile(name, []byte(minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(dir, "big.json")
	if err := os.WriteFile(big, make([]byte, MaxSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	f := NewFetcher(Options{AllowFile: true})
	for _, location := range []string{name, "file://" + name} {
		if _, err := f.Read(t.Context(), location); err != nil {
			t.Errorf("%s: %v", location, err)
		}
	}
	for location, want := range map[string]string{
		big:                           "larger than",
		filepath.Join(dir, "no.json"): "no such file",
		dir:                           "cannot be read",
		filepath.Join(dir, "x.yaml"):  "is a LAVA job",
	} {
		_, err := f.Read(t.Context(), location)
		var refused *RefusedError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", location, err, want)
		}
	}
}

func TestCheckURLFile(t *testing.T) {
	t.Parallel()
	for s, ok := range map[string]bool{
		"file:///boot/vmlinuz": true, "file://host/boot/vmlinuz": false, "file:boot/vmlinuz": false, "file://": false,
		"http://h.example/": true, "https://h.example:8443/x?y#z": true, "http://u@h.example/": false, "HTTP://h.example/": true,
	} {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckURL(u, true); (err == nil) != ok {
			t.Errorf("%s: %v", s, err)
		}
	}
}
