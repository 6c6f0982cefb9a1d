// Package kernelci is the client of kernelci-api ("Maestro"). Wire formats are
// those of kernelci-wire.md sections 1 and 2.
//
// Guarantees:
//
//   - The token goes to the base URI's own scheme, host and port, and nowhere
//     else. A GET that is redirected away goes on without it; a write that is
//     redirected away, or whose redirect would turn it into a GET, is refused.
//   - No error text contains the token, whatever the far side echoes.
//   - Every answer is bounded in size and time. One that is cut off, not JSON or
//     of a wrong type is a *BodyError with the byte offset; asking again may help.
//   - A write of a node loses no field (Update).
//
// What may not be assumed: that a page is sorted or complete, that a node is
// still as it was read (the API has no compare-and-set), or that an error which
// is not an *APIError means that the API did nothing.
package kernelci

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// ErrNoNode: the API knows no such node (it answers 200 with null).
var ErrNoNode = errors.New("no such node")

// defaultTimeout of one request, body included.
const defaultTimeout = 30 * time.Second

// Client of one API. It may be used by many goroutines.
type Client struct {
	base      *url.URL
	token     string
	http      *http.Client
	timeout   time.Duration
	userAgent string
	noEvent   bool
	// skew is the API's clock minus ours, from the last answer's Date header.
	skew atomic.Pointer[time.Duration]
}

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
	// NoEvent makes Update write without an event (?noevent=true): watchers of
	// /events then do not see the change.
	NoEvent bool
}

// New checks the options.
func New(o Options) (*Client, error) {
	base, err := parseBase(o.BaseURI)
	if err != nil {
		return nil, err
	}
	if strings.ContainsFunc(o.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("kernelci.api_token (KERNELCI_API_TOKEN) has blanks or characters that no token has: is it a whole line of a file, or quoted?")
	}
	c := &Client{base: base, token: o.Token, timeout: o.Timeout, userAgent: o.UserAgent, noEvent: o.NoEvent}
	if c.timeout <= 0 {
		c.timeout = defaultTimeout
	}
	if c.userAgent == "" {
		c.userAgent = "pullab"
	}
	rt := o.Transport
	if rt == nil {
		rt = http.DefaultTransport
	}
	c.http = &http.Client{Transport: rt, CheckRedirect: c.redirect}
	return c, nil
}

// parseBase never quotes its input: a mistyped URL may carry a password.
func parseBase(s string) (*url.URL, error) {
	const key = "kernelci.api_base_uri (KERNELCI_API_BASE_URI)"
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, errors.New(key + " is not a URL: write it as https://host[:port]/latest")
	case u.User != nil:
		return nil, errors.New(key + " must not carry credentials: give the token by kernelci.api_token")
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return nil, fmt.Errorf("%s: %q is not an http or https URL: write it as https://host[:port]/latest", key, u.Redacted())
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return nil, fmt.Errorf("%s must end with the path, without ? or #", key)
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), ""
	return u, nil
}

// Host is the base URI's host, with the port if it names one.
func (c *Client) Host() string { return c.base.Host }

// BaseURI without a trailing slash.
func (c *Client) BaseURI() string { return c.base.String() }

// Now is the API's clock: the Date header of the newest answer (whole seconds)
// plus the time since. false before the first answer that had one. The machine's
// own clock may be wrong without effect.
func (c *Client) Now() (time.Time, bool) {
	skew := c.skew.Load()
	if skew == nil {
		return time.Time{}, false
	}
	return time.Now().Add(*skew).UTC(), true
}

// Node is a node, typed where pullab looks at it. Doc is the whole document as
// it came, numbers as json.Number, so that a write can send every field back; it
// is nil in events.
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
	// still are, and so are this one's other fields where they can be.
	Err error
}

// EventQuery of /events. Zero fields are left out.
type EventQuery struct {
	// From is exclusive, and cut to milliseconds by the API.
	From  time.Time
	State string
	Kind  string
	// Channel "node" keeps out what else is published; an event without a node
	// id would make the API fail a recursive query as a whole.
	Channel string
	Limit   int
	// Offset skips so many; the API does it, its documentation does not say so.
	Offset    int
	Recursive bool
}

// User is who a token belongs to.
type User struct {
	Username    string
	IsSuperuser bool
	Groups      []string
}

// EditGroups are the groups whose members may edit nodes of the runtime
// (kernelci-wire.md 1.6).
func EditGroups(runtime string) []string {
	return []string{"node:edit:any", "runtime:" + runtime + ":node-editor", "runtime:" + runtime + ":node-admin"}
}

// MayEdit tells whether the user may edit nodes of the runtime
// (kernelci-wire.md 1.6). Owning the node or being in its own user_groups also
// does, which a user's record cannot tell.
func (u User) MayEdit(runtime string) bool {
	if u.IsSuperuser {
		return true
	}
	for _, have := range u.Groups {
		for _, want := range EditGroups(runtime) {
			if have == want {
				return true
			}
		}
	}
	return false
}

// Tree is a node and its children for PUT /nodes.
type Tree struct {
	Node     map[string]any `json:"node"`
	Children []Tree         `json:"child_nodes"`
}

// MarshalJSON sends a leaf's children as [], which the API wants.
func (t Tree) MarshalJSON() ([]byte, error) {
	type plain Tree
	p := plain(t)
	if p.Children == nil {
		p.Children = []Tree{}
	}
	return encode(p)
}
