package logs_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/pullab/pullab/pkg/executor"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/runner/internal/logs"
)

// direct calls a handler without a socket, so that it works in a bubble.
type direct struct{ h http.HandlerFunc }

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	d.h(w, r)
	return w.Result(), nil
}

// far is a storage as strict as kernelci-wire.md 6.3 has it.
type far struct {
	mu sync.Mutex
	// replies are given first, one per request; 0 breaks the connection.
	replies []int
	files   map[string]string
	hosts   []string
}

func (f *far) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hosts = append(f.hosts, r.Host)
	if len(f.replies) > 0 {
		c := f.replies[0]
		f.replies = f.replies[1:]
		if c/100 == 3 {
			w.Header().Set("Location", "http://evil.example/v1/file")
		}
		w.WriteHeader(c)
		io.WriteString(w, "you sent "+r.Header.Get("Authorization"))
		return
	}
	if r.Method != http.MethodPost || r.URL.Path != "/v1/file" || r.Header.Get("Authorization") != "Bearer s3cret" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if err := r.ParseMultipartForm(1 << 20); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	part, header, err := r.FormFile("file0")
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	b, _ := io.ReadAll(part)
	if f.files == nil {
		f.files = map[string]string{}
	}
	f.files[r.FormValue("path")+"/"+header.Filename] = string(b)
}

func run(t *testing.T, s logs.Settings, f *far) (dir string, stored []*pullabv1.StoredFile) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "run_x")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"console.log": "Linux\n", "rows.json": "{}"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := logs.New(s, direct{f.ServeHTTP})
	stored, err := p.Publish(t.Context(), "run_x", dir, []executor.File{{Name: "console.log", Log: true}, {Name: "rows.json"}})
	if err != nil {
		t.Fatal(err)
	}
	return dir, stored
}

func TestDirectory(t *testing.T) {
	t.Parallel()
	dir, stored := run(t, logs.Settings{PublicBaseURL: "https://lab.example/logs/", MaxConsoleMiB: 1}, &far{})
	if len(stored) != 2 {
		t.Fatal(stored)
	}
	c := stored[0]
	if c.Url != "https://lab.example/logs/run_x/console.log" || c.Role != "log" || c.Location != filepath.Join(dir, "console.log") ||
		c.SizeBytes != 6 || len(c.Sha256) != 64 || stored[1].Role != "output" {
		t.Errorf("%v", stored)
	}
	b, err := os.ReadFile(filepath.Join(dir, "artifacts.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		SchemaVersion int `json:"schema_version"`
		Artifacts     []struct {
			Kind      string `json:"kind"`
			KCIDBRole string `json:"kcidb_role"`
			LogURL    string `json:"log_url"`
		} `json:"artifacts"`
	}
	if err := json.Unmarshal(b, &doc); err != nil || doc.SchemaVersion != 1 || len(doc.Artifacts) != 2 ||
		doc.Artifacts[0].LogURL != c.Url || doc.Artifacts[0].KCIDBRole != "log" {
		t.Errorf("%v %s", err, b)
	}
}

func TestNothingPublic(t *testing.T) {
	t.Parallel()
	_, stored := run(t, logs.Settings{MaxConsoleMiB: 1}, &far{})
	if len(stored) != 2 || stored[0].Url != "" || stored[0].Location == "" {
		t.Errorf("%v", stored)
	}
}

var uploading = logs.Settings{StorageURL: "http://files.example/", StorageToken: "s3cret", StoragePath: "pullab", MaxConsoleMiB: 1}

func TestUpload(t *testing.T) {
	for _, c := range []struct {
		name    string
		replies []int
		links   int
		calls   int
	}{
		{"at once", nil, 2, 2},
		{"after troubles", []int{503, 429, 500}, 2, 5},
		{"down for one file", []int{503, 503, 503, 503}, 1, 5},
		{"refused", []int{401}, 1, 2},
		{"bad request is not repeated", []int{400}, 1, 2},
		{"redirected", []int{307, 302}, 0, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &far{replies: c.replies}
				_, stored := run(t, uploading, f)
				links := 0
				for _, s := range stored {
					if s.Url != "" {
						links++
						if want := "http://files.example/pullab/run_x/" + s.Name; s.Url != want {
							t.Errorf("%s, want %s", s.Url, want)
						}
					}
				}
				if len(stored) != 2 || links != c.links || len(f.hosts) != c.calls {
					t.Errorf("%d files, %d links, %d calls", len(stored), links, len(f.hosts))
				}
				for _, h := range f.hosts {
					if h != "files.example" {
						t.Errorf("the token went to %s", h)
					}
				}
				if links == 2 && f.files["pullab/run_x/console.log"] != "Linux\n" {
					t.Errorf("%q", f.files)
				}
			})
		})
	}
}

func TestUploadInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		over := errors.New("over")
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "console.log"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		p := logs.New(uploading, direct{func(w http.ResponseWriter, _ *http.Request) { cancel(over); w.WriteHeader(503) }})
		if _, err := p.Publish(ctx, "r", dir, []executor.File{{Name: "console.log"}}); !errors.Is(err, over) {
			t.Error(err)
		}
	})
}

func TestConsoleIsCapped(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := "BEGIN" + strings.Repeat("x", 3<<20) + "END"
	if err := os.WriteFile(filepath.Join(dir, "console.log"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := logs.New(logs.Settings{MaxConsoleMiB: 1}, nil)
	for range 2 {
		stored, err := p.Publish(t.Context(), "r", dir, []executor.File{{Name: "console.log", Log: true}})
		if err != nil || stored[0].SizeBytes != 1<<20 {
			t.Fatal(err, stored)
		}
	}
	b, _ := os.ReadFile(filepath.Join(dir, "console.log"))
	if s := string(b); !strings.HasPrefix(s, "BEGIN") || !strings.HasSuffix(s, "END") || !strings.Contains(s, "3145736 bytes in all") {
		t.Errorf("%.40q ... %.40q", s, s[len(s)-40:])
	}
}

// TestForeignFiles: names and links that lead out of the run's directory are
// not published.
// What becomes public has no secrets in it: a console loses them, another file
// stays at home.
func TestSecretsStayHome(t *testing.T) {
	dir := t.TempDir()
	const secret = "ghp_0123456789abcdefghijklmnopqrstuvwxyz"
	for name, text := range map[string]string{
		"console.log": "[    1.0] booting\nexport T=" + secret + "\nuses s3cret-of-the-lab\n[    2.0] up\n", "env.txt": "T=" + secret + "\n", "plain.txt": "nothing\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := logs.New(logs.Settings{PublicBaseURL: "https://logs.example", MaxConsoleMiB: 1, StorageToken: "s3cret-of-the-lab"}, nil)
	stored, err := p.Publish(t.Context(), "run_x", dir, []executor.File{{Name: "console.log", Log: true}, {Name: "env.txt"}, {Name: "plain.txt"}})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range stored {
		names = append(names, f.GetName())
	}
	if strings.Join(names, " ") != "console.log plain.txt" {
		t.Errorf("published %v", names)
	}
	b, err := os.ReadFile(filepath.Join(dir, "console.log"))
	if err != nil {
		t.Fatal(err)
	}
	if s := string(b); strings.Contains(s, secret) || strings.Contains(s, "s3cret-of-the-lab") || !strings.Contains(s, "[    1.0] booting\n") || !strings.HasSuffix(s, "\n[    2.0] up\n") {
		t.Errorf("console: %q", s)
	}
	if s := p.Text("token " + secret); strings.Contains(s, secret) {
		t.Errorf("row text: %q", s)
	}
}

func TestForeignFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	p := logs.New(logs.Settings{PublicBaseURL: "http://x.example"}, nil)
	stored, err := p.Publish(t.Context(), "r", dir, []executor.File{{Name: "link", Log: true}, {Name: "../x"}, {Name: "gone"}, {Name: ".."}, {Name: ""}})
	if err != nil || len(stored) != 0 {
		t.Errorf("%v %v", err, stored)
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		s    logs.Settings
		want string
	}{
		{logs.Settings{MaxConsoleMiB: 1}, ""},
		{uploading, ""},
		{logs.Settings{MaxConsoleMiB: 1, StorageURL: "http://x.example", StoragePath: "p"}, "PULLAB_LOGS_STORAGE_TOKEN"},
		{logs.Settings{MaxConsoleMiB: 1, StorageURL: "ftp://x", StorageToken: "t", StoragePath: "p"}, "logs.storage_url must be"},
		{logs.Settings{MaxConsoleMiB: 1, PublicBaseURL: "https://u:p@x"}, "logs.public_base_url must be"},
		{logs.Settings{MaxConsoleMiB: 1, StorageURL: "http://x", StorageToken: "t", StoragePath: "../p"}, "storage_path"},
		{logs.Settings{MaxConsoleMiB: 1, StorageURL: "http://x", StorageToken: "t", StoragePath: "p", PublicBaseURL: "http://y"}, "both set"},
		{logs.Settings{}, "max_console_mib"},
	} {
		if err := c.s.Validate(); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.s, err)
		}
	}
}
