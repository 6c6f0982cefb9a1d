// Package kernelci is the client of kernelci-api ("Maestro"). Wire formats are
// those of kernelci-wire.md sections 1 and 2.
package kernelci

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"time"
)

// Errors.
var (
	// ErrNoNode: the API knows no such node (it answers 200 with null).
	ErrNoNode = errors.New("no such node")
)

// APIError is an answer other than success.
type APIError struct {
	Method, Path string
	Status       int
	// Detail is the API's own text, at most 500 characters.
	Detail string
	// RetryAfter is from the header, 0 without one.
	RetryAfter time.Duration
}

func (e *APIError) Error() string { return "" }

// Temporary: the same request may work later (5xx, 408, 425, 429).
func (e *APIError) Temporary() bool { return false }

// Client of one API.
type Client struct{}

// Options of a client.
type Options struct {
	// BaseURI such as https://staging.kernelci.org:9000/latest.
	BaseURI string
	// Token is sent to BaseURI's host alone, never across a redirect to another.
	Token string
	// Transport, nil for the default. Tests put a handler here.
	Transport http.RoundTripper
	// Timeout of one request; 0 is 30 s.
	Timeout time.Duration
	// UserAgent, for example pullab-poller/0.1.
	UserAgent string
}

// New checks the options.
func New(o Options) (*Client, error) { return nil, errors.ErrUnsupported }

// Node is a node, typed where pullab looks at it. Doc is the whole document as
// it came, numbers as json.Number, so that a write can send every field back.
type Node struct {
	ID, Kind, Name   string
	Path             []string
	Group, Parent    string
	State, Result    string
	Artifacts        map[string]string
	Data             Data
	Created, Updated time.Time
	Timeout          time.Time
	Owner, Submitter string
	RetryCounter     int
	Doc              map[string]any
}

// Data is node.data where pullab looks at it.
type Data struct {
	Runtime, Platform, JobID                          string
	Arch, Compiler, Defconfig, ConfigFull, KernelType string
	ErrorCode, ErrorMsg                               string
	// KernelRevision as it came; nil without one.
	KernelRevision json.RawMessage
}

// Event of /events.
type Event struct {
	ID        string
	Timestamp time.Time
	Channel   string
	// NodeID is data.id; empty for an event that is not about a node.
	NodeID string
	Op     string
	// Node as it is now; nil unless the query was recursive and it still exists.
	Node *Node
	// Err is set when this element could not be decoded; the others of the page
	// still are.
	Err error
}

// EventQuery of /events. Zero fields are left out.
type EventQuery struct {
	From      time.Time
	State     string
	Kind      string
	Limit     int
	Offset    int
	Recursive bool
}

// Events asks once; the page is unsorted, as the API gives it. URL is what was
// asked, for the log.
func (c *Client) Events(ctx context.Context, q EventQuery) ([]Event, error) {
	return nil, errors.ErrUnsupported
}

// EventsURL is the URL that Events would ask.
func (c *Client) EventsURL(q EventQuery) string { return "" }

// Node reads one node; ErrNoNode when there is none.
func (c *Client) Node(ctx context.Context, id string) (*Node, error) {
	return nil, errors.ErrUnsupported
}

// Nodes reads one page of /nodes.
func (c *Client) Nodes(ctx context.Context, filter url.Values, limit, offset int) (nodes []*Node, total int, err error) {
	return nil, 0, errors.ErrUnsupported
}

// User is who a token belongs to.
type User struct {
	Username    string
	IsSuperuser bool
	Groups      []string
}

// MayEdit tells whether the user may edit nodes of the runtime
// (kernelci-wire.md 1.6).
func (u User) MayEdit(runtime string) bool { return false }

// WhoAmI asks whose token it is.
func (c *Client) WhoAmI(ctx context.Context) (User, error) { return User{}, errors.ErrUnsupported }

// Update writes the given top-level fields of a node, by PATCH, or where the API
// has none (405) by reading the document and PUTting all of it back with the
// fields changed. artifacts and data replace what was there: merge first.
func (c *Client) Update(ctx context.Context, id string, fields map[string]any) (*Node, error) {
	return nil, errors.ErrUnsupported
}

// Tree is a node and its children for PUT /nodes.
type Tree struct {
	Node     map[string]any `json:"node"`
	Children []Tree         `json:"child_nodes"`
}

// PutTree writes a result tree below an existing root.
func (c *Client) PutTree(ctx context.Context, id string, t Tree) error { return errors.ErrUnsupported }

// ParseTime reads the API's naive UTC timestamps, with or without fraction and
// with or without an offset.
func ParseTime(s string) (time.Time, error) { return time.Time{}, errors.ErrUnsupported }
