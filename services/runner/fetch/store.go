package fetch

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// stalePart is how long an unfinished download is kept for resuming.
const stalePart = 7 * 24 * time.Hour

type store struct {
	dir string
	max int64
	// evicting keeps two goroutines from counting the same files.
	evicting sync.Mutex
}

// record is what a URL held when it was last asked.
type record struct {
	// URL without its query, for people.
	URL    string `json:"url"`
	SHA256 string `json:"sha256,omitempty"`
	validator
}

// validator is how a server names a version of a file (RFC 9110, 8.8).
type validator struct {
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"last_modified,omitempty"`
}

func newStore(dir string, limit int64) (*store, error) {
	for _, sub := range []string{"objects", "urls", "parts"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	return &store{dir: dir, max: limit}, nil
}

func (s *store) object(sum string) string { return filepath.Join(s.dir, "objects", sum) }

func key(url string) string {
	h := sha256.Sum256([]byte(url))
	return hex.EncodeToString(h[:])
}

func (s *store) recordPath(url string) string { return filepath.Join(s.dir, "urls", key(url)+".json") }
func (s *store) partPath(url string) string   { return filepath.Join(s.dir, "parts", key(url)) }

// open takes an object into use.
func (s *store) open(sum string) (string, func(), bool) {
	path := s.object(sum)
	file, err := os.Open(path)
	if err != nil {
		return "", nil, false
	}
	// Fails only while somebody evicts it.
	if syscall.Flock(int(file.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) != nil || !same(file, path) {
		file.Close()
		return "", nil, false
	}
	now := time.Now()
	// Without the time of use the order of eviction is worse, nothing else.
	_ = os.Chtimes(path, now, now)
	return path, sync.OnceFunc(func() { file.Close() }), true
}

// same says whether path still names the open file.
func same(file *os.File, path string) bool {
	a, err := file.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// lookup finds what url held, if that is still here.
func (s *store) lookup(url string) (record, bool) {
	var r record
	b, err := os.ReadFile(s.recordPath(url))
	if err != nil || json.Unmarshal(b, &r) != nil {
		return record{}, false
	}
	if sum, err := parseSum(r.SHA256); err != nil || sum == "" {
		return record{}, false
	}
	_, err = os.Stat(s.object(r.SHA256))
	return r, err == nil
}

// remember writes what url holds.
func (s *store) remember(url string, r record) error { return writeJSON(s.recordPath(url), r) }

// part opens the unfinished download of url, locked. Where another process has
// it, a private one is opened, which cannot be resumed.
func (s *store) part(url string) (*part, error) {
	path := s.partPath(url)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil && same(file, path) {
		p := &part{file: file}
		p.load()
		return p, nil
	}
	file.Close()
	file, err = os.CreateTemp(filepath.Join(s.dir, "parts"), key(url)+".")
	if err != nil {
		return nil, err
	}
	return &part{file: file, private: true}, nil
}

// place makes a complete part an object.
func (s *store) place(p *part, sum string) error {
	if err := p.file.Sync(); err != nil {
		return err
	}
	if err := p.file.Chmod(0o644); err != nil {
		return err
	}
	if err := os.Rename(p.file.Name(), s.object(sum)); err != nil {
		return err
	}
	_ = os.Remove(p.file.Name() + ".json")
	s.evict(sum)
	return nil
}

// evict removes the objects that were not used for the longest time until the
// cache is within its limit, never one that is in use, and never keep.
func (s *store) evict(keep string) {
	s.evicting.Lock()
	defer s.evicting.Unlock()
	s.dropStaleParts()
	infos := list(filepath.Join(s.dir, "objects"))
	var total int64
	for _, i := range infos {
		total += i.Size()
	}
	slices.SortFunc(infos, func(a, b fs.FileInfo) int { return cmp.Compare(a.ModTime().UnixNano(), b.ModTime().UnixNano()) })
	for _, i := range infos {
		if total <= s.max {
			return
		}
		if i.Name() != keep && removeUnused(s.object(i.Name())) {
			total -= i.Size()
		}
	}
}

func (s *store) dropStaleParts() {
	for _, i := range list(filepath.Join(s.dir, "parts")) {
		if time.Since(i.ModTime()) > stalePart {
			removeUnused(filepath.Join(s.dir, "parts", i.Name()))
		}
	}
}

func list(dir string) []fs.FileInfo {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var infos []fs.FileInfo
	for _, e := range entries {
		if i, err := e.Info(); err == nil && i.Mode().IsRegular() {
			infos = append(infos, i)
		}
	}
	return infos
}

// removeUnused removes a file that nobody has locked.
func removeUnused(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	if syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return false
	}
	return os.Remove(path) == nil
}

// writeJSON replaces path by v, whole or not at all.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".")
	if err != nil {
		return err
	}
	// After the rename there is nothing to remove.
	defer func() { _ = os.Remove(tmp.Name()) }()
	if _, err := tmp.Write(b); err != nil {
		tmp.Close()
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

func sumOf(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	h := sha256.New()
	if _, err := io.Copy(h, file); err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
