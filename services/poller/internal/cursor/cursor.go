// Package cursor keeps how far the poller has read kernelci-api's events, in the
// bucket pullab_cursor.
//
// The position is a timestamp of the API, never of this machine. It is written
// with compare-and-set: when somebody else wrote meanwhile, another poller or an
// operator who set it back, theirs stands and the next cycle begins there.
package cursor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/pkg/wire"
)

// Record is a cursor as it is stored. `nats kv put pullab_cursor KEY
// '{"timestamp":"2026-08-20T10:05:12.874000"}'` sets it by hand; the
// predecessor's file has the same form.
type Record struct {
	// Timestamp in the API's form, UTC.
	Timestamp string `json:"timestamp"`
	// Source says where it came from: events, first start, or a file.
	Source    string    `json:"source,omitempty"`
	WrittenAt time.Time `json:"written_at,omitzero"`
}

// Ledger is the part of ledger.Ledger[Record] that a cursor needs.
type Ledger interface {
	Get(ctx context.Context, key string) (Record, uint64, error)
	Create(ctx context.Context, key string, r Record) (uint64, error)
	Update(ctx context.Context, key string, r Record, rev uint64) (uint64, error)
}

// maxKey of the platforms' part of a key, in bytes; longer ones are hashed.
const maxKey = 128

// Key of a poller's cursor: <api host>.<runtime>. Pollers that split one
// runtime by platform pass over each other's jobs, so each list of platforms
// has a cursor of its own.
func Key(host, runtime string, platforms []string) string {
	key := wire.Token(host) + "." + wire.Token(runtime)
	if len(platforms) == 0 {
		return key
	}
	sorted := slices.Sorted(slices.Values(platforms))
	list := wire.Token(strings.Join(slices.Compact(sorted), ","))
	if len(list) > maxKey {
		sum := sha256.Sum256([]byte(list))
		list = "sha256-" + hex.EncodeToString(sum[:])
	}
	return key + "." + list
}

// Store of one cursor.
type Store struct {
	ledger Ledger
	key    string
}

// NewStore of the cursor under key.
func NewStore(l Ledger, key string) *Store { return &Store{ledger: l, key: key} }

// Position is a cursor and the revision it was read at.
type Position struct {
	At  time.Time
	rev uint64
}

// Load reads the cursor; ledger.ErrNotFound before the first start.
func (s *Store) Load(ctx context.Context) (Position, error) {
	r, rev, err := s.ledger.Get(ctx, s.key)
	if err != nil {
		return Position{}, err
	}
	at, err := kernelci.ParseTime(r.Timestamp)
	if err != nil {
		return Position{}, fmt.Errorf(`the cursor %s is not usable; set it with nats kv put pullab_cursor %s '{"timestamp":"2026-08-20T10:05:12.874000"}': %w`, s.key, s.key, err)
	}
	return Position{at, rev}, nil
}

// Begin writes the first position; ledger.ErrConflict when there is one.
func (s *Store) Begin(ctx context.Context, at time.Time, source string) (Position, error) {
	rev, err := s.ledger.Create(ctx, s.key, record(at, source))
	return Position{at, rev}, err
}

// Advance writes at over p, unless p is as late already; ledger.ErrConflict when
// somebody else wrote since.
func (s *Store) Advance(ctx context.Context, p Position, at time.Time) error {
	if !at.After(p.At) {
		return nil
	}
	_, err := s.ledger.Update(ctx, s.key, record(at, "events"), p.rev)
	return err
}

func record(at time.Time, source string) Record {
	return Record{Timestamp: kernelci.FormatTime(at), Source: source, WrittenAt: time.Now().UTC()}
}

// maxFile bounds a cursor file, in bytes.
const maxFile = 64 << 10

// ErrNoFile: there is nothing to seed from.
var ErrNoFile = errors.New("no cursor in the file")

// Seed reads the predecessor's cursor file: {"timestamp": "..."}. A file that is
// not there, is empty, or holds the predecessor's beginning of time is
// ErrNoFile; one that is not a cursor file is another error.
func Seed(path string) (time.Time, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return time.Time{}, ErrNoFile
	}
	if err != nil {
		return time.Time{}, bad(path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return time.Time{}, bad(path, err)
	}
	return parseSeed(path, b)
}

func parseSeed(path string, b []byte) (time.Time, error) {
	var r Record
	if len(strings.TrimSpace(string(b))) == 0 {
		return time.Time{}, ErrNoFile
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return time.Time{}, bad(path, err)
	}
	at, err := kernelci.ParseTime(r.Timestamp)
	if err != nil {
		return time.Time{}, bad(path, err)
	}
	if !at.After(time.Unix(0, 0)) {
		return time.Time{}, ErrNoFile
	}
	return at, nil
}

func bad(path string, err error) error {
	return fmt.Errorf(`kernelci.cursor_file (PULLAB_CURSOR_FILE) %s is not the predecessor's cursor file, {"timestamp": "..."}; correct it, or unset the key to start without it: %w`, path, err)
}
