package kcidb

import (
	"maps"
	"slices"
	"strings"
	"sync"
)

// Row of the database.
type Row struct {
	// Doc is the row, numbers as float64. Kind is checkouts, builds, tests, issues or incidents.
	Kind string         `json:"kind"`
	Doc  map[string]any `json:"row"`
}

// Text is a text field of the row, empty when there is none.
func (r Row) Text(key string) string { s, _ := r.Doc[key].(string); return s }

// rows is the database: the first value of each column wins.
type rows struct {
	mu    sync.Mutex
	byKey map[string]int
	all   []Row
	// byNode finds the test rows of a job: ids are <origin>:<node>[.<path>].
	byNode map[string][]int
}

func newRows() *rows { return &rows{byKey: map[string]int{}, byNode: map[string][]int{}} }

func (r *rows) upsert(doc map[string]any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, kind := range kinds {
		list, _ := doc[kind].([]any)
		for _, v := range list {
			if m, ok := v.(map[string]any); ok {
				r.upsertRow(kind, m)
			}
		}
	}
}

func (r *rows) upsertRow(kind string, m map[string]any) {
	id, _ := m["id"].(string)
	m = withLab(kind, m)
	key := kind + " " + id
	i, known := r.byKey[key]
	if !known {
		i = len(r.all)
		r.byKey[key] = i
		r.all = append(r.all, Row{kind, map[string]any{}})
		if _, local, ok := strings.Cut(id, ":"); ok && kind == "tests" {
			node, _, _ := strings.Cut(local, ".")
			r.byNode[node] = append(r.byNode[node], i)
		}
	}
	r.all[i].Doc = coalesce(r.all[i].Doc, m)
}

// withLab adds what the ingester adds: the lab of a row that names none is its
// origin (kernelci-wire.md 5.4, step 4).
func withLab(kind string, m map[string]any) map[string]any {
	key := map[string]string{"tests": "runtime", "builds": "lab"}[kind]
	if key == "" {
		return m
	}
	m = maps.Clone(m)
	misc, _ := m["misc"].(map[string]any)
	misc = maps.Clone(misc)
	if misc == nil {
		misc = map[string]any{}
	}
	lab, _ := misc[key].(string)
	switch {
	case lab == "":
		misc[key] = m["origin"]
	case lab == "shell" || strings.HasPrefix(lab, "k8s"):
		misc["automatic_lab"] = lab
		misc[key] = m["origin"]
	}
	m["misc"] = misc
	return m
}

// coalesce is COALESCE(old, new) per column; environment and number are several
// columns each, misc is one.
func coalesce(old, m map[string]any) map[string]any {
	out := maps.Clone(old)
	for k, v := range m {
		have, ok := out[k]
		switch {
		case !ok:
			out[k] = v
		case k == "environment" || k == "number":
			a, ok1 := have.(map[string]any)
			b, ok2 := v.(map[string]any)
			if ok1 && ok2 {
				out[k] = coalesce(a, b)
			}
		}
	}
	return out
}

// Rows is everything in the database, in the order it came.
func (s *Server) Rows() []Row {
	s.Ingest()
	s.rows.mu.Lock()
	defer s.rows.mu.Unlock()
	return slices.Clone(s.rows.all)
}

// NodeRows are the test rows of one job: those with the id <origin>:<node> or
// <origin>:<node>.<path>.
func (s *Server) NodeRows(node string) []Row {
	s.Ingest()
	s.rows.mu.Lock()
	defer s.rows.mu.Unlock()
	var out []Row
	for _, i := range s.rows.byNode[node] {
		out = append(out, s.rows.all[i])
	}
	return out
}
