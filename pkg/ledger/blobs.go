package ledger

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pullab/pullab/pkg/bus"
)

// Blobs is an object store bucket.
type Blobs struct {
	bucket string
	store  jetstream.ObjectStore
}

// OpenBlobs opens an object store that topology declared.
func OpenBlobs(ctx context.Context, b *bus.Bus, bucket string) (*Blobs, error) {
	s, err := b.JS.ObjectStore(ctx, bucket)
	if err != nil {
		return nil, fmt.Errorf("object store %s (`pullab topology apply` makes it): %w", bucket, err)
	}
	return &Blobs{bucket: bucket, store: s}, nil
}

// Put stores r under name, replacing what was there.
func (s *Blobs) Put(ctx context.Context, name string, r io.Reader) error {
	if _, err := s.store.Put(ctx, jetstream.ObjectMeta{Name: name}, r); err != nil {
		return fmt.Errorf("storing object %s/%s: %w", s.bucket, name, err)
	}
	return nil
}

// Get reads all of name; ErrNotFound when it is gone.
func (s *Blobs) Get(ctx context.Context, name string) ([]byte, error) {
	b, err := s.store.GetBytes(ctx, name)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return nil, fmt.Errorf("reading object %s/%s: %w", s.bucket, name, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("reading object %s/%s: %w", s.bucket, name, err)
	}
	return b, nil
}
