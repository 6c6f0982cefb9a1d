// Package ledger keeps a service's own records in a JetStream KV bucket, with
// compare-and-set.
package ledger

import (
	"context"
	"errors"
	"io"

	"github.com/pullab/pullab/pkg/bus"
)

// Errors.
var (
	// ErrNotFound: no record under the key.
	ErrNotFound = errors.New("no record")
	// ErrConflict: somebody else wrote the record since it was read, or it
	// exists already. Read again and decide anew.
	ErrConflict = errors.New("record changed meanwhile")
)

// Ledger of records of type T, stored as JSON.
type Ledger[T any] struct{}

// Open a bucket that topology declared.
func Open[T any](ctx context.Context, b *bus.Bus, bucket string) (*Ledger[T], error) {
	return nil, errors.ErrUnsupported
}

// Get reads the record and its revision.
func (l *Ledger[T]) Get(ctx context.Context, key string) (T, uint64, error) {
	var z T
	return z, 0, errors.ErrUnsupported
}

// Create writes the first revision; ErrConflict when there is one.
func (l *Ledger[T]) Create(ctx context.Context, key string, v T) (uint64, error) {
	return 0, errors.ErrUnsupported
}

// Update writes over revision rev; ErrConflict when it is not the last.
func (l *Ledger[T]) Update(ctx context.Context, key string, v T, rev uint64) (uint64, error) {
	return 0, errors.ErrUnsupported
}

// Put writes whatever was there before.
func (l *Ledger[T]) Put(ctx context.Context, key string, v T) (uint64, error) {
	return 0, errors.ErrUnsupported
}

// Keys lists all keys.
func (l *Ledger[T]) Keys(ctx context.Context) ([]string, error) { return nil, errors.ErrUnsupported }

// Blobs is an object store bucket.
type Blobs struct{}

// OpenBlobs opens an object store that topology declared.
func OpenBlobs(ctx context.Context, b *bus.Bus, bucket string) (*Blobs, error) {
	return nil, errors.ErrUnsupported
}

// Put stores r under name, replacing what was there.
func (s *Blobs) Put(ctx context.Context, name string, r io.Reader) error {
	return errors.ErrUnsupported
}

// Get reads all of name; ErrNotFound when it is gone.
func (s *Blobs) Get(ctx context.Context, name string) ([]byte, error) {
	return nil, errors.ErrUnsupported
}
