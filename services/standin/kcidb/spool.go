package kcidb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// state of a submission (kernelci-wire.md 5.2).
type state int

const (
	unknown state = iota
	inProgress
	ready
	archived
	failed
)

// submission in the spool; body is nil once it was ingested.
type submission struct {
	id    string
	state state
	at    time.Time
	body  []byte
	why   string
}

// spool is where submissions wait and end.
type spool struct {
	dir string

	mu   sync.Mutex
	byID map[string]*submission
	wait []*submission // ready ones, oldest first
}

func openSpool(dir string) (*spool, error) {
	s := &spool{dir: dir, byID: map[string]*submission{}}
	if dir == "" {
		return s, nil
	}
	for _, d := range []string{"archive", "failed"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("spool of the stand-in KCIDB: %w", err)
		}
	}
	for sub, st := range map[string]state{"": ready, "archive": archived, "failed": failed} {
		if err := s.scan(sub, st); err != nil {
			return nil, fmt.Errorf("spool of the stand-in KCIDB: %w", err)
		}
	}
	slices.SortFunc(s.wait, func(a, b *submission) int { return a.at.Compare(b.at) })
	return s, nil
}

// scan takes up what an earlier process left in a directory of the spool.
func (s *spool) scan(sub string, st state) error {
	files, err := filepath.Glob(filepath.Join(s.dir, sub, "submission-*.json"))
	if err != nil {
		return err
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			return err
		}
		id := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "submission-"), ".json")
		sb := &submission{id: id, state: st, at: info.ModTime()}
		if st == ready {
			if sb.body, err = os.ReadFile(f); err != nil {
				return err
			}
			s.wait = append(s.wait, sb)
		}
		s.byID[id] = sb
	}
	return nil
}

func (s *spool) path(sub, id string) string {
	return filepath.Join(s.dir, sub, "submission-"+id+".json")
}

// add spools a body.
func (s *spool) add(id string, body []byte) error {
	if s.dir != "" {
		final := s.path("", id)
		if err := os.WriteFile(final+".temp", body, 0o644); err != nil {
			return err
		}
		if err := os.Rename(final+".temp", final); err != nil {
			return err
		}
	}
	sb := &submission{id: id, state: ready, at: time.Now(), body: body}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byID[id] = sb
	s.wait = append(s.wait, sb)
	return nil
}

func (s *spool) state(id string) state {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sb := s.byID[id]; sb != nil {
		return sb.state
	}
	if s.dir != "" {
		if _, err := os.Stat(s.path("", id) + ".temp"); err == nil {
			return inProgress
		}
	}
	return unknown
}

// due takes the submissions that became ready at or before t, oldest first.
func (s *spool) due(t time.Time) []*submission {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for n < len(s.wait) && !s.wait[n].at.After(t) {
		n++
	}
	taken := slices.Clone(s.wait[:n])
	s.wait = s.wait[n:]
	return taken
}

// putBack returns submissions that were taken in vain.
func (s *spool) putBack(sbs []*submission) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wait = append(sbs, s.wait...)
}

// finish moves a submission to where it ends.
func (s *spool) finish(sb *submission, st state, why string) error {
	if s.dir != "" {
		sub := "archive"
		if st == failed {
			sub = "failed"
		}
		err := os.Rename(s.path("", sb.id), s.path(sub, sb.id))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sb.state, sb.body, sb.why = st, nil, why
	return nil
}
