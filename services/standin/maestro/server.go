package maestro

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/pullab/pullab/services/standin/internal/node"
)

// Limits of the original.
const (
	// MaxBody is the ingress's client_max_body_size (kernelci-wire.md 1.1).
	MaxBody = 32 << 20
	// maxRecursive is the largest limit of a recursive listing.
	maxRecursive = 1000
	// compressFrom is the size from which the ingress compresses replies.
	compressFrom = 1000
)

// Order in which a listing comes. The original promises none.
type Order int

// Orders.
const (
	// Shuffled: a page holds the oldest matches, mixed up. It is what the
	// original usually does at its worst, and the default.
	Shuffled Order = iota
	// Scattered: which matches a page holds is arbitrary too, but the same for
	// every request, so that paging by offset sees each once.
	Scattered
	// Ascending by time.
	Ascending
)

// Options of a server; the zero value is a server nobody can write to.
type Options struct {
	// Users by their bearer token.
	Users map[string]User
	// Groups that exist although no user is in them.
	Groups []string
	// Owner is the user name of the pipeline, which owns what Insert makes and
	// whose timeout service closes only its own nodes; "" is production.
	Owner string
	// Seed makes ids and page orders repeatable.
	Seed uint64
	// NoPatch answers PATCH with 405, like deployments before 2026-03-24.
	NoPatch bool
	Order   Order
	// Compress replies for clients that accept gzip.
	Compress bool
	// Dir keeps nodes and events across restarts; "" keeps them in memory only.
	Dir string
}

// User is whom a token belongs to.
type User struct {
	Username    string
	Email       string
	IsSuperuser bool
	Groups      []string
}

// Node is a node document.
type Node = node.Node

// Server is the stand-in. It is an http.Handler.
type Server struct {
	opts  Options
	store *store
	mux   *http.ServeMux

	mu        sync.Mutex
	order     Order
	noPatch   bool
	telemetry []json.RawMessage
	// retried is the sequence number up to which Retries has looked.
	retried int64
}

// New makes a server. The error is about Options.Dir.
func New(o Options) (*Server, error) {
	if o.Owner == "" {
		o.Owner = "production"
	}
	st, err := openStore(o.Dir, o.Seed)
	if err != nil {
		return nil, err
	}
	s := &Server{opts: o, store: st, order: o.Order, noPatch: o.NoPatch, mux: http.NewServeMux()}
	for pattern, h := range map[string]http.HandlerFunc{
		"GET /{$}": func(w http.ResponseWriter, _ *http.Request) {
			reply(w, 200, map[string]string{"message": "KernelCI API"})
		},
		"GET /events":            s.getEvents,
		"GET /node/{id}":         s.getNode,
		"PUT /node/{id}":         s.as(s.putNode),
		"PATCH /node/{id}":       s.as(s.patchNode),
		"POST /node":             s.as(s.postNode),
		"GET /nodes":             s.getNodes,
		"GET /nodes/fast":        s.getNodesFast,
		"GET /count":             s.getCount,
		"PUT /nodes/{id}":        s.as(s.putNodes),
		"PUT /batch/nodeset":     s.as(s.putNodeset),
		"GET /whoami":            s.as(s.whoami),
		"POST /telemetry":        s.as(s.postTelemetry),
		"GET /listen/{id}":       s.as(noSubscription),
		"POST /unsubscribe/{id}": s.as(noSubscription),
		"GET /metrics":           s.metrics,
	} {
		s.mux.HandleFunc(pattern, h)
	}
	return s, nil
}

// SetOrder changes the order of listings.
func (s *Server) SetOrder(o Order) { s.mu.Lock(); s.order = o; s.mu.Unlock() }

// SetPatch turns PATCH on or off.
func (s *Server) SetPatch(on bool) { s.mu.Lock(); s.noPatch = !on; s.mu.Unlock() }

// HoldEvents makes events that are stamped from now on invisible until release,
// which puts them where their stamps belong: among events already read. The
// original does so whenever two writers race (kernelci-wire.md 1.3).
func (s *Server) HoldEvents() (release func()) { return s.store.hold() }

// Telemetry is what was posted, in order.
func (s *Server) Telemetry() []json.RawMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.telemetry)
}

var versionPrefix = regexp.MustCompile(`^/(latest|v[0-9]+)(/.*)?$`)

// ServeHTTP routes a request: /latest, /v0 and no prefix are the same, another
// version is refused in plain text.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if m := versionPrefix.FindStringSubmatch(r.URL.Path); m != nil {
		if m[1] != "latest" && m[1] != "v0" {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, "Unsupported API version: "+m[1])
			return
		}
		u := *r.URL
		u.Path, u.RawPath = m[2], ""
		if u.Path == "" {
			u.Path = "/"
		}
		r2 := *r
		r2.URL = &u
		r = &r2
	}
	h, pattern := s.mux.Handler(r)
	if pattern == "" {
		var rec statusOnly
		h.ServeHTTP(&rec, r)
		if rec.status == http.StatusMethodNotAllowed {
			methodNotAllowed(w)
			return
		}
		detail(w, http.StatusNotFound, "Not Found")
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, MaxBody)
	if s.opts.Compress && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		zw := &zipWriter{ResponseWriter: w}
		defer zw.finish()
		w = zw
	}
	s.mux.ServeHTTP(w, r)
}

func methodNotAllowed(w http.ResponseWriter) {
	detail(w, http.StatusMethodNotAllowed, "Method Not Allowed")
}

// statusOnly learns what the mux would answer.
type statusOnly struct {
	header http.Header
	status int
}

func (s *statusOnly) Header() http.Header {
	if s.header == nil {
		s.header = http.Header{}
	}
	return s.header
}
func (s *statusOnly) Write(b []byte) (int, error) { return len(b), nil }
func (s *statusOnly) WriteHeader(code int)        { s.status = code }

// zipWriter holds a reply until it is whole, then compresses it if it is large
// enough.
type zipWriter struct {
	http.ResponseWriter
	status int
	body   []byte
}

func (z *zipWriter) WriteHeader(code int)        { z.status = code }
func (z *zipWriter) Write(b []byte) (int, error) { z.body = append(z.body, b...); return len(b), nil }

func (z *zipWriter) finish() {
	h := z.Header()
	status := max(z.status, http.StatusOK)
	if len(z.body) < compressFrom {
		z.ResponseWriter.WriteHeader(status)
		_, _ = z.ResponseWriter.Write(z.body)
		return
	}
	h.Set("Content-Encoding", "gzip")
	h.Del("Content-Length")
	z.ResponseWriter.WriteHeader(status)
	gz, err := gzip.NewWriterLevel(z.ResponseWriter, gzip.BestSpeed)
	if err != nil {
		return
	}
	// A client that is gone is not our trouble, here and in replyRaw.
	_, _ = gz.Write(z.body)
	_ = gz.Close()
}

// authed is a handler that knows its caller.
type authed func(w http.ResponseWriter, r *http.Request, u User)

func (s *Server) as(h authed) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPatch && s.patchIsOff() {
			methodNotAllowed(w)
			return
		}
		u, ok := s.caller(r)
		if !ok {
			detail(w, http.StatusUnauthorized, "Unauthorized")
			return
		}
		h(w, r, u)
	}
}

func (s *Server) patchIsOff() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.noPatch }

func (s *Server) caller(r *http.Request) (User, bool) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "bearer") {
		return User{}, false
	}
	u, ok := s.opts.Users[token]
	return u, ok
}

// mayEdit is the rule of kernelci-wire.md 1.6, checked against the stored node.
func mayEdit(u User, n *Node) bool {
	if u.IsSuperuser || u.Username == node.Text(n.Owner) || slices.Contains(u.Groups, "node:edit:any") {
		return true
	}
	runtime := n.DataString("runtime")
	return slices.ContainsFunc(u.Groups, func(g string) bool {
		return slices.Contains(n.UserGroups, g) ||
			runtime != "" && (g == "runtime:"+runtime+":node-editor" || g == "runtime:"+runtime+":node-admin")
	})
}

func reply(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		fail(w)
		return
	}
	replyRaw(w, status, b)
}

func replyRaw(w http.ResponseWriter, status int, b []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

func detail(w http.ResponseWriter, status int, v any) { reply(w, status, map[string]any{"detail": v}) }

// fail answers what the original answers to an exception nobody handled.
func fail(w http.ResponseWriter) {
	reply(w, http.StatusInternalServerError, map[string]string{"message": "Internal server error, check container logs"})
}

// readBody reads the request's body and answers for it when it cannot: 413 is
// the ingress's.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, bool) {
	b, err := io.ReadAll(r.Body)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		fmt.Fprint(w, "<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n</html>\r\n")
		return nil, false
	case err != nil:
		detail(w, http.StatusBadRequest, "There was an error parsing the body")
		return nil, false
	case len(b) == 0:
		detail(w, http.StatusUnprocessableEntity, node.Problems{{Type: "missing", Loc: []any{"body"}, Msg: "Field required"}})
		return nil, false
	}
	if err := json.Unmarshal(b, new(any)); err != nil {
		at := 0
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			at = int(syntax.Offset)
		}
		detail(w, http.StatusUnprocessableEntity, node.Problems{{
			Type: "json_invalid", Loc: []any{"body", at}, Msg: "JSON decode error", Input: map[string]any{},
			Ctx: map[string]any{"error": err.Error()},
		}})
		return nil, false
	}
	return b, true
}
