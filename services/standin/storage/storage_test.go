package storage_test

import (
	"bytes"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pullab/pullab/services/standin/internal/inproc"
	"github.com/pullab/pullab/services/standin/storage"
)

type client struct {
	t    *testing.T
	http *http.Client
}

// reply is a response whose body was read.
type reply struct {
	StatusCode    int
	Header        http.Header
	ContentLength int64
}

func (c client) do(method, path string, header map[string]string, body io.Reader) (reply, string) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, "http://storage.test"+path, body)
	if err != nil {
		c.t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
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
	return reply{res.StatusCode, res.Header, res.ContentLength}, string(b)
}

func form(t *testing.T, path, name, body string) (io.Reader, string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	if err := w.WriteField("path", path); err != nil {
		t.Fatal(err)
	}
	f, err := w.CreateFormFile("file0", name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(f, body); err != nil {
		t.Fatal(err)
	}
	w.Close()
	return &b, w.FormDataContentType()
}

func TestStorage(t *testing.T) {
	t.Parallel()
	for name, dir := range map[string]string{"memory": "", "directory": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := storage.New(storage.Options{Tokens: map[string]string{"token": "lab"}, Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			c := client{t, &http.Client{Transport: inproc.Transport{"storage.test": s}}}
			if _, b := c.do("GET", "/v1/checkauth", map[string]string{"Authorization": "Bearer token"}, nil); b != "Authorized: lab" {
				t.Errorf("checkauth: %q", b)
			}
			for _, auth := range []string{"", "Bearer", "Bearer wrong", "token"} {
				if res, _ := c.do("GET", "/v1/checkauth", map[string]string{"Authorization": auth}, nil); res.StatusCode != 401 {
					t.Errorf("%q: %d", auth, res.StatusCode)
				}
			}
			upload := func(auth, path, file, body string) int {
				b, ct := form(t, path, file, body)
				res, reply := c.do("POST", "/v1/file", map[string]string{"Authorization": auth, "Content-Type": ct}, b)
				if reply != "" {
					t.Errorf("an upload is answered with %q", reply)
				}
				return res.StatusCode
			}
			if code := upload("Bearer wrong", "logs", "x.log", "no"); code != 401 {
				t.Errorf("without token: %d", code)
			}
			if code := upload("Bearer token", "logs/run/", "console.log", "0123456789"); code != 200 {
				t.Errorf("upload: %d", code)
			}
			if code := upload("Bearer token", "../../../etc", "passwd", "climber"); code != 200 {
				t.Errorf("climbing: %d", code)
			}
			if b, err := s.Read("/etc/passwd"); err != nil || string(b) != "climber" {
				t.Errorf("a path that climbs ends below the root: %q %v", b, err)
			}
			if code := upload("Bearer token", "logs", "", "x"); code != 400 {
				t.Errorf("no file name: %d", code)
			}
			if res, _ := c.do("POST", "/v1/file", map[string]string{"Authorization": "Bearer token"}, strings.NewReader("x")); res.StatusCode != 400 {
				t.Errorf("not a form: %d", res.StatusCode)
			}
			res, b := c.do("GET", "/logs/run/console.log", nil, nil)
			etag := res.Header.Get("ETag")
			if b != "0123456789" || etag == "" || res.Header.Get("Last-Modified") == "" || res.Header.Get("Content-Type") != "text/plain" {
				t.Errorf("%q %v", b, res.Header)
			}
			if res, b := c.do("GET", "/logs/run/console.log", map[string]string{"Range": "bytes=4-", "If-Range": etag}, nil); res.StatusCode != 206 || b != "456789" {
				t.Errorf("range: %d %q", res.StatusCode, b)
			}
			if res, _ := c.do("GET", "/logs/run/console.log", map[string]string{"If-None-Match": etag}, nil); res.StatusCode != 304 {
				t.Errorf("validator: %d", res.StatusCode)
			}
			if res, b := c.do("HEAD", "/logs/run/console.log", nil, nil); res.ContentLength != 10 || b != "" {
				t.Errorf("HEAD: %d %q", res.ContentLength, b)
			}
			if res, b := c.do("GET", "/nothing", nil, nil); res.StatusCode != 404 || b != "Not Found: nothing" {
				t.Errorf("missing: %d %q", res.StatusCode, b)
			}
			if res, _ := c.do("DELETE", "/logs/run/console.log", nil, nil); res.StatusCode != 405 {
				t.Errorf("DELETE: %d", res.StatusCode)
			}
			if _, err := s.Read("/nothing"); err == nil {
				t.Error("read nothing")
			}
		})
	}
}

func TestAddFile(t *testing.T) {
	t.Parallel()
	s, err := storage.New(storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bzImage")
	if err := s.AddFile("/k/bzImage", file); err == nil {
		t.Error("a file that is not there was added")
	}
	if err := os.WriteFile(file, []byte("kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.AddFile("/k/bzImage", file); err != nil {
		t.Fatal(err)
	}
	c := client{t, &http.Client{Transport: inproc.Transport{"storage.test": s}}}
	res, b := c.do("GET", "/k/bzImage", nil, nil)
	if b != "kernel" || res.Header.Get("ETag") == "" {
		t.Errorf("%q %v", b, res.Header)
	}
	// A changed file has another validator.
	if err := os.WriteFile(file, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if res2, _ := c.do("GET", "/k/bzImage", map[string]string{"If-None-Match": res.Header.Get("ETag")}, nil); res2.StatusCode != 200 {
		t.Errorf("after the change: %d", res2.StatusCode)
	}
}
