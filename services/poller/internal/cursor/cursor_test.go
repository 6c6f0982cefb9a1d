package cursor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/pkg/ledger"
)

// bucket is a KV bucket with compare-and-set.
type bucket struct {
	records map[string]Record
	rev     uint64
}

func (b *bucket) Get(_ context.Context, key string) (Record, uint64, error) {
	if r, ok := b.records[key]; ok {
		return r, b.rev, nil
	}
	return Record{}, 0, ledger.ErrNotFound
}

func (b *bucket) Create(_ context.Context, key string, r Record) (uint64, error) {
	if _, ok := b.records[key]; ok {
		return 0, ledger.ErrConflict
	}
	return b.put(key, r), nil
}

func (b *bucket) Update(_ context.Context, key string, r Record, rev uint64) (uint64, error) {
	if rev != b.rev {
		return 0, ledger.ErrConflict
	}
	return b.put(key, r), nil
}

func (b *bucket) put(key string, r Record) uint64 {
	if b.records == nil {
		b.records = map[string]Record{}
	}
	b.records[key] = r
	b.rev++
	return b.rev
}

// clock of the API; zero is not known.
type clock struct{ at time.Time }

func (c *clock) Now() (time.Time, bool) { return c.at, !c.at.IsZero() }

func TestKey(t *testing.T) {
	long := make([]string, 40)
	for i := range long {
		long[i] = strings.Repeat("p", 5)
	}
	for _, tt := range []struct {
		host, runtime string
		platforms     []string
		want          string
	}{
		{"staging.kernelci.org:9000", "pull-labs-aws-ec2", nil, "staging=2ekernelci=2eorg=3a9000.pull-labs-aws-ec2"},
		{"h", "r * >", nil, "h.r=20=2a=20=3e"},
		{"h", "r", []string{"b", "a", "b"}, "h.r.a=2cb"},
		{"h", "r", []string{"a", "b"}, "h.r.a=2cb"},
		{"h", "r", long, "h.r.ppppp"},
	} {
		if got := Key(tt.host, tt.runtime, tt.platforms); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
	many := []string{strings.Repeat("x", 100), strings.Repeat("y", 100)}
	if got := Key("h", "r", many); len(got) != len("h.r.sha256-")+64 {
		t.Error(got)
	}
}

func TestSeed(t *testing.T) {
	for name, tt := range map[string]struct {
		content string
		want    string
		err     error
	}{
		"predecessor": {`{"timestamp": "2026-08-20T10:05:12.874000"}`, "2026-08-20T10:05:12.874000", nil},
		"no fraction": {`{"timestamp": "2026-08-20T10:05:15", "extra": 1}`, "2026-08-20T10:05:15.000000", nil},
		"beginning":   {`{"timestamp": "1970-01-01T00:00:00.000000"}`, "", ErrNoFile},
		"empty":       {" \n", "", ErrNoFile},
	} {
		path := filepath.Join(t.TempDir(), "cursor.json")
		if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		at, err := Seed(path)
		if !errors.Is(err, tt.err) || tt.err == nil && kernelci.FormatTime(at) != tt.want {
			t.Errorf("%s: %v, %v", name, at, err)
		}
	}
	if _, err := Seed(filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrNoFile) {
		t.Error(err)
	}
	for _, content := range []string{`{"timestamp": "yesterday"}`, `{}`, `{"timestamp": 5}`, `{"timesta`, `[]`, "hello"} {
		path := filepath.Join(t.TempDir(), "cursor.json")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Seed(path)
		if err == nil || errors.Is(err, ErrNoFile) || !strings.Contains(err.Error(), "PULLAB_CURSOR_FILE") || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", content, err)
		}
	}
	if _, err := Seed(t.TempDir()); err == nil || errors.Is(err, ErrNoFile) {
		t.Errorf("a directory: %v", err)
	}
}

func FuzzSeed(f *testing.F) {
	f.Add([]byte(`{"timestamp": "2026-08-20T10:05:12.874000"}`))
	f.Add([]byte(`{"timestamp": null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		at, err := parseSeed("f", b)
		if err == nil && !at.After(time.Unix(0, 0)) {
			t.Fatalf("seed %s", at)
		}
	})
}

func TestKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// This machine is an hour ahead of the API.
		api := time.Now().Add(-time.Hour).UTC()
		c, b := &clock{}, &bucket{}
		asked := 0
		k := NewKeeper(NewStore(b, "k"), c, 24*time.Hour, func(context.Context) error {
			asked++
			c.at = api
			return nil
		})
		p, err := k.Position(t.Context())
		if err != nil || !p.At.Equal(api.Add(-24*time.Hour)) || asked != 1 || b.records["k"].Source != "first start" {
			t.Fatal(p, err, asked, b.records)
		}
		// It stays where it was, however often it is read.
		c.at = api.Add(time.Minute)
		if again, err := k.Position(t.Context()); err != nil || !again.At.Equal(p.At) {
			t.Fatal(again, err)
		}
		if err := k.Advance(t.Context(), p, p.At.Add(time.Hour)); err != nil || b.rev != 2 {
			t.Fatal(err, b.rev)
		}
		// Somebody else moved it: theirs stands.
		if err := k.Advance(t.Context(), p, p.At.Add(2*time.Hour)); err != nil || b.rev != 2 {
			t.Fatal(err, b.rev)
		}
		// It neither goes back nor stands still with a write.
		p, _ = k.Position(t.Context())
		for _, at := range []time.Time{p.At, p.At.Add(-time.Hour)} {
			if err := k.Advance(t.Context(), p, at); err != nil || b.rev != 2 {
				t.Fatal(err, b.rev)
			}
		}
		// An event from the future does not drag it there.
		if err := k.Advance(t.Context(), p, c.at.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if p, _ = k.Position(t.Context()); p.At.After(c.at) {
			t.Error(p.At, c.at)
		}
	})
}

func TestKeeperWithoutDate(t *testing.T) {
	b := &bucket{}
	k := NewKeeper(NewStore(b, "k"), &clock{}, time.Hour, func(context.Context) error { return nil })
	if p, err := k.Position(t.Context()); err != nil || p.At.Unix() != 0 {
		t.Error(p, err)
	}
	down := errors.New("API down")
	k = NewKeeper(NewStore(&bucket{}, "k"), &clock{}, time.Hour, func(context.Context) error { return down })
	if _, err := k.Position(t.Context()); !errors.Is(err, down) {
		t.Error(err)
	}
}

func TestKeeperSeed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.json")
	if err := os.WriteFile(file, []byte(`{"timestamp": "2026-08-20T10:05:12.874000"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	b := &bucket{}
	k := NewKeeper(NewStore(b, "k"), &clock{}, time.Hour, nil)
	if err := k.SeedFrom(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	if p, err := k.Position(t.Context()); err != nil || kernelci.FormatTime(p.At) != "2026-08-20T10:05:12.874000" || b.records["k"].Source != "file "+file {
		t.Fatal(p, err, b.records)
	}
	// Only once: now even a broken file does not matter.
	if err := os.WriteFile(file, []byte(`broken`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := k.SeedFrom(t.Context(), file); err != nil {
		t.Error(err)
	}
	if err := NewKeeper(NewStore(&bucket{}, "k"), &clock{}, time.Hour, nil).SeedFrom(t.Context(), file); err == nil {
		t.Error("a broken file and no cursor: no error")
	}
}

// What an operator put into the bucket by hand.
func TestStoreByHand(t *testing.T) {
	b := &bucket{}
	b.put("k", Record{Timestamp: "2026-08-20 10:05:12Z"})
	if p, err := NewStore(b, "k").Load(t.Context()); err != nil || p.At.Hour() != 10 {
		t.Error(p, err)
	}
	b.put("k", Record{Timestamp: "soon"})
	if _, err := NewStore(b, "k").Load(t.Context()); err == nil || !strings.Contains(err.Error(), "nats kv put pullab_cursor k") {
		t.Error(err)
	}
}
