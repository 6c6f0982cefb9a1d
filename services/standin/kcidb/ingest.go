package kcidb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// The ingester's constants (kernelci-wire.md 5.3, 5.4).
const (
	// groupSize is how many files are flushed in one transaction.
	groupSize = 100
	// maxColumn is the width of pending_test.origin and .platform.
	maxColumn = 100
)

// parsed is a submission that passed the schema.
type parsed struct {
	sb   *submission
	doc  map[string]any
	size int
}

// Run ingests until ctx ends, as the original's daemon does.
func (s *Server) Run(ctx context.Context) {
	t := time.NewTicker(ScanEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			s.Ingest()
		}
	}
}

// FailBatches makes the database refuse the next n groups of files: all of a
// group's files then fail, whosever fault it was.
func (s *Server) FailBatches(n int) { s.mu.Lock(); s.batchFailures = n; s.mu.Unlock() }

// Ingest takes every submission that is due, in groups.
func (s *Server) Ingest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	due := s.spool.due(time.Now().Add(-s.opts.Delay))
	for group := range slices.Chunk(due, groupSize) {
		s.flush(group)
	}
}

// flush is one transaction. Files that break the schema fail alone; an error of
// the database fails all the others.
func (s *Server) flush(group []*submission) {
	var good []parsed
	total := 0
	for _, sb := range group {
		doc, err := Validate(sb.body)
		if err != nil {
			s.finish(sb, failed, err.Error())
			continue
		}
		p := parsed{sb, doc, countRows(doc)}
		total += p.size
		good = append(good, p)
	}
	if total == 0 {
		// Nothing to insert, so the original never gets round to moving them.
		var back []*submission
		for _, p := range good {
			back = append(back, p.sb)
		}
		s.spool.putBack(back)
		return
	}
	var refusal error
	if s.batchFailures > 0 {
		s.batchFailures--
		refusal = errors.New("the database refused the whole batch")
	}
	for _, p := range good {
		refusal = errors.Join(refusal, databaseRefuses(p.doc))
	}
	for _, p := range good {
		if refusal != nil {
			s.finish(p.sb, failed, refusal.Error())
			continue
		}
		s.rows.upsert(p.doc)
		s.finish(p.sb, archived, "")
	}
}

// finish moves a submission; one that cannot be moved waits for the next round,
// which is what a full disk does to the original.
func (s *Server) finish(sb *submission, st state, why string) {
	if err := s.spool.finish(sb, st, why); err != nil {
		s.spool.putBack([]*submission{sb})
	}
}

// Failure tells why a submission failed, which the original never does.
func (s *Server) Failure(id string) string {
	s.spool.mu.Lock()
	defer s.spool.mu.Unlock()
	if sb := s.spool.byID[id]; sb != nil {
		return sb.why
	}
	return ""
}

var kinds = []string{"checkouts", "builds", "tests", "issues", "incidents"}

func countRows(doc map[string]any) int {
	n := 0
	for _, kind := range kinds {
		l, _ := doc[kind].([]any)
		n += len(l)
	}
	return n
}

// databaseRefuses finds what passes the schema and not PostgreSQL: NUL
// characters, and columns that are too narrow.
func databaseRefuses(doc map[string]any) error {
	if where := findNUL(doc, ""); where != "" {
		return fmt.Errorf("unsupported Unicode escape sequence in %s: \\u0000 cannot be converted to text", where)
	}
	tests, _ := doc["tests"].([]any)
	for _, t := range tests {
		m, _ := t.(map[string]any)
		env, _ := m["environment"].(map[string]any)
		misc, _ := env["misc"].(map[string]any)
		for _, v := range []any{m["origin"], misc["platform"]} {
			if text, _ := v.(string); utf8.RuneCountInString(text) > maxColumn {
				return fmt.Errorf("value too long for type character varying(%d): %.40s", maxColumn, text)
			}
		}
	}
	return nil
}

func findNUL(v any, at string) string {
	switch v := v.(type) {
	case string:
		if strings.Contains(v, "\x00") {
			return at
		}
	case []any:
		for i, e := range v {
			if where := findNUL(e, fmt.Sprintf("%s/%d", at, i)); where != "" {
				return where
			}
		}
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			if strings.Contains(k, "\x00") {
				return at
			}
			if where := findNUL(v[k], at+"/"+k); where != "" {
				return where
			}
		}
	}
	return ""
}

// reload fills the rows from the archive that an earlier process left.
func (s *Server) reload() error {
	if s.opts.Dir == "" {
		return nil
	}
	files, err := filepath.Glob(filepath.Join(s.opts.Dir, "archive", "submission-*.json"))
	if err != nil {
		return err
	}
	age := map[string]time.Time{}
	for _, f := range files {
		if info, err := os.Stat(f); err == nil {
			age[f] = info.ModTime()
		}
	}
	slices.SortFunc(files, func(a, b string) int { return age[a].Compare(age[b]) })
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		var doc map[string]any
		if err := json.Unmarshal(b, &doc); err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		s.rows.upsert(doc)
	}
	return nil
}
