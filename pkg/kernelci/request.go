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
	"net/url"
	"strings"
	"time"
)

const (
	// maxPage, maxNode and maxError bound answers, in bytes after
	// decompression. A recursive page of 1,000 events is about 6 MB.
	maxPage  = 64 << 20
	maxNode  = 4 << 20
	maxError = 64 << 10
	// maxRedirects of one request.
	maxRedirects = 5
)

var (
	errTooLarge  = errors.New("the answer is too large")
	errRedirects = fmt.Errorf("more than %d redirects, perhaps a loop; check kernelci.api_base_uri", maxRedirects)
	errMoved     = errors.New("a write was redirected to another host or to a GET; it is not followed, check kernelci.api_base_uri")
)

// call is one request.
type call struct {
	method string
	// path below the base URI, escaped.
	path  string
	query string
	// body is sent as JSON; nil for none.
	body any
	// limit of the answer, in bytes.
	limit int64
}

// do sends a request and gives the body of a success.
func (c *Client) do(ctx context.Context, k call) ([]byte, error) {
	expired := fmt.Errorf("no complete answer within %s", c.timeout)
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, expired)
	defer cancel()
	body, err := c.send(ctx, k)
	var api *APIError
	var bad *BodyError
	switch {
	case err == nil || errors.As(err, &api):
		return body, c.scrub(err)
	case ctx.Err() != nil:
		// Cause says which: our limit, or why the caller stopped.
		return nil, c.scrub(fmt.Errorf("%s %s: %w", k.method, k.path, context.Cause(ctx)))
	case errors.As(err, &bad):
		return nil, c.scrub(err)
	}
	// url.Error quotes whole URLs, redirect targets too.
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return nil, c.scrub(fmt.Errorf("%s %s on %s: %w", k.method, k.path, c.base.Host, err))
}

func (c *Client) send(ctx context.Context, k call) ([]byte, error) {
	req, err := c.request(ctx, k)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	c.learn(resp.Header)
	limit := k.limit
	ok := resp.StatusCode/100 == 2
	if !ok {
		limit = maxError
	}
	body, err := read(resp, limit)
	if !ok {
		// A body that breaks off still says something, and the status counts.
		return nil, &APIError{Method: k.method, Path: k.path, Status: resp.StatusCode,
			Detail: c.clean(detail(body)), RetryAfter: retryAfter(resp.Header)}
	}
	if err != nil {
		return nil, &BodyError{k.method, k.path, int64(len(body)), err}
	}
	return body, nil
}

func (c *Client) request(ctx context.Context, k call) (*http.Request, error) {
	var body io.Reader
	if k.body != nil {
		b, err := encode(k.body)
		if err != nil {
			return nil, fmt.Errorf("encoding the body: %w", err)
		}
		// With a bytes.Reader the body can be sent again after a 307.
		body = bytes.NewReader(b)
	}
	target := c.base.String() + k.path
	if k.query != "" {
		target += "?" + k.query
	}
	req, err := http.NewRequestWithContext(ctx, k.method, target, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Accept-Encoding", "gzip")
	req.Header.Set("User-Agent", c.userAgent)
	if k.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	c.authorize(req)
	return req, nil
}

func (c *Client) authorize(req *http.Request) {
	req.Header.Del("Authorization")
	if c.token != "" && c.own(req.URL) {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
}

// own tells whether u is on the base URI's scheme, host and port.
func (c *Client) own(u *url.URL) bool {
	return u.Scheme == c.base.Scheme && strings.EqualFold(u.Hostname(), c.base.Hostname()) && port(u) == port(c.base)
}

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	default:
		return "80"
	}
}

// redirect is http.Client's CheckRedirect. net/http takes the token along to
// other ports and to subdomains; we do not, and once away it stays off.
func (c *Client) redirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return errRedirects
	}
	own := c.own(req.URL)
	for _, v := range via {
		own = own && c.own(v.URL)
	}
	if via[0].Method != http.MethodGet && (!own || req.Method != via[0].Method) {
		return errMoved
	}
	req.Header.Del("Authorization")
	if own {
		c.authorize(req)
	}
	return nil
}

// learn the API's clock.
func (c *Client) learn(h http.Header) {
	at, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return
	}
	// Date is cut to whole seconds: the middle is the better guess.
	skew := time.Until(at) + 500*time.Millisecond
	c.skew.Store(&skew)
}

// read gives what there is of the body, also with an error.
func read(resp *http.Response, limit int64) ([]byte, error) {
	var r io.Reader = resp.Body
	if strings.EqualFold(resp.Header.Get("Content-Encoding"), "gzip") {
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, fmt.Errorf("the answer says it is gzip and is not: %w", err)
		}
		r = z
	}
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	switch {
	case int64(len(b)) > limit:
		return b[:limit], fmt.Errorf("%w: over %d MiB", errTooLarge, limit>>20)
	case err != nil:
		return b, fmt.Errorf("the answer breaks off: %w", err)
	}
	return b, nil
}

// encode without the escapes of HTML, so that text goes back as it came.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
