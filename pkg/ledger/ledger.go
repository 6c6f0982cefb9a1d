// Package ledger keeps a service's own records in a JetStream KV bucket, with
// compare-and-set.
//
// A lease on the queue is not a fence: two processes may hold one message for a
// while. A record written with Create or Update is: of two writers that read
// the same revision one gets ErrConflict. On a cluster Get may be answered by a
// replica that lags behind: the revision then tells at the Update. Records are never deleted; the
// bucket's age removes them (package topology says when).
package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

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
type Ledger[T any] struct {
	bucket string
	kv     jetstream.KeyValue
	js     jetstream.JetStream
}

// Open a bucket that topology declared.
func Open[T any](ctx context.Context, b *bus.Bus, bucket string) (*Ledger[T], error) {
	kv, err := b.JS.KeyValue(ctx, bucket)
	if err != nil {
		return nil, fmt.Errorf("bucket %s (`pullab topology apply` makes it): %w", bucket, err)
	}
	return &Ledger[T]{bucket: bucket, kv: kv, js: b.JS}, nil
}

// Get reads the record and its revision. A record that cannot be read as T is an
// error, and stays.
func (l *Ledger[T]) Get(ctx context.Context, key string) (T, uint64, error) {
	var v T
	e, err := l.kv.Get(ctx, key)
	if err != nil {
		return v, 0, l.failed("reading", key, err)
	}
	err = json.Unmarshal(e.Value(), &v)
	if err != nil {
		var zero T
		return zero, 0, fmt.Errorf("record %s/%s, revision %d, is not readable; look at it with `nats kv get %s %s`: %w",
			l.bucket, key, e.Revision(), l.bucket, key, err)
	}
	return v, e.Revision(), nil
}

// Create writes the first revision; ErrConflict when there is one.
func (l *Ledger[T]) Create(ctx context.Context, key string, v T) (uint64, error) {
	return l.write("creating", key, v, func(b []byte) (uint64, error) { return l.kv.Create(ctx, key, b) })
}

// Update writes over revision rev; ErrConflict when it is not the last.
func (l *Ledger[T]) Update(ctx context.Context, key string, v T, rev uint64) (uint64, error) {
	return l.write("updating", key, v, func(b []byte) (uint64, error) { return l.kv.Update(ctx, key, b, rev) })
}

// Put writes whatever was there before.
func (l *Ledger[T]) Put(ctx context.Context, key string, v T) (uint64, error) {
	return l.write("writing", key, v, func(b []byte) (uint64, error) { return l.kv.Put(ctx, key, b) })
}

func (l *Ledger[T]) write(verb, key string, v T, put func([]byte) (uint64, error)) (uint64, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return 0, l.failed(verb, key, err)
	}
	rev, err := put(b)
	if err != nil {
		return 0, l.failed(verb, key, err)
	}
	return rev, nil
}

// Keys lists all keys, sorted. It asks the broker for the names only, not the
// records.
func (l *Ledger[T]) Keys(ctx context.Context) ([]string, error) {
	prefix := "$KV." + l.bucket + "."
	st, err := l.js.Stream(ctx, "KV_"+l.bucket)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", l.bucket, err)
	}
	info, err := st.Info(ctx, jetstream.WithSubjectFilter(prefix+">"))
	if err != nil {
		return nil, fmt.Errorf("listing the keys of bucket %s: %w", l.bucket, err)
	}
	keys := make([]string, 0, len(info.State.Subjects))
	for s := range info.State.Subjects {
		keys = append(keys, strings.TrimPrefix(s, prefix))
	}
	slices.Sort(keys)
	return keys, nil
}

// failed names the record and puts nats.go's errors in our words. The two
// conflict errors match whatever number the broker used: it has another on
// replicated streams.
func (l *Ledger[T]) failed(verb, key string, err error) error {
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrKeyDeleted):
		return fmt.Errorf("%s record %s/%s: %w", verb, l.bucket, key, ErrNotFound)
	case errors.Is(err, jetstream.ErrKeyExists), errors.Is(err, jetstream.ErrKeyRevisionMismatch):
		return fmt.Errorf("%s record %s/%s: %w", verb, l.bucket, key, ErrConflict)
	default:
		return fmt.Errorf("%s record %s/%s: %w", verb, l.bucket, key, err)
	}
}
