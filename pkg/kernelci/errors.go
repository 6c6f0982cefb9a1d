package kernelci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	// maxDetail of an APIError, in characters.
	maxDetail = 500
	// maxRetryAfter bounds what a far side may ask for.
	maxRetryAfter = time.Hour
)

// APIError is an answer other than success.
type APIError struct {
	Method, Path string
	Status       int
	// Detail is the API's own text, at most 500 characters.
	Detail string
	// RetryAfter is from the header, at most an hour, 0 without one.
	RetryAfter time.Duration
}

func (e *APIError) Error() string {
	s := fmt.Sprintf("%s %s: HTTP %d %s", e.Method, e.Path, e.Status, http.StatusText(e.Status))
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		s += "; check kernelci.api_token (KERNELCI_API_TOKEN) and the groups of its user"
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		s += "; check kernelci.api_base_uri"
	}
	return s
}

// Temporary: the same request may work later (5xx, 408, 425, 429).
func (e *APIError) Temporary() bool {
	switch e.Status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	}
	return e.Status >= 500
}

// BodyError is an answer of success whose body is not what it should be: cut
// off, too large, not JSON, of a wrong type. The same request may work later.
type BodyError struct {
	Method, Path string
	// Offset in the (decompressed) body, in bytes.
	Offset int64
	Err    error
}

func (e *BodyError) Error() string {
	return fmt.Sprintf("%s %s: bad answer at byte %d: %v", e.Method, e.Path, e.Offset, e.Err)
}

func (e *BodyError) Unwrap() error { return e.Err }

// ItemsError is what could not be decoded of a page of nodes; the others of the
// page are returned beside it.
type ItemsError struct{ Errs []error }

func (e *ItemsError) Error() string {
	return fmt.Sprintf("%d nodes of the page could not be read, the first: %v", len(e.Errs), e.Errs[0])
}

func (e *ItemsError) Unwrap() []error { return e.Errs }

// scrubbed is an error whose text repeated the token.
type scrubbed struct {
	text string
	err  error
}

func (e *scrubbed) Error() string { return e.text }
func (e *scrubbed) Unwrap() error { return e.err }

func (c *Client) scrub(err error) error {
	if err == nil || c.token == "" || !strings.Contains(err.Error(), c.token) {
		return err
	}
	return &scrubbed{c.clean(err.Error()), err}
}

func (c *Client) clean(s string) string {
	if c.token == "" {
		return s
	}
	return strings.ReplaceAll(s, c.token, "[token]")
}

// detail gets the text out of {"detail": "..."}, pydantic's list of complaints,
// {"message": "..."} or whatever else came.
func detail(body []byte) string {
	var doc struct {
		Detail  json.RawMessage `json:"detail"`
		Message string          `json:"message"`
	}
	text := string(body)
	if json.Unmarshal(body, &doc) == nil {
		switch {
		case len(doc.Detail) > 0 && !bytes.Equal(doc.Detail, []byte("null")):
			text = detailText(doc.Detail)
		case doc.Message != "":
			text = doc.Message
		}
	}
	return cut(oneLine(text), maxDetail)
}

func detailText(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	var list []struct {
		Loc []any  `json:"loc"`
		Msg string `json:"msg"`
	}
	if json.Unmarshal(raw, &list) != nil || len(list) == 0 {
		return string(raw)
	}
	var complaints []string
	for _, c := range list {
		var loc []string
		for _, l := range c.Loc {
			loc = append(loc, fmt.Sprint(l))
		}
		complaints = append(complaints, strings.Join(loc, ".")+": "+c.Msg)
	}
	return strings.Join(complaints, "; ")
}

// oneLine makes text from outside fit for a log line.
func oneLine(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	return strings.Join(strings.Fields(s), " ")
}

func cut(s string, limit int) string {
	n := 0
	for i := range s {
		if n == limit {
			return s[:i]
		}
		n++
	}
	return s
}

// retryAfter reads seconds or an HTTP date, which is relative to the answer's
// own Date so that our clock does not matter.
func retryAfter(h http.Header) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if n, err := strconv.ParseInt(v, 10, 32); err == nil {
		return min(max(0, time.Duration(n)*time.Second), maxRetryAfter)
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	now, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		now = time.Now()
	}
	return min(max(0, at.Sub(now)), maxRetryAfter)
}
