package fetch

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/executor"
)

// Options of a Fetcher. The zero value is usable.
type Options struct {
	// Transport is http.DefaultTransport when nil.
	Transport http.RoundTripper
	// AllowFile admits file:// URLs. They name any file that this process may
	// read, so it is for definitions that an operator runs by hand.
	AllowFile bool
	// MaxFile is the largest file in bytes; 0 is 16 GiB.
	MaxFile int64
	// MaxCache is how many bytes of files not in use stay; 0 is 40 GiB.
	MaxCache int64
	// Attempts at one download before a temporary failure is reported; 0 is 6.
	Attempts int
	// Backoff between attempts; zero is one second up to 30.
	Backoff backoff.Policy
	// Stall is how long a server may say nothing before the attempt is given
	// up and resumed; 0 is one minute.
	Stall time.Duration
	// MaxRedirects followed for one request; 0 is 5.
	MaxRedirects int
}

func (o Options) withDefaults() Options {
	if o.Transport == nil {
		o.Transport = http.DefaultTransport
	}
	o.MaxFile = orDefault(o.MaxFile, 16<<30)
	o.MaxCache = orDefault(o.MaxCache, 40<<30)
	o.Attempts = orDefault(o.Attempts, 6)
	o.Stall = orDefault(o.Stall, time.Minute)
	o.MaxRedirects = orDefault(o.MaxRedirects, 5)
	if o.Backoff == (backoff.Policy{}) {
		o.Backoff = backoff.Policy{Min: time.Second, Max: 30 * time.Second}
	}
	return o
}

func orDefault[T int | int64 | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// File is one to fetch.
type File struct {
	// URL is http, https, or file where that is allowed.
	URL string
	// SHA256 in hex; empty when nobody knows it.
	SHA256 string
	// Progress, when set, is told the bytes that are here and how many there
	// will be, -1 while the server has not said. It must return at once and is
	// not called after Get returned.
	Progress func(done, total int64)
}

// Fetcher downloads into one directory, which other processes may share.
type Fetcher struct {
	opts   Options
	client *http.Client
	store  *store

	mu      sync.Mutex
	flights map[string]*flight
}

// New makes the directory if need be.
func New(dir string, opts Options) (*Fetcher, error) {
	opts = opts.withDefaults()
	s, err := newStore(dir, opts.MaxCache)
	if err != nil {
		return nil, fmt.Errorf("preparing the download cache: %w", err)
	}
	f := &Fetcher{opts: opts, store: s, flights: map[string]*flight{}}
	f.client = &http.Client{Transport: opts.Transport, CheckRedirect: f.checkRedirect}
	return f, nil
}

// Get gives the path of the file's content. The path stays valid until release
// is called, which must happen exactly once and only if err is nil. The file
// is shared: it must not be changed.
func (f *Fetcher) Get(ctx context.Context, file File) (path string, release func(), err error) {
	u, err := f.parse(file.URL)
	if err != nil {
		return "", nil, permanent(err, "Correct the URL in the job definition.")
	}
	sum, err := parseSum(file.SHA256)
	if err != nil {
		return "", nil, permanent(fmt.Errorf("%s: %w", redact(u), err), "Correct the checksum in the job definition.")
	}
	if u.Scheme == "file" {
		return f.local(u, sum, file.Progress)
	}
	if sum != "" {
		if path, release, ok := f.store.open(sum); ok {
			return path, release, nil
		}
	}
	return f.join(ctx, u, sum, file.Progress)
}

// local gives a file where it lies. Its content is only read when there is a
// checksum to compare.
func (f *Fetcher) local(u *url.URL, sum string, progress func(done, total int64)) (string, func(), error) {
	path := filepath.Clean(u.Path)
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return "", nil, permanent(err, "Check the path in the job definition.")
	case !info.Mode().IsRegular():
		return "", nil, permanent(fmt.Errorf("%s is not a regular file", path), "Name a file in the job definition.")
	case info.Size() > f.opts.MaxFile:
		return "", nil, permanent(tooLarge(u, f.opts.MaxFile), "")
	}
	if sum != "" {
		got, err := sumOf(path)
		if err != nil {
			return "", nil, permanent(err, "Make the file readable for the runner.")
		}
		if got != sum {
			return "", nil, permanent(&ChecksumError{URL: redact(u), Want: sum, Got: got}, "")
		}
	}
	if progress != nil {
		progress(info.Size(), info.Size())
	}
	return path, func() {}, nil
}

// parse holds a URL to the rules, be it from a definition or from a redirect.
func (f *Fetcher) parse(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		// The text of a url.Error repeats the URL, which may hold a secret.
		return nil, errors.New("not a URL")
	}
	return u, f.check(u)
}

func (f *Fetcher) check(u *url.URL) error {
	switch {
	case u.User != nil:
		return fmt.Errorf("%s holds a user name or password, which pullab does not send", redact(u))
	case u.Scheme == "file" && !f.opts.AllowFile:
		return fmt.Errorf("%s: local files are read only for a definition run by hand", redact(u))
	case u.Scheme == "file" && u.Host != "" && u.Host != "localhost":
		return fmt.Errorf("%s names a file on another host", redact(u))
	case u.Scheme == "file":
		return nil
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("%s: scheme %q is not http or https", redact(u), u.Scheme)
	case u.Host == "":
		return fmt.Errorf("%s names no host", redact(u))
	}
	return nil
}

// errRedirect marks refused redirects, which are permanent.
var errRedirect = errors.New("redirect refused")

func (f *Fetcher) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > f.opts.MaxRedirects {
		return fmt.Errorf("%w: more than %d of them", errRedirect, f.opts.MaxRedirects)
	}
	if req.URL.Scheme == "file" {
		return fmt.Errorf("%w: to a local file", errRedirect)
	}
	if err := f.check(req.URL); err != nil {
		return fmt.Errorf("%w: %w", errRedirect, err)
	}
	// The address we came from may hold a secret in its query.
	req.Header.Del("Referer")
	return nil
}

// redact is u without what may be secret: its query, fragment and user.
func redact(u *url.URL) string {
	c := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, Opaque: u.Opaque}
	return c.String()
}

func parseSum(s string) (string, error) {
	s = strings.ToLower(strings.TrimSpace(s))
	if s == "" {
		return "", nil
	}
	if b, err := hex.DecodeString(s); err != nil || len(b) != 32 {
		return "", errors.New("its sha256 is not 64 hex digits")
	}
	return s, nil
}

// ChecksumError says that a file is not the one that was asked for.
type ChecksumError struct {
	// URL without its query.
	URL       string
	Want, Got string
}

func (e *ChecksumError) Error() string {
	return fmt.Sprintf("%s has sha256 %s, the job definition says %s", e.URL, e.Got, e.Want)
}

// StatusError is a reply that is not the file.
type StatusError struct {
	URL    string
	Status int
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%s: the server answered %d %s", e.URL, e.Status, http.StatusText(e.Status))
}

func tooLarge(u *url.URL, limit int64) error {
	return fmt.Errorf("%s is larger than %d bytes, the most that is fetched", redact(u), limit)
}

func permanent(err error, fix string) error {
	return &executor.LabError{Reason: "download", Permanent: true, Fix: fix, Err: err}
}

func temporary(err error, fix string) error {
	return &executor.LabError{Reason: "download", Fix: fix, Err: err}
}
