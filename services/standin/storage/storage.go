// Package storage is a development stand-in for KernelCI's artifact storage: it
// serves files with validators and ranges, and takes uploads as kernelci-storage
// does (kernelci-wire.md 6.3; status codes and empty bodies as in
// kernelci-storage's src/main.rs).
package storage

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// MaxUpload is the largest upload, in bytes.
const MaxUpload = 1 << 30

// Options of a storage; the zero value serves nothing and takes no upload.
type Options struct {
	// Tokens that may upload, with the names of their owners.
	Tokens map[string]string
	// Dir keeps uploads; "" keeps them in memory.
	Dir string
}

// Server is the stand-in. It is an http.Handler.
type Server struct {
	opts Options

	mu    sync.RWMutex
	files map[string]file
}

// file is bytes, or a path on disk.
type file struct {
	body     []byte
	disk     string
	etag     string
	modified time.Time
}

// New makes a storage. The error is about Options.Dir.
func New(o Options) (*Server, error) {
	s := &Server{opts: o, files: map[string]file{}}
	if o.Dir == "" {
		return s, nil
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("directory of the stand-in storage: %w", err)
	}
	return s, nil
}

// clean makes a rooted path without dots of what a client gave.
func clean(p string) string { return path.Clean("/" + p) }

// AddBytes serves body at p. In a Dir it is written there.
func (s *Server) AddBytes(p string, body []byte) error {
	p = clean(p)
	if s.opts.Dir != "" {
		name := filepath.Join(s.opts.Dir, filepath.FromSlash(p))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name+".part", body, 0o644); err != nil {
			return err
		}
		return os.Rename(name+".part", name)
	}
	sum := sha256.Sum256(body)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[p] = file{body: body, etag: `"` + hex.EncodeToString(sum[:16]) + `"`, modified: time.Now()}
	return nil
}

// AddFile serves the file name, as it is at the time of each request, at p.
func (s *Server) AddFile(p, name string) error {
	abs, err := filepath.Abs(name)
	if err != nil {
		return err
	}
	if _, err := os.Stat(abs); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[clean(p)] = file{disk: abs}
	return nil
}

// Read gives what is served at p; an uploaded log, for example.
func (s *Server) Read(p string) ([]byte, error) {
	f, ok := s.find(clean(p))
	if !ok {
		return nil, fmt.Errorf("%s: %w", p, os.ErrNotExist)
	}
	if f.disk != "" {
		return os.ReadFile(f.disk)
	}
	return f.body, nil
}

func (s *Server) find(p string) (file, bool) {
	s.mu.RLock()
	f, ok := s.files[p]
	s.mu.RUnlock()
	if ok || s.opts.Dir == "" {
		return f, ok
	}
	name := filepath.Join(s.opts.Dir, filepath.FromSlash(p))
	if st, err := os.Stat(name); err != nil || !st.Mode().IsRegular() {
		return file{}, false
	}
	return file{disk: name}, true
}

// ServeHTTP answers a download, an upload or a question about a token.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/v1/file" && r.Method == http.MethodPost:
		s.upload(w, r)
	case r.URL.Path == "/v1/checkauth" && r.Method == http.MethodGet:
		owner, ok := s.owner(r)
		if !ok {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, "Unauthorized")
			return
		}
		fmt.Fprint(w, "Authorized: "+owner)
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		s.download(w, r)
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
}

func (s *Server) owner(r *http.Request) (string, bool) {
	words := strings.Fields(r.Header.Get("Authorization"))
	if len(words) != 2 {
		return "", false
	}
	owner, ok := s.opts.Tokens[words[1]]
	return owner, ok
}

func (s *Server) download(w http.ResponseWriter, r *http.Request) {
	p := clean(r.URL.Path)
	f, ok := s.find(p)
	if !ok {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, "Not Found: "+strings.TrimPrefix(p, "/"))
		return
	}
	w.Header().Set("Content-Type", contentType(p))
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": path.Base(p)}))
	if f.disk == "" {
		w.Header().Set("ETag", f.etag)
		http.ServeContent(w, r, "", f.modified, bytes.NewReader(f.body))
		return
	}
	h, err := os.Open(f.disk)
	if err != nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	defer h.Close()
	st, err := h.Stat()
	if err != nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("ETag", fmt.Sprintf(`"%x-%x"`, st.ModTime().UnixNano(), st.Size()))
	http.ServeContent(w, r, "", st.ModTime(), h)
}

// contentType is kernelci-storage's guess by extension.
func contentType(p string) string {
	switch path.Ext(p) {
	case ".txt", ".log":
		return "text/plain"
	case ".gz":
		return "application/gzip"
	case ".tar":
		return "application/x-tar"
	case ".zip":
		return "application/zip"
	case ".tgz":
		return "application/x-gzip"
	case ".xz":
		return "application/x-xz"
	case ".json":
		return "application/json"
	}
	return "application/octet-stream"
}

// upload stores file0 at <path>/<its name>.
func (s *Server) upload(w http.ResponseWriter, r *http.Request) {
	if _, ok := s.owner(r); !ok {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, MaxUpload)
	dir, name, body, err := readForm(r)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	case err != nil || name == "":
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if err := s.AddBytes(strings.TrimSuffix(dir, "/")+"/"+name, body); err != nil {
		w.WriteHeader(http.StatusConflict)
	}
}

func readForm(r *http.Request) (dir, name string, body []byte, err error) {
	form, err := r.MultipartReader()
	if err != nil {
		return "", "", nil, err
	}
	for {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			return dir, name, body, nil
		}
		if err != nil {
			return "", "", nil, err
		}
		b, err := io.ReadAll(part)
		if err != nil {
			return "", "", nil, err
		}
		switch part.FormName() {
		case "path":
			dir = string(b)
		case "file0":
			name, body = part.FileName(), b
		}
	}
}
