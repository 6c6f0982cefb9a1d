package maestro_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pullab/pullab/services/standin/maestro"
)

// No query string may break the server, nor get an answer that is not JSON.
func FuzzQuery(f *testing.F) {
	for _, q := range []string{
		"state=available&kind=job&limit=1000&recursive=true&from=2026-08-20T10:00:00", "limit=-1&offset=9223372036854775807",
		"path=(&ids=,", "created__gt=2026&name__re=[", "a__b__c=1&data.data.runtime=TRUE", "%zz&;=&from=%00",
	} {
		f.Add(q)
	}
	s, err := maestro.New(maestro.Options{Seed: 1})
	if err != nil {
		f.Fatal(err)
	}
	n := s.NewNode("job", "x")
	n.Path = []string{"x"}
	if _, err := s.Insert(n); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, q string) {
		for _, path := range []string{"/latest/events", "/nodes", "/nodes/fast", "/count"} {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.URL.RawQuery = q
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			if ct := w.Header().Get("Content-Type"); ct != "application/json" {
				t.Errorf("%s?%s: %d %s", path, q, w.Code, ct)
			}
		}
	})
}

// No body may break the server or be stored as something that it then cannot
// read.
func FuzzPut(f *testing.F) {
	s, err := maestro.New(maestro.Options{Seed: 1, Users: map[string]maestro.User{"t": {IsSuperuser: true}}})
	if err != nil {
		f.Fatal(err)
	}
	n := s.NewNode("job", "x")
	n.Path = []string{"x"}
	n, err = s.Insert(n)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("PUT", "/node/", `{"name":"x","path":["x"],"kind":"job","artifacts":{"a":"https://h"},"data":{"error_code":"Bug"}}`)
	f.Add("PATCH", "/node/", `{"holdoff":null,"data":null,"artifacts":null,"debug":null}`)
	f.Add("PUT", "/nodes/", `{"node":{"name":"x","path":[],"kind":"test"},"child_nodes":[]}`)
	f.Fuzz(func(t *testing.T, method, path, body string) {
		if method != http.MethodPut && method != http.MethodPatch || path != "/node/" && path != "/nodes/" {
			return
		}
		r := httptest.NewRequest(method, path+n.ID, strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer t")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Errorf("%d %s for %q", w.Code, w.Body, body)
		}
	})
}
