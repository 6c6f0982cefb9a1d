// Package logs publishes the files of a run: it gives each an address that rows
// can link to, where the lab has one, and writes artifacts.json beside them.
//
// Publishing never changes a verdict. A file that cannot be published keeps its
// place on disk, its row goes without a link, and the log says so loudly.
package logs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/pkg/executor"
	"github.com/pullab/pullab/pkg/scrub"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

// Settings of the section `logs`.
type Settings struct {
	PublicBaseURL string        `key:"public_base_url" env:"PULLAB_LOGS_PUBLIC_BASE_URL" help:"URL below which a web server of yours shows <data_dir>/logs; rows then link to <public_base_url>/<run>/<file>. Empty without one."`
	StorageURL    string        `key:"storage_url" env:"PULLAB_LOGS_STORAGE_URL" help:"kernelci-storage to upload logs to, for example https://files.kernelci.org. Empty uploads nothing."`
	StorageToken  config.Secret `key:"storage_token" env:"PULLAB_LOGS_STORAGE_TOKEN" help:"Bearer token for storage_url."`
	StoragePath   string        `key:"storage_path" env:"PULLAB_LOGS_STORAGE_PATH" default:"pullab" help:"Folder in the storage; a file goes to <storage_path>/<run>/<file>."`
	MaxConsoleMiB int           `key:"max_console_mib" default:"16" help:"A longer console is cut in the middle, in MiB: its beginning and its end are kept."`
}

// Validate checks the section.
func (s Settings) Validate() error {
	var errs []error
	for _, u := range []struct{ key, value string }{{"public_base_url", s.PublicBaseURL}, {"storage_url", s.StorageURL}} {
		p, err := url.Parse(u.value)
		switch {
		case u.value == "":
		case err != nil || p.Scheme != "http" && p.Scheme != "https" || p.Host == "" || p.User != nil || p.RawQuery != "":
			errs = append(errs, fmt.Errorf("logs.%s must be an http or https URL without credentials and query", u.key))
		}
	}
	if s.PublicBaseURL != "" && s.StorageURL != "" {
		errs = append(errs, errors.New("logs.public_base_url and logs.storage_url are both set: rows can link to one place, empty the other"))
	}
	if s.StorageURL != "" && s.StorageToken == "" {
		errs = append(errs, errors.New("logs.storage_url is set without logs.storage_token (PULLAB_LOGS_STORAGE_TOKEN): the storage refuses uploads without one"))
	}
	if s.StorageURL != "" && !filepath.IsLocal(s.StoragePath) {
		errs = append(errs, fmt.Errorf("logs.storage_path %q must be a relative path that stays inside the storage", s.StoragePath))
	}
	if s.MaxConsoleMiB < 1 {
		errs = append(errs, fmt.Errorf("logs.max_console_mib is %d: it must be at least 1", s.MaxConsoleMiB))
	}
	return errors.Join(errs...)
}

// store gives a file of a run its public address; empty when it has none. It
// may be called again for the same file.
type store interface {
	put(ctx context.Context, runID string, f file) (publicURL string, err error)
}

// file is one to publish, complete on disk.
type file struct {
	name, path string
	size       int64
}

// Publisher publishes.
type Publisher struct {
	store      store
	maxConsole int64
	scrubber   *scrub.Scrubber
	// public is false where nobody but the operator sees the files.
	public bool
}

// New makes a publisher; transport nil is Go's default.
func New(s Settings, transport http.RoundTripper) *Publisher {
	p := &Publisher{maxConsole: int64(max(s.MaxConsoleMiB, 1)) << 20, scrubber: scrub.New(s.StorageToken.Reveal())}
	p.public = s.StorageURL != "" || s.PublicBaseURL != ""
	if s.StorageURL != "" {
		p.store = newStorage(s, transport)
	} else {
		p.store = directory(strings.TrimSuffix(s.PublicBaseURL, "/"))
	}
	return p
}

// directory leaves files where they lie; its value is the URL at which a web
// server shows them, or empty.
type directory string

func (d directory) put(_ context.Context, runID string, f file) (string, error) {
	if d == "" {
		return "", nil
	}
	return string(d) + "/" + url.PathEscape(runID) + "/" + url.PathEscape(f.name), nil
}

// Publish publishes the files of a run, which lie in dir. It returns early only
// when ctx ends, with its cause.
func (p *Publisher) Publish(ctx context.Context, runID, dir string, files []executor.File) ([]*pullabv1.StoredFile, error) {
	log := zerolog.Ctx(ctx)
	var stored []*pullabv1.StoredFile
	for _, f := range files {
		s, err := p.one(ctx, runID, dir, f)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			log.Error().Err(err).Str("run", runID).Str("file", f.Name).Msg("file not published: its rows go without a link; it lies in " + dir)
		}
		if s != nil {
			stored = append(stored, s)
		}
	}
	if err := index(dir, runID, stored); err != nil && len(stored) > 0 {
		log.Error().Err(err).Str("run", runID).Msg("artifacts.json not written")
	}
	return stored, nil
}

func (p *Publisher) one(ctx context.Context, runID, dir string, f executor.File) (*pullabv1.StoredFile, error) {
	if f.Name == "" || f.Name != filepath.Base(f.Name) || f.Name == ".." || f.Name == "." {
		return nil, fmt.Errorf("%q is not a plain file name", f.Name)
	}
	path := filepath.Join(dir, f.Name)
	if f.Log {
		if err := shorten(path, p.maxConsole); err != nil {
			return nil, err
		}
	}
	if err := p.clean(ctx, path, f.Log); err != nil {
		return nil, err
	}
	sum, size, err := digest(path)
	if err != nil {
		return nil, err
	}
	s := &pullabv1.StoredFile{Name: f.Name, Role: "output", Location: path, SizeBytes: size, Sha256: sum}
	if f.Log {
		s.Role = "log"
	}
	s.Url, err = p.store.put(ctx, runID, file{name: f.Name, path: path, size: size})
	return s, err
}

// clean takes secrets out of a console that becomes public, in its place. Any
// other file with a secret in it is not published: an executor may still have
// to read it as it was.
func (p *Publisher) clean(ctx context.Context, path string, console bool) error {
	if !p.public {
		return nil
	}
	counts, err := p.scrub(path, io.Discard)
	if err != nil || counts.Total() == 0 {
		return err
	}
	if !console {
		return fmt.Errorf("%d secrets were found in it", counts.Total())
	}
	zerolog.Ctx(ctx).Warn().Int("secrets", counts.Total()).Any("kinds", counts).Str("file", path).Msg("secrets taken out of a log that becomes public")
	return replace(path, func(w io.Writer) error {
		_, err := p.scrub(path, w)
		return err
	})
}

func (p *Publisher) scrub(path string, w io.Writer) (scrub.Counts, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := p.scrubber.NewReader(f)
	_, err = io.Copy(w, r)
	return r.Counts(), err
}

// Text is a row's text without secrets: rows are public always.
func (p *Publisher) Text(s string) string {
	clean, _ := p.scrubber.String(s)
	return clean
}

func digest(path string) (sum string, size int64, err error) {
	f, err := open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), size, err
}

// open reads a regular file only: a link that a test left could point anywhere
// on the host.
func open(path string) (*os.File, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return os.Open(path)
}

// artifact is an element of artifacts.json, with the predecessor's keys
// (predecessor.md 1.2).
type artifact struct {
	Kind        string `json:"kind"`
	KCIDBRole   string `json:"kcidb_role"`
	Status      string `json:"status"`
	LogURL      string `json:"log_url,omitempty"`
	LocalPath   string `json:"local_path"`
	SHA256      string `json:"sha256"`
	SizeBytes   int64  `json:"size_bytes"`
	ContentType string `json:"content_type"`
}

// index writes artifacts.json.
func index(dir, runID string, files []*pullabv1.StoredFile) error {
	if len(files) == 0 {
		return nil
	}
	doc := struct {
		SchemaVersion int        `json:"schema_version"`
		RunPrefix     string     `json:"run_prefix"`
		Artifacts     []artifact `json:"artifacts"`
	}{1, runID, nil}
	for _, f := range files {
		doc.Artifacts = append(doc.Artifacts, artifact{
			Kind: f.GetName(), KCIDBRole: f.GetRole(), Status: "ready", LogURL: f.GetUrl(), LocalPath: f.GetName(),
			SHA256: f.GetSha256(), SizeBytes: f.GetSizeBytes(), ContentType: contentType(f.GetName()),
		})
	}
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	return replace(filepath.Join(dir, "artifacts.json"), func(w io.Writer) error {
		_, err := w.Write(append(b, '\n'))
		return err
	})
}

func contentType(name string) string {
	switch filepath.Ext(name) {
	case ".log", ".txt":
		return "text/plain; charset=utf-8"
	case ".json":
		return "application/json"
	default:
		return "application/octet-stream"
	}
}

// shorten cuts the middle out of a file longer than limit. The end is worth
// more: a quarter of what stays is the beginning.
func shorten(path string, limit int64) error {
	f, err := open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() <= limit {
		return err
	}
	note := fmt.Sprintf("\n[pullab: %d bytes in all, the middle left out]\n", info.Size())
	head := limit / 4
	tail := limit - head - int64(len(note))
	return replace(path, func(w io.Writer) error {
		if _, err := io.Copy(w, io.NewSectionReader(f, 0, head)); err != nil {
			return err
		}
		if _, err := io.WriteString(w, note); err != nil {
			return err
		}
		_, err := io.Copy(w, io.NewSectionReader(f, info.Size()-tail, tail))
		return err
	})
}

// replace writes a file that is there whole or not at all.
func replace(path string, write func(io.Writer) error) error {
	t, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return err
	}
	err = errors.Join(write(t), t.Chmod(0o644), t.Close())
	if err == nil {
		err = os.Rename(t.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(t.Name()))
	}
	return nil
}
