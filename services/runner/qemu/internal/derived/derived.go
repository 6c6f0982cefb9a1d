// Package derived keeps files that were made from other files and take long to
// make: a module tree as cpio, a root file system as a disk image. It is shared
// by processes.
package derived

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/pullab/pullab/pkg/backoff"
)

// Cache is a directory of such files.
type Cache struct {
	dir string
	max int64
}

// New makes the directory. max is how many bytes of unused files stay.
func New(dir string, limit int64) (*Cache, error) {
	return &Cache{dir: dir, max: limit}, os.MkdirAll(dir, 0o755)
}

// objectName is the name that package fetch gives to content: its SHA-256.
var objectName = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Identity names a file's content: a fetched file by its name, which is its
// SHA-256, another one by where it lies and what the file system says of it.
func Identity(path string) (string, error) {
	if base := filepath.Base(path); objectName.MatchString(base) {
		return base, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	inode := uint64(0)
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		inode = st.Ino
	}
	return fmt.Sprintf("%s %d %d %d", path, info.Size(), info.ModTime().UnixNano(), inode), nil
}

// Get gives the file made by build for key, and in meta, a pointer, what build
// said about it. release must be called once when the file is no longer
// needed under its path. One process at a time builds one key.
func Get[T any](ctx context.Context, c *Cache, key string, build func(*os.File) (T, error)) (path string, meta T, release func(), err error) {
	h := sha256.Sum256([]byte(key))
	path = filepath.Join(c.dir, hex.EncodeToString(h[:]))
	lock, err := acquire(ctx, path+".lock")
	if err != nil {
		return "", meta, nil, err
	}
	if meta, err = load[T](path); err != nil {
		if meta, err = create(path, build); err != nil {
			lock.Close()
			return "", meta, nil, err
		}
		c.evict()
	}
	now := time.Now()
	// Without the time of use the order of eviction is worse, nothing else.
	_ = os.Chtimes(path, now, now)
	return path, meta, sync.OnceFunc(func() { lock.Close() }), nil
}

// acquire locks path for us alone.
func acquire(ctx context.Context, path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, err
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		if err := backoff.Sleep(ctx, 50*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// load finds a file that is complete: its meta is written last.
func load[T any](path string) (meta T, err error) {
	b, err := os.ReadFile(path + ".json")
	if err != nil {
		return meta, err
	}
	if err := json.Unmarshal(b, &meta); err != nil {
		return meta, err
	}
	_, err = os.Stat(path)
	return meta, err
}

func create[T any](path string, build func(*os.File) (T, error)) (meta T, err error) {
	tmp, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return meta, err
	}
	// After the rename there is nothing to remove.
	defer func() { _ = os.Remove(path + ".new") }()
	defer tmp.Close()
	if meta, err = build(tmp); err != nil {
		return meta, err
	}
	b, err := json.Marshal(meta)
	if err != nil {
		return meta, err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return meta, err
	}
	return meta, os.WriteFile(path+".json", b, 0o644)
}

// evict removes files that nobody holds, the longest unused first.
func (c *Cache) evict() {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return
	}
	var files []os.FileInfo
	var total int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil && objectName.MatchString(e.Name()) {
			files = append(files, info)
			total += used(info)
		}
	}
	slices.SortFunc(files, func(a, b os.FileInfo) int { return cmp.Compare(a.ModTime().UnixNano(), b.ModTime().UnixNano()) })
	for _, info := range files {
		if total <= c.max {
			return
		}
		if c.remove(filepath.Join(c.dir, info.Name())) {
			total -= used(info)
		}
	}
}

// used is what a file takes of the disk; an image has holes.
func used(info os.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

// remove takes one away unless it is locked. The lock file stays: it is empty,
// and removing it would let two processes hold "the" lock.
func (c *Cache) remove(path string) bool {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return false
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return false
	}
	_ = os.Remove(path + ".json")
	return os.Remove(path) == nil
}
