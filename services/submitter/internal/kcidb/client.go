package kcidb

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/pullab/pullab/pkg/config"
)

// maxReply is far above the longest reply, which is one short object.
const maxReply = 64 << 10

// State of a submission (kernelci-wire.md 5.2).
type State string

// The states; the last three do not change any more by themselves.
const (
	InProgress State = "inprogress"
	Ready      State = "ready"
	Processed  State = "processed"
	Failed     State = "failed"
	NotFound   State = "notfound"
)

// HTTPError is an answer other than success.
type HTTPError struct {
	// Op is submit, status or authtest.
	Op     string
	Status int
	// Message is the server's own text, at most 200 bytes.
	Message string
	// RetryAfter is from the header, 0 without one.
	RetryAfter time.Duration
}

func (e *HTTPError) Error() string {
	said := ""
	if e.Message != "" {
		said = fmt.Sprintf(" (it says: %q)", e.Message)
	}
	switch {
	case e.Unauthorized():
		return fmt.Sprintf("HTTP %d from KCIDB %s: JWT not signed by the kcidb-restd-rs unified_secret, expired, or origin claim mismatch%s", e.Status, e.Op, said)
	case e.Status >= 300 && e.Status < 400:
		return fmt.Sprintf("HTTP %d from KCIDB %s: redirects are not followed, as the token would go elsewhere; set kernelci.kcidb_submit_url to the final address%s", e.Status, e.Op, said)
	case e.Status == http.StatusNotFound || e.Status == http.StatusMethodNotAllowed:
		return fmt.Sprintf("HTTP %d from KCIDB %s: kernelci.kcidb_submit_url does not lead to kcidb-restd-rs%s", e.Status, e.Op, said)
	default:
		return fmt.Sprintf("HTTP %d from KCIDB %s%s", e.Status, e.Op, said)
	}
}

// Unauthorized: the token is refused; nothing is wrong with the document.
func (e *HTTPError) Unauthorized() bool {
	return e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden
}

// Refused: the document is, and would be again.
func (e *HTTPError) Refused() bool {
	switch e.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return e.Op == opSubmit
	}
	return false
}

const (
	opSubmit = "submit"
	opStatus = "status"
	opAuth   = "authtest"
)

// Client of one kcidb-restd-rs.
type Client struct {
	http   *http.Client
	submit string
	base   string
	token  config.Secret
	agent  string
}

// NewClient for a target. transport nil is the default; timeout is that of one
// request, body and reply included.
func NewClient(t Target, transport http.RoundTripper, timeout time.Duration, agent string) *Client {
	return &Client{
		http: &http.Client{
			Transport: transport, Timeout: timeout,
			// A redirect would take the token to another address.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		submit: t.URL, base: strings.TrimSuffix(t.URL, submitPath), token: t.Token, agent: agent,
	}
}

// Submit sends a document and returns the submission's id: it is stored there,
// not yet accepted.
func (c *Client) Submit(ctx context.Context, doc []byte) (id string, err error) {
	r, err := c.do(ctx, opSubmit, http.MethodPost, c.submit, doc)
	if err != nil {
		return "", err
	}
	if r.Status != "ok" || !idPattern.MatchString(r.ID) {
		return "", fmt.Errorf("KCIDB submit answered 200 with status %q and no usable id: is kernelci.kcidb_submit_url that of a kcidb-restd-rs?", r.Status)
	}
	return r.ID, nil
}

// Status asks for a submission's state.
func (c *Client) Status(ctx context.Context, id string) (State, error) {
	r, err := c.do(ctx, opStatus, http.MethodGet, c.base+"/status?id="+url.QueryEscape(id), nil)
	var he *HTTPError
	if errors.As(err, &he) && he.Status == http.StatusNotFound && r.Status == string(NotFound) {
		return NotFound, nil
	}
	if err != nil {
		return "", err
	}
	switch s := State(r.Status); s {
	case InProgress, Ready, Processed, Failed, NotFound:
		return s, nil
	default:
		return "", fmt.Errorf("KCIDB status of %s: unknown status %q", id, r.Status)
	}
}

// AuthTest tells whether the token is accepted.
func (c *Client) AuthTest(ctx context.Context) error {
	_, err := c.do(ctx, opAuth, http.MethodGet, c.base+"/authtest", nil)
	return err
}

func (c *Client) do(ctx context.Context, op, method, u string, body []byte) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, u, bytes.NewReader(body))
	if err != nil {
		return reply{}, fmt.Errorf("KCIDB %s: %w", op, err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token.Reveal())
	req.Header.Set("User-Agent", c.agent)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return reply{}, fmt.Errorf("KCIDB %s: %w", op, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return reply{}, fmt.Errorf("KCIDB %s: reading the reply: %w", op, err)
	}
	r, err := decodeReply(b)
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return r, &HTTPError{Op: op, Status: resp.StatusCode, Message: said(r, b), RetryAfter: retryAfter(resp.Header)}
	}
	if err != nil {
		return r, fmt.Errorf("KCIDB %s answered %d: %w", op, resp.StatusCode, err)
	}
	return r, nil
}

// reply is what every route but /health answers, as text/plain.
type reply struct {
	ID      string `json:"id"`
	Status  string `json:"status"`
	Message string `json:"message"`
}

// idPattern is wider than the 32 letters and digits of today's server, and
// still safe in a URL and a log.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

func decodeReply(b []byte) (reply, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	var r reply
	if err := d.Decode(&r); err != nil {
		return reply{}, fmt.Errorf("the reply is no JSON object, at byte %d: %w", d.InputOffset(), err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return reply{}, fmt.Errorf("something follows the reply at byte %d", d.InputOffset())
	}
	return r, nil
}

// said is the server's text for people, short and on one line.
func said(r reply, body []byte) string {
	s := r.Message
	if s == "" {
		s = string(body)
	}
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "")), " ")
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if n, err := strconv.Atoi(v); err == nil && n > 0 {
		return time.Duration(min(n, 3600)) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return min(max(time.Until(t), 0), time.Hour)
	}
	return 0
}
