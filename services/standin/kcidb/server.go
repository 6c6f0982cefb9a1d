package kcidb

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/pullab/pullab/services/standin/internal/jwt"
)

// Limits of the original.
const (
	// MaxBody is the limit of POST /submit.
	MaxBody = 512 << 20
	// ScanEvery is how often the ingester looks at the spool.
	ScanEvery = 5 * time.Second
	// idLength of a submission id, letters and digits.
	idLength = 32
	// maxDepth is serde_json's recursion limit.
	maxDepth = 128
)

// Options of a server.
type Options struct {
	// Secret of the tokens; empty turns authentication off, as in the original.
	Secret string
	// UnifiedSecret is tried second; may be empty.
	UnifiedSecret string
	// Dir is the spool directory; "" keeps the spool in memory.
	Dir string
	// Delay is how long a submission stays ready before the ingester takes it.
	Delay time.Duration
}

// Server is the stand-in. It is an http.Handler.
type Server struct {
	opts  Options
	mux   *http.ServeMux
	spool *spool
	rows  *rows

	submissions, refused, bytes atomic.Int64

	mu sync.Mutex
	// batchFailures is how many of the next groups the database refuses.
	batchFailures int
}

// New makes a server. The error is about Options.Dir.
func New(o Options) (*Server, error) {
	sp, err := openSpool(o.Dir)
	if err != nil {
		return nil, err
	}
	s := &Server{opts: o, mux: http.NewServeMux(), spool: sp, rows: newRows()}
	if err := s.reload(); err != nil {
		return nil, err
	}
	s.mux.HandleFunc("POST /submit", s.submit)
	s.mux.HandleFunc("GET /status", s.status)
	s.mux.HandleFunc("GET /authtest", s.authtest)
	s.mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "OK") })
	s.mux.HandleFunc("GET /metrics", s.metrics)
	s.mux.HandleFunc("GET /{$}", home)
	s.mux.HandleFunc("GET /rows", s.getRows)
	return s, nil
}

// Mint makes a token that a server with the secret accepts until expires.
func Mint(secret, origin string, expires time.Time) string {
	return jwt.Sign(secret, map[string]any{"origin": origin, "gendate": time.Now().UTC().Format("2006-01-02"), "exp": expires.Unix()})
}

// MintUnified makes a token as the pipeline's jwt_generator does, with an aud
// claim, which kcidb-restd-rs refuses (kernelci-wire.md 5.1).
func MintUnified(secret, origin string, expires time.Time) string {
	return jwt.Sign(secret, map[string]any{"origin": origin, "aud": []string{"fastapi-users:auth"}, "exp": expires.Unix()})
}

// ServeHTTP answers like axum: an unknown route is an empty 404.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h, pattern := s.mux.Handler(r)
	if pattern == "" {
		h.ServeHTTP(headOnly{w}, r)
		return
	}
	s.mux.ServeHTTP(w, r)
}

// headOnly keeps status and Allow of the mux's refusals and drops their text.
type headOnly struct{ http.ResponseWriter }

func (h headOnly) Write(b []byte) (int, error) { return len(b), nil }

func (h headOnly) WriteHeader(code int) {
	h.Header().Del("Content-Type")
	h.ResponseWriter.WriteHeader(code)
}

func text(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprint(w, body)
}

// answer is the JSON that the original sends as text/plain.
func answer(w http.ResponseWriter, code int, id, status, message string) {
	b, err := json.Marshal(struct {
		ID      string `json:"id"`
		Status  string `json:"status"`
		Message string `json:"message"`
	}{id, status, message})
	if err != nil {
		b = []byte(`{}`)
	}
	text(w, code, string(b))
}

func refuse(w http.ResponseWriter, code int, message string) { answer(w, code, "0", "error", message) }

// authorized checks the token; it answers for itself. The scheme word is not
// looked at.
func (s *Server) authorized(w http.ResponseWriter, r *http.Request) bool {
	if s.opts.Secret == "" {
		return true
	}
	header := r.Header.Values("Authorization")
	if len(header) == 0 {
		refuse(w, http.StatusUnauthorized, "JWT is required")
		return false
	}
	_, rest, ok := strings.Cut(header[0], " ")
	if !ok {
		refuse(w, http.StatusUnauthorized, "Missing or invalid JWT (Bearer)")
		return false
	}
	token, _, _ := strings.Cut(rest, " ")
	if _, err := jwt.Verify(token, time.Now(), s.opts.Secret, s.opts.UnifiedSecret); err != nil {
		refuse(w, http.StatusUnauthorized, err.Error())
		return false
	}
	return true
}

func (s *Server) submit(w http.ResponseWriter, r *http.Request) {
	if !s.authorized(w, r) {
		s.refused.Add(1)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		text(w, http.StatusRequestEntityTooLarge, "Failed to buffer the request body: length limit exceeded")
		return
	case err != nil:
		text(w, http.StatusBadRequest, "Failed to buffer the request body: "+err.Error())
		return
	}
	if complaint := serdeError(body); complaint != "" {
		s.refused.Add(1)
		refuse(w, http.StatusBadRequest, complaint)
		return
	}
	id := newID()
	if err := s.spool.add(id, body); err != nil {
		refuse(w, http.StatusInternalServerError, "Internal server error")
		return
	}
	s.submissions.Add(1)
	s.bytes.Add(int64(len(body)))
	answer(w, http.StatusOK, id, "ok", fmt.Sprintf("Received submission %s with size %d bytes", id, len(body)))
}

func newID() string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	b := make([]byte, idLength)
	for i := range b {
		b[i] = letters[rand.IntN(len(letters))]
	}
	return string(b)
}

// serdeError tells in serde_json's words why body is not JSON; empty if it is.
// The place is exact, the words are those of the commonest cases.
func serdeError(body []byte) string {
	if !utf8.Valid(body) {
		return "invalid utf-8 sequence"
	}
	at := func(offset int) string {
		before := body[:min(max(offset, 0), len(body))]
		line := 1 + bytes.Count(before, []byte{'\n'})
		return fmt.Sprintf(" at line %d column %d", line, len(before)-1-bytes.LastIndexByte(before, '\n'))
	}
	if i := tooDeep(body); i >= 0 {
		return "recursion limit exceeded" + at(i+1)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	var v json.RawMessage
	err := d.Decode(&v)
	var syntax *json.SyntaxError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "EOF while parsing a value" + at(len(body))
	case errors.As(err, &syntax):
		return "expected value" + at(int(syntax.Offset))
	case err != nil:
		return "expected value" + at(0)
	}
	rest := body[d.InputOffset():]
	if skipped := len(rest) - len(bytes.TrimLeft(rest, " \t\r\n")); skipped < len(rest) {
		return "trailing characters" + at(int(d.InputOffset())+skipped+1)
	}
	return ""
}

// tooDeep is where body nests deeper than maxDepth, or -1.
func tooDeep(body []byte) int {
	depth, quoted := 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return i
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return -1
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	if !r.URL.Query().Has("id") {
		text(w, http.StatusBadRequest, "Failed to deserialize query string: missing field `id`")
		return
	}
	if !s.authorized(w, r) {
		return
	}
	id := r.URL.Query().Get("id")
	if id == "" {
		refuse(w, http.StatusBadRequest, "Empty id")
		return
	}
	if strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") != "" {
		refuse(w, http.StatusBadRequest, "Invalid id")
		return
	}
	s.Ingest()
	switch s.spool.state(id) {
	case inProgress:
		answer(w, http.StatusOK, id, "inprogress", "File still in progress")
	case ready:
		answer(w, http.StatusOK, id, "ready", "File waiting for processing")
	case archived:
		answer(w, http.StatusOK, id, "processed", "File archived")
	case failed:
		answer(w, http.StatusOK, id, "failed", "File failed to pass validation")
	default:
		answer(w, http.StatusNotFound, id, "notfound", "File not found")
	}
}

func (s *Server) authtest(w http.ResponseWriter, r *http.Request) {
	if s.authorized(w, r) {
		answer(w, http.StatusOK, "0", "ok", "Authentication successful")
	}
}

func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	text(w, http.StatusOK, fmt.Sprintf("# TYPE kcidb_submissions_total counter\nkcidb_submissions_total %d\n"+
		"# TYPE kcidb_errors_total counter\nkcidb_errors_total %d\n# TYPE kcidb_submission_bytes_total counter\nkcidb_submission_bytes_total %d\n",
		s.submissions.Load(), s.refused.Load(), s.bytes.Load()))
}

func home(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprint(w, "<html><body><h1>KCIDB submissions (pullab's stand-in)</h1><p><a href=\"/rows\">/rows</a></p></body></html>\n")
}

// getRows is not in the original: it shows what the database holds.
func (s *Server) getRows(w http.ResponseWriter, r *http.Request) {
	found := s.Rows()
	if node := r.URL.Query().Get("node"); node != "" {
		found = s.NodeRows(node)
	}
	out := struct {
		Note string `json:"_note"`
		Rows []Row  `json:"rows"`
	}{"an extra of pullab's stand-in; kcidb-restd-rs has no such route", found}
	b, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		text(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, "%s\n", b)
}

// Dir is the spool directory, "" when it is in memory.
func (s *Server) Dir() string { return s.opts.Dir }
