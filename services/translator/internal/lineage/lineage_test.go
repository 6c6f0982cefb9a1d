package lineage

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/kernelci"
)

// api is a map of nodes that counts questions.
type api struct {
	nodes map[string]*kernelci.Node
	err   map[string]error
	asked int
}

func (a *api) Node(_ context.Context, id string) (*kernelci.Node, error) {
	a.asked++
	if err := a.err[id]; err != nil {
		return nil, err
	}
	if n := a.nodes[id]; n != nil {
		return n, nil
	}
	return nil, kernelci.ErrNoNode
}

func chainOf(kinds ...string) *api {
	a := &api{nodes: map[string]*kernelci.Node{}, err: map[string]error{}}
	for i, k := range kinds {
		n := &kernelci.Node{ID: fmt.Sprint(i), Kind: k, Doc: map[string]any{"big": true}}
		if i+1 < len(kinds) {
			n.Parent = fmt.Sprint(i + 1)
		}
		a.nodes[n.ID] = n
	}
	return a
}

func TestWalk(t *testing.T) {
	t.Parallel()
	jobs := func(n int) []string { return strings.Split(strings.Repeat("job,", n)+"kbuild,checkout", ",") }
	for name, c := range map[string]struct {
		api              *api
		kbuild, checkout string
		broken           string
	}{
		"usual":            {chainOf("job", "kbuild", "checkout"), "1", "2", ""},
		"nested":           {chainOf("job", "job", "job", "kbuild", "checkout"), "3", "4", ""},
		"two kbuilds":      {chainOf("job", "kbuild", "kbuild", "checkout"), "1", "3", ""},
		"no kbuild":        {chainOf("job", "checkout"), "", "1", ""},
		"no parent":        {chainOf("job"), "", "", "node 0 (job) has no parent"},
		"no checkout":      {chainOf("job", "kbuild"), "1", "", "node 1 (kbuild) has no parent"},
		"kbuild at 8 hops": {chainOf(jobs(8)...), "8", "", "no checkout within 8 hops"},
		"kbuild at 9 hops": {chainOf(jobs(9)...), "", "", "no checkout within 8 hops"},
		"vanished":         {&api{nodes: map[string]*kernelci.Node{"0": {ID: "0", Parent: "x"}}}, "", "", "no such node"},
		"circle":           {&api{nodes: map[string]*kernelci.Node{"0": {ID: "0", Parent: "0"}}}, "", "", "no checkout within 8 hops"},
		"protected": {&api{
			nodes: map[string]*kernelci.Node{"0": {ID: "0", Parent: "1"}}, err: map[string]error{"1": &kernelci.APIError{Status: http.StatusUnauthorized}},
		}, "", "", "node 1, parent of 0"},
	} {
		got, err := NewWalker(c.api, 10, time.Minute).Walk(t.Context(), c.api.nodes["0"])
		if err != nil || id(got.Kbuild) != c.kbuild || id(got.Checkout) != c.checkout || got.Job.ID != "0" {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
		if (got.Broken == nil) != (c.broken == "") || got.Broken != nil && !strings.Contains(got.Broken.Error(), c.broken) {
			t.Errorf("%s: broken %v, want %q", name, got.Broken, c.broken)
		}
	}
}

func id(n *kernelci.Node) string {
	if n == nil {
		return ""
	}
	return n.ID
}

// What may pass is an error, and is asked again next time.
func TestWalkTemporary(t *testing.T) {
	t.Parallel()
	a := chainOf("job", "kbuild", "checkout")
	down := errors.New("connection refused")
	a.err["2"] = down
	w := NewWalker(a, 10, time.Minute)
	if _, err := w.Walk(t.Context(), a.nodes["0"]); !errors.Is(err, down) {
		t.Errorf("got %v", err)
	}
	delete(a.err, "2")
	c, err := w.Walk(t.Context(), a.nodes["0"])
	if err != nil || id(c.Checkout) != "2" {
		t.Errorf("got %+v, %v", c, err)
	}
	if a.asked != 3 {
		t.Errorf("asked %d times, want 3: the kbuild once, the checkout twice", a.asked)
	}
	if c.Kbuild.Doc != nil {
		t.Error("the cache keeps whole documents")
	}
}

func TestCacheBounds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCache(3, time.Minute)
		for i := range 5 {
			c.put(fmt.Sprint(i), &kernelci.Node{})
			c.put(fmt.Sprint(i), &kernelci.Node{})
		}
		if len(c.nodes) != 3 || len(c.order) != 3 || c.get("1") != nil || c.get("2") == nil {
			t.Errorf("not the newest three: %v", c.order)
		}
		wait(t, time.Minute-1)
		if c.get("4") == nil {
			t.Error("gone too early")
		}
		wait(t, 1)
		if c.get("4") != nil || len(c.nodes) != 0 {
			t.Error("kept too long")
		}
	})
}

func wait(t *testing.T, d time.Duration) {
	t.Helper()
	if err := backoff.Sleep(t.Context(), d); err != nil {
		t.Fatal(err)
	}
}
