package jobdef

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"
	"time"
)

// Defaults of Options.
const (
	DefaultFetchTimeout = 30 * time.Second
	MaxRedirects        = 5
)

// Options of a fetcher. There is no place for a token, on purpose.
type Options struct {
	// Transport, nil for the default. Tests put a handler here.
	Transport http.RoundTripper
	// Timeout of one fetch with its redirects and body; 0 is
	// DefaultFetchTimeout.
	Timeout time.Duration
	// UserAgent to send.
	UserAgent string
	// AllowFile lets file:// URLs and plain paths be read: only for a
	// definition that an operator names on the command line.
	AllowFile bool
}

// Fetcher reads definitions from where they lie.
type Fetcher struct {
	client    *http.Client
	timeout   time.Duration
	userAgent string
	allowFile bool
}

// NewFetcher makes a fetcher without credentials.
func NewFetcher(o Options) *Fetcher {
	return &Fetcher{
		// No cookie jar: nothing that one host says reaches another.
		client:    &http.Client{Transport: o.Transport, CheckRedirect: checkRedirect},
		timeout:   cmp.Or(o.Timeout, DefaultFetchTimeout),
		userAgent: o.UserAgent,
		allowFile: o.AllowFile,
	}
}

// UnusedParts is how Definition.Unknown is told to operators.
const UnusedParts = "The job definition has parts that this version does not use"

// Read fetches and decodes a definition. Errors are those of Fetch, and
// *DecodeError.
func (f *Fetcher) Read(ctx context.Context, location string) (*Definition, error) {
	data, err := f.Fetch(ctx, location)
	if err != nil {
		return nil, err
	}
	return Decode(data)
}

// Fetch reads the definition's bytes. Errors are *RefusedError,
// *UnavailableError, or ctx's cause when ctx ended.
func (f *Fetcher) Fetch(ctx context.Context, location string) ([]byte, error) {
	if f.allowFile {
		if name, ok := LocalPath(location); ok {
			return readFile(name)
		}
	}
	u, err := parseURL(location)
	if err != nil {
		return nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	data, err := f.get(bounded, u)
	switch {
	case err == nil:
		return data, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case bounded.Err() != nil:
		return nil, &UnavailableError{Reason: fmt.Sprintf("the job definition's host %s did not answer in full within %s", u.Host, f.timeout)}
	}
	return nil, err
}

func (f *Fetcher) get(ctx context.Context, u *url.URL) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, &RefusedError{Reason: "the job definition's URL cannot be asked for"}
	}
	req.Header.Set("Accept", "application/json")
	if f.userAgent != "" {
		req.Header.Set("User-Agent", f.userAgent)
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, transportError(u, err)
	}
	defer resp.Body.Close()
	if err := statusError(u, resp); err != nil {
		return nil, err
	}
	data, err := readCapped(resp.Body)
	var refused *RefusedError
	if err != nil && !errors.As(err, &refused) {
		return nil, &UnavailableError{Reason: "the job definition's host " + u.Host + " broke off", Err: err}
	}
	return data, err
}

func readCapped(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxSize {
		return nil, &RefusedError{Reason: fmt.Sprintf("the job definition is larger than %d bytes (1 MiB): it cannot be one", MaxSize)}
	}
	return data, nil
}

// transportError classes what client.Do says. A redirect that was refused is
// final; anything the network does may pass.
func transportError(u *url.URL, err error) error {
	var refused *RefusedError
	if errors.As(err, &refused) {
		return refused
	}
	// url.Error repeats the URL, and with a redirect a foreign one.
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return &UnavailableError{Reason: "the job definition's host " + u.Host + " cannot be reached", Err: err}
}

func statusError(u *url.URL, resp *http.Response) error {
	what := fmt.Sprintf("the job definition's host %s answered %d %s", u.Host, resp.StatusCode, http.StatusText(resp.StatusCode))
	switch c := resp.StatusCode; {
	case c == http.StatusOK:
		return nil
	case c >= 500, c == http.StatusRequestTimeout, c == http.StatusTooEarly, c == http.StatusTooManyRequests:
		return &UnavailableError{Reason: what, RetryAfter: retryAfter(resp.Header.Get("Retry-After"))}
	case c == http.StatusNotFound, c == http.StatusGone:
		return &RefusedError{Reason: what + ": the definition is not there (any more)"}
	default:
		return &RefusedError{Reason: what}
	}
}

// retryAfter reads the header's seconds; its date form is rare and not worth a
// trust in clocks.
func retryAfter(s string) time.Duration {
	const longest = time.Hour
	n, err := strconv.Atoi(s)
	if err != nil || n <= 0 {
		return 0
	}
	return min(time.Duration(min(n, int(longest/time.Second)))*time.Second, longest)
}

func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > MaxRedirects {
		return &RefusedError{Reason: fmt.Sprintf("the job definition's URL redirects more than %d times", MaxRedirects)}
	}
	for _, v := range via {
		if v.URL.String() == req.URL.String() {
			return &RefusedError{Reason: "the job definition's URL redirects in a loop"}
		}
	}
	if err := CheckURL(req.URL, false); err != nil {
		return &RefusedError{Reason: "the job definition's URL redirects to a URL that " + err.Error()}
	}
	return nil
}

func parseURL(location string) (*url.URL, error) {
	u, err := url.Parse(location)
	if err != nil {
		// The parser's error repeats the text, which may hold a password.
		return nil, &RefusedError{Reason: "the job definition's URL is malformed"}
	}
	if err := CheckURL(u, false); err != nil {
		return nil, &RefusedError{Reason: "the job definition's URL " + err.Error()}
	}
	if err := checkName(u.Path); err != nil {
		return nil, err
	}
	return u, nil
}

// checkName refuses LAVA definitions by their name (kernelci-wire.md 1.4).
func checkName(p string) error {
	switch ext := strings.ToLower(path.Ext(p)); ext {
	case ".yaml", ".yml":
		return &RefusedError{Reason: fmt.Sprintf("the job definition %q is a LAVA job (%s), not a PULL_LABS definition (.json): "+
			"this lab cannot run it; the runtime should be of lab_type pull_labs", clip(path.Base(p)), ext)}
	}
	return nil
}

// CheckURL tells what is wrong with a URL of a definition or an artifact, as the
// rest of a sentence: the scheme must be http or https (or file, if allowed), there
// must be a host, and no credentials. The error repeats no secret.
func CheckURL(u *url.URL, allowFile bool) error {
	switch {
	case u.User != nil:
		return errors.New("carries credentials, which would leak into logs and reports: give a URL without user name and password")
	case u.Scheme == "file":
		if !allowFile {
			return errors.New("is a file:// URL, which only `pullab run` with a local definition may use: give http or https")
		}
		if u.Host != "" || !path.IsAbs(u.Path) {
			return errors.New("is not a file:// URL with an absolute path")
		}
		return nil
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("has the scheme %q: only http and https are fetched", clip(u.Scheme))
	case u.Hostname() == "":
		return errors.New("has no host")
	}
	return nil
}

// LocalPath gives the file that a location names, when it names one: file://
// with an absolute path, or anything without a scheme.
func LocalPath(location string) (string, bool) {
	if rest, ok := strings.CutPrefix(location, "file://"); ok {
		return rest, true
	}
	return location, !strings.Contains(location, "://")
}

func readFile(name string) ([]byte, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, &RefusedError{Reason: "the job definition cannot be read", Err: err}
	}
	defer f.Close()
	data, err := readCapped(f)
	var refused *RefusedError
	if err != nil && !errors.As(err, &refused) {
		return nil, &RefusedError{Reason: "the job definition cannot be read", Err: err}
	}
	return data, err
}
