// Package inproc is an http.RoundTripper that calls handlers: no sockets, no
// goroutine that outlives the request, and therefore usable in a
// testing/synctest bubble.
package inproc

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
)

// Transport maps a request's host (URL.Host) to its handler.
type Transport map[string]http.Handler

// RoundTrip runs the handler until it returns or the request's context ends. A
// handler that panics with http.ErrAbortHandler drops the connection: before
// the first byte the client gets an error, after it a body that ends in
// io.ErrUnexpectedEOF.
func (t Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	h, ok := t[req.URL.Host]
	if !ok {
		closeBody(req)
		return nil, fmt.Errorf("dial tcp: lookup %s: no such host", req.URL.Host)
	}
	in := req.Clone(req.Context())
	in.RequestURI, in.RemoteAddr, in.Host = req.URL.RequestURI(), "192.0.2.1:1234", req.URL.Host
	if in.Body == nil {
		in.Body = http.NoBody
	}
	rec := &recorder{header: http.Header{}}
	done := make(chan any, 1)
	go func() {
		defer func() { done <- recover(); closeBody(req) }()
		h.ServeHTTP(rec, in)
	}()
	select {
	case <-req.Context().Done():
		return nil, req.Context().Err()
	case p := <-done:
		if p != nil && p != http.ErrAbortHandler { //nolint:errorlint // recover gives the value itself
			panic(p)
		}
		return rec.response(req, p != nil)
	}
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}

type recorder struct {
	header, sent http.Header
	status       int
	body         bytes.Buffer
}

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(code int) {
	if r.status == 0 && code >= 200 {
		r.status, r.sent = code, r.header.Clone()
	}
}

func (r *recorder) Write(b []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	return r.body.Write(b)
}

func (r *recorder) response(req *http.Request, dropped bool) (*http.Response, error) {
	if dropped && r.status == 0 {
		return nil, io.EOF
	}
	r.WriteHeader(http.StatusOK)
	res := &http.Response{
		Status: strconv.Itoa(r.status) + " " + http.StatusText(r.status), StatusCode: r.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: r.sent, Request: req, ContentLength: int64(r.body.Len()),
	}
	if n, err := strconv.ParseInt(r.sent.Get("Content-Length"), 10, 64); err == nil {
		if req.Method != http.MethodHead && n > res.ContentLength {
			dropped = true
		}
		res.ContentLength = n
	} else if dropped {
		res.ContentLength = -1
	}
	var body io.Reader = bytes.NewReader(r.body.Bytes())
	if dropped {
		body = io.MultiReader(body, broken{})
	}
	if req.Method == http.MethodHead {
		body = http.NoBody
	}
	res.Body = io.NopCloser(body)
	return res, nil
}

// broken is where a dropped connection's body ends.
type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
