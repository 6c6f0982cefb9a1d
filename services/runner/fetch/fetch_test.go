package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pullab/pullab/pkg/executor"
)

// step answers one request.
type step func(*http.Request) (*http.Response, error)

// origin is a server of one file, called without sockets so that it works
// under fake time.
type origin struct {
	mu       sync.Mutex
	content  []byte
	etag     string
	modified time.Time
	// script handles the first requests, one each; nil entries and all later
	// requests are served properly.
	script []step
	seen   []*http.Request
}

func (o *origin) RoundTrip(r *http.Request) (*http.Response, error) {
	o.mu.Lock()
	o.seen = append(o.seen, r)
	var next step
	if len(o.script) > 0 {
		next, o.script = o.script[0], o.script[1:]
	}
	o.mu.Unlock()
	if next != nil {
		resp, err := next(r)
		if resp != nil {
			resp.Request = r
		}
		return resp, err
	}
	return o.serve(r), nil
}

func (o *origin) serve(r *http.Request) *http.Response {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := httptest.NewRecorder()
	if o.etag != "" {
		w.Header().Set("ETag", o.etag)
	}
	http.ServeContent(w, r, "", o.modified, bytes.NewReader(o.content))
	resp := w.Result()
	resp.Request = r
	return resp
}

func (o *origin) requests() []*http.Request {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]*http.Request(nil), o.seen...)
}

// cut serves properly but breaks the connection after n bytes.
func (o *origin) cut(n int64) step {
	return func(r *http.Request) (*http.Response, error) {
		resp := o.serve(r)
		resp.Body = io.NopCloser(io.MultiReader(io.LimitReader(resp.Body, n), broken{}))
		return resp, nil
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

func reply(status int, header ...string) step {
	return func(*http.Request) (*http.Response, error) {
		w := httptest.NewRecorder()
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		return w.Result(), nil
	}
}

const fileURL = "https://files.example.org/kbuild/bzImage"

func newOrigin() *origin {
	return &origin{content: bytes.Repeat([]byte("kernel bytes "), 50_000), etag: `"v1"`}
}

func (o *origin) sum() string {
	h := sha256.Sum256(o.content)
	return hex.EncodeToString(h[:])
}

func newFetcher(t *testing.T, rt http.RoundTripper, change func(*Options)) *Fetcher {
	t.Helper()
	opts := Options{Transport: rt}
	if change != nil {
		change(&opts)
	}
	f, err := New(t.TempDir(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func mustGet(t *testing.T, f *Fetcher, file File) string {
	t.Helper()
	path, release, err := f.Get(t.Context(), file)
	if err != nil {
		t.Fatalf("Get(%s): %v", file.URL, err)
	}
	t.Cleanup(release)
	return path
}

func wantContent(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s has %d bytes that differ from the %d served", path, len(got), len(want))
	}
}

func wantLab(t *testing.T, err error, permanent bool) *executor.LabError {
	t.Helper()
	lab, ok := errors.AsType[*executor.LabError](err)
	if !ok {
		t.Fatalf("error %v is not a LabError", err)
	}
	if lab.Reason != "download" || lab.Permanent != permanent {
		t.Fatalf("reason %q, permanent %v; want download, %v: %v", lab.Reason, lab.Permanent, permanent, err)
	}
	return lab
}

func TestSecondGetRevalidates(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]*origin{
		"etag":          newOrigin(),
		"last-modified": {content: []byte("x"), modified: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFetcher(t, o, nil)
			wantContent(t, mustGet(t, f, File{URL: fileURL}), o.content)
			wantContent(t, mustGet(t, f, File{URL: fileURL}), o.content)
			r := o.requests()
			if len(r) != 2 || r[1].Header.Get("If-None-Match")+r[1].Header.Get("If-Modified-Since") == "" {
				t.Fatalf("second request was not conditional: %v", r[1].Header)
			}
			o.mu.Lock()
			o.content, o.etag, o.modified = []byte("changed"), `"v2"`, time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC)
			o.mu.Unlock()
			wantContent(t, mustGet(t, f, File{URL: fileURL}), o.content)
		})
	}
}

func TestNoValidatorMeansNoCache(t *testing.T) {
	t.Parallel()
	o := &origin{content: []byte("one")}
	f := newFetcher(t, o, nil)
	mustGet(t, f, File{URL: fileURL})
	o.content = []byte("two")
	wantContent(t, mustGet(t, f, File{URL: fileURL}), []byte("two"))
}

func TestKnownSumNeedsNoServer(t *testing.T) {
	t.Parallel()
	o := newOrigin()
	f := newFetcher(t, o, nil)
	mustGet(t, f, File{URL: fileURL, SHA256: strings.ToUpper(o.sum())})
	mustGet(t, f, File{URL: "https://mirror.example.org/other", SHA256: o.sum()})
	if n := len(o.requests()); n != 1 {
		t.Fatalf("%d requests, want 1", n)
	}
}

func TestResume(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOrigin()
		o.script = []step{o.cut(1000), o.cut(70_000), reply(503), nil}
		f := newFetcher(t, o, nil)
		wantContent(t, mustGet(t, f, File{URL: fileURL, SHA256: o.sum()}), o.content)
		r := o.requests()
		if got := r[1].Header.Get("Range"); got != "bytes=1000-" {
			t.Errorf("second request has Range %q", got)
		}
		if got := r[3].Header.Get("Range"); got != "bytes=71000-" {
			t.Errorf("fourth request has Range %q", got)
		}
		if got := r[3].Header.Get("If-Range"); got != `"v1"` {
			t.Errorf("If-Range %q", got)
		}
	})
}

// A process that dies leaves its part; the next one goes on from there.
func TestResumeAfterCrash(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOrigin()
		dir := t.TempDir()
		o.script = []step{o.cut(5000)}
		first, err := New(dir, Options{Transport: o, Attempts: 1})
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = first.Get(t.Context(), File{URL: fileURL})
		wantLab(t, err, false)
		second, err := New(dir, Options{Transport: o})
		if err != nil {
			t.Fatal(err)
		}
		wantContent(t, mustGet(t, second, File{URL: fileURL}), o.content)
		if got := o.requests()[1].Header.Get("Range"); got != "bytes=5000-" {
			t.Errorf("Range %q", got)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "parts", "*")); len(left) != 0 {
			t.Errorf("left in parts: %v", left)
		}
	})
}

// The file changed on the server between two attempts: the old bytes must not
// be part of the new file.
func TestResumeOfChangedFile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOrigin()
		o.script = []step{func(r *http.Request) (*http.Response, error) {
			resp, err := o.cut(1000)(r)
			o.mu.Lock()
			defer o.mu.Unlock()
			o.content, o.etag = bytes.Repeat([]byte("new"), 3000), `"v2"`
			return resp, err
		}}
		f := newFetcher(t, o, nil)
		wantContent(t, mustGet(t, f, File{URL: fileURL}), o.content)
	})
}

func TestWeakETagIsNotResumed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOrigin()
		o.etag = `W/"v1"`
		o.script = []step{o.cut(1000)}
		f := newFetcher(t, o, nil)
		wantContent(t, mustGet(t, f, File{URL: fileURL}), o.content)
		if got := o.requests()[1].Header.Get("Range"); got != "" {
			t.Errorf("Range %q after a weak validator", got)
		}
	})
}

// A server that lies about ranges: the checksum finds out, and one download
// from the beginning sets it right.
func TestWrongSumAfterResume(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOrigin()
		lie := func(r *http.Request) (*http.Response, error) {
			resp := o.serve(r)
			resp.Body = io.NopCloser(bytes.NewReader(make([]byte, len(o.content)-1000)))
			return resp, nil
		}
		o.script = []step{o.cut(1000), lie}
		f := newFetcher(t, o, nil)
		wantContent(t, mustGet(t, f, File{URL: fileURL, SHA256: o.sum()}), o.content)
	})
}

func TestStall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOrigin()
		silent := func(r *http.Request) (*http.Response, error) {
			resp := o.serve(r)
			resp.Body = io.NopCloser(io.MultiReader(io.LimitReader(resp.Body, 10), waits{r.Context()}))
			return resp, nil
		}
		o.script = []step{silent, silent}
		f := newFetcher(t, o, func(o *Options) { o.Stall = 20 * time.Second })
		start := time.Now()
		wantContent(t, mustGet(t, f, File{URL: fileURL}), o.content)
		if d := time.Since(start); d < 40*time.Second || d > 60*time.Second {
			t.Errorf("two stalls took %s", d)
		}
	})
}

type waits struct{ ctx context.Context }

func (w waits) Read([]byte) (int, error) {
	<-w.ctx.Done()
	return 0, w.ctx.Err()
}

func TestFailures(t *testing.T) {
	t.Parallel()
	loop := reply(302, "Location", fileURL)
	tests := []struct {
		name      string
		url, sum  string
		script    []step
		permanent bool
		requests  int
		says      string
	}{
		{name: "404", script: steps(reply(404)), permanent: true, requests: 1, says: "404"},
		{name: "410", script: steps(reply(410)), permanent: true, requests: 1, says: "never published"},
		{name: "403", script: steps(reply(403)), permanent: true, requests: 1, says: "without credentials"},
		{name: "500 for ever", script: repeat(reply(500), 9), requests: 3, says: "3 attempts"},
		{name: "429 for ever", script: repeat(reply(429, "Retry-After", "100"), 9), requests: 3, says: "429"},
		{name: "wrong sum", sum: strings.Repeat("ab", 32), permanent: true, requests: 1, says: "has sha256"},
		{name: "sum not hex", sum: "zz", permanent: true, says: "64 hex digits"},
		{name: "redirect loop", script: repeat(loop, 99), permanent: true, requests: 6, says: "more than 5"},
		{name: "redirect to file", script: steps(reply(302, "Location", "file:///etc/passwd")), permanent: true, requests: 1, says: "local file"},
		{name: "redirect to ftp", script: steps(reply(302, "Location", "ftp://x/y")), permanent: true, requests: 1, says: `"ftp"`},
		{name: "redirect with password", script: steps(reply(302, "Location", "https://u:hunter2@x/y")), permanent: true, requests: 1, says: "does not send"},
		{name: "scheme", url: "ftp://x/y", permanent: true, says: `scheme "ftp"`},
		{name: "file not allowed", url: "file:///etc/passwd", permanent: true, says: "run by hand"},
		{name: "credentials", url: "https://u:hunter2@x/y", permanent: true, says: "does not send"},
		{name: "no host", url: "https:///y", permanent: true, says: "no host"},
		{name: "not a URL", url: "http://[::1", permanent: true, says: "not a URL"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o := newOrigin()
				o.script = tt.script
				f := newFetcher(t, o, func(o *Options) { o.Attempts = 3; o.AllowFile = strings.HasPrefix(tt.name, "redirect") })
				url := tt.url
				if url == "" {
					url = fileURL
				}
				_, _, err := f.Get(t.Context(), File{URL: url, SHA256: tt.sum})
				wantLab(t, err, tt.permanent)
				if !strings.Contains(err.Error(), tt.says) {
					t.Errorf("error %q does not say %q", err, tt.says)
				}
				if strings.Contains(err.Error(), "hunter2") {
					t.Errorf("error %q shows a password", err)
				}
				if n := len(o.requests()); n != tt.requests {
					t.Errorf("%d requests, want %d", n, tt.requests)
				}
				if left, _ := filepath.Glob(filepath.Join(f.store.dir, "*", "*")); tt.permanent && len(left) != 0 {
					t.Errorf("left behind: %v", left)
				}
			})
		})
	}
}

func steps(s ...step) []step {
	return s
}

func repeat(s step, n int) []step {
	var all []step
	for range n {
		all = append(all, s)
	}
	return all
}

func TestQueryStaysOutOfErrors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dead := func(r *http.Request) (*http.Response, error) { return nil, errors.New("no route") }
		o := newOrigin()
		o.script = repeat(dead, 9)
		f := newFetcher(t, o, nil)
		_, _, err := f.Get(t.Context(), File{URL: fileURL + "?sig=hunter2"})
		wantLab(t, err, false)
		if strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "no route") {
			t.Errorf("error %q", err)
		}
	})
}

func TestTooLarge(t *testing.T) {
	t.Parallel()
	for _, announced := range []bool{true, false} {
		t.Run(fmt.Sprint(announced), func(t *testing.T) {
			t.Parallel()
			o := newOrigin()
			if !announced {
				o.script = steps(func(r *http.Request) (*http.Response, error) {
					resp := o.serve(r)
					resp.ContentLength = -1
					return resp, nil
				})
			}
			f := newFetcher(t, o, func(o *Options) { o.MaxFile = 300_000 })
			_, _, err := f.Get(t.Context(), File{URL: fileURL})
			wantLab(t, err, true)
			if left, _ := filepath.Glob(filepath.Join(f.store.dir, "parts", "*")); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestConcurrentGetsShareOneDownload(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOrigin()
		gate := make(chan struct{})
		o.script = steps(func(r *http.Request) (*http.Response, error) {
			<-gate
			return o.serve(r), nil
		})
		f := newFetcher(t, o, nil)
		var wg sync.WaitGroup
		var mu sync.Mutex
		told := 0
		for range 8 {
			wg.Go(func() {
				_, release, err := f.Get(t.Context(), File{URL: fileURL, Progress: func(done, total int64) {
					mu.Lock()
					defer mu.Unlock()
					if done == total && total == int64(len(o.content)) {
						told++
					}
				}})
				if err != nil {
					t.Error(err)
					return
				}
				release()
			})
		}
		synctest.Wait()
		close(gate)
		wg.Wait()
		if n := len(o.requests()); n != 1 {
			t.Errorf("%d requests", n)
		}
		if told != 8 {
			t.Errorf("%d of 8 callers heard of the end", told)
		}
	})
}

// One of two callers leaves: the download goes on. The other leaves: it ends.
func TestDownloadEndsWithItsLastCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOrigin()
		ended := make(chan struct{})
		o.script = steps(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			close(ended)
			return nil, r.Context().Err()
		})
		f := newFetcher(t, o, func(o *Options) { o.Stall = time.Hour })
		stop := errors.New("runner stops")
		results := make(chan error, 2)
		var cancels []context.CancelCauseFunc
		for range 2 {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancels = append(cancels, cancel)
			go func() {
				_, _, err := f.Get(ctx, File{URL: fileURL})
				results <- err
			}()
		}
		synctest.Wait()
		cancels[0](stop)
		if err := <-results; !errors.Is(err, stop) {
			t.Errorf("first caller got %v, want its cause", err)
		}
		synctest.Wait()
		select {
		case <-ended:
			t.Fatal("download ended although one caller still waits")
		default:
		}
		cancels[1](stop)
		<-results
		<-ended
	})
}

func TestEviction(t *testing.T) {
	t.Parallel()
	files := map[string]*origin{}
	for i := range 4 {
		files[fmt.Sprintf("/f%d", i)] = &origin{content: bytes.Repeat([]byte{byte(i)}, 1000), etag: `"1"`}
	}
	f := newFetcher(t, byPath(files), func(o *Options) { o.MaxCache = 2500 })
	get := func(i int) (string, func()) {
		path, release, err := f.Get(t.Context(), File{URL: fmt.Sprintf("https://h/f%d", i)})
		if err != nil {
			t.Fatal(err)
		}
		return path, release
	}
	used, release := get(0)
	older := func(path string, by time.Duration) {
		at := time.Now().Add(-by)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	idle, done := get(1)
	done()
	older(used, 2*time.Hour)
	older(idle, time.Hour)
	_, done = get(2)
	done()
	if _, err := os.Stat(idle); err == nil {
		t.Error("the file that is not in use stayed")
	}
	if _, err := os.Stat(used); err != nil {
		t.Error("a file in use was evicted")
	}
	release()
	older(used, 2*time.Hour)
	_, done = get(3)
	done()
	if _, err := os.Stat(used); err == nil {
		t.Error("the released file, the oldest, stayed")
	}
}

type byPath map[string]*origin

func (b byPath) RoundTrip(r *http.Request) (*http.Response, error) { return b[r.URL.Path].RoundTrip(r) }

func TestLocalFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bzImage")
	if err := os.WriteFile(path, []byte("kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFetcher(t, nil, func(o *Options) { o.AllowFile = true; o.MaxFile = 100 })
	if got := mustGet(t, f, File{URL: "file://" + path}); got != path {
		t.Errorf("got %s, want the file where it lies", got)
	}
	h := sha256.Sum256([]byte("kernel"))
	mustGet(t, f, File{URL: "file://" + path, SHA256: hex.EncodeToString(h[:])})
	for _, bad := range []File{
		{URL: "file://" + path, SHA256: strings.Repeat("00", 32)},
		{URL: "file://" + path + ".gone"},
		{URL: "file://" + filepath.Dir(path)},
		{URL: "file://otherhost" + path},
	} {
		_, _, err := f.Get(t.Context(), bad)
		wantLab(t, err, true)
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 5-9/10", "bytes 0-0/*", "bytes */10", "bytes 9-5/10", "bytes 5-9/7", "", "bytes -1-2/3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		start, length, ok := parseContentRange(s)
		if ok && (start < 0 || length != -1 && length <= start) {
			t.Errorf("%q: start %d, length %d", s, start, length)
		}
	})
}
