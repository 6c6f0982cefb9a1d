package ledger_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/natstest"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/pkg/wire"
)

func TestMain(m *testing.M) {
	natstest.Register()
	m.Run()
}

type record struct {
	Phase string `json:"phase"`
	Count int    `json:"count"`
}

func TestCompareAndSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := natstest.Start(t)
		l, err := ledger.Open[record](ctx, b, topology.RunLedger)
		if err != nil {
			t.Fatal(err)
		}
		key := wire.Token("local-1/x y")
		if _, _, err := l.Get(ctx, key); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("Get of nothing: %v", err)
		}
		rev, err := l.Create(ctx, key, record{"reserved", 1})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Create(ctx, key, record{}); !errors.Is(err, ledger.ErrConflict) {
			t.Errorf("second Create: %v", err)
		}
		rev2, err := l.Update(ctx, key, record{"running", 2}, rev)
		if err != nil || rev2 <= rev {
			t.Fatalf("Update: revision %d after %d, %v", rev2, rev, err)
		}
		if _, err := l.Update(ctx, key, record{"lost", 3}, rev); !errors.Is(err, ledger.ErrConflict) {
			t.Errorf("stale Update: %v", err)
		}
		if _, err := l.Update(ctx, "absent", record{}, 5); !errors.Is(err, ledger.ErrConflict) {
			t.Errorf("Update of nothing: %v", err)
		}
		v, got, err := l.Get(ctx, key)
		if err != nil || got != rev2 || v != (record{"running", 2}) {
			t.Errorf("Get: %+v at %d, %v", v, got, err)
		}
		if rev, err = l.Put(ctx, key, record{"done", 4}); err != nil || rev <= rev2 {
			t.Errorf("Put: %d, %v", rev, err)
		}
	})
}

// Of many writers that read the same record, one wins each round.
func TestOneWriterWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		l, err := ledger.Open[record](ctx, natstest.Start(t), topology.Receipts)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Create(ctx, "k", record{}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for done := 0; done < 5; {
					v, rev, err := l.Get(ctx, "k")
					if err != nil {
						t.Error(err)
						return
					}
					v.Count++
					switch _, err := l.Update(ctx, "k", v, rev); {
					case err == nil:
						done++
					case !errors.Is(err, ledger.ErrConflict):
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if v, _, err := l.Get(ctx, "k"); v.Count != 40 || err != nil {
			t.Errorf("count %d, want 40, %v", v.Count, err)
		}
	})
}

func TestKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		l, err := ledger.Open[record](ctx, natstest.Start(t), topology.Offers)
		if err != nil {
			t.Fatal(err)
		}
		if keys, err := l.Keys(ctx); err != nil || len(keys) != 0 {
			t.Errorf("empty: %q, %v", keys, err)
		}
		var want []string
		for i := range 300 {
			key := fmt.Sprintf("api=2eorg.node%04d", i)
			want = append(want, key)
			if _, err := l.Put(ctx, key, record{Count: i}); err != nil {
				t.Fatal(err)
			}
		}
		if keys, err := l.Keys(ctx); err != nil || !slices.Equal(keys, want) {
			t.Errorf("%d keys, %v", len(keys), err)
		}
	})
}

func TestUnreadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := natstest.Start(t)
		l, err := ledger.Open[record](ctx, b, topology.Cursor)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.JS.Publish(ctx, "$KV.pullab_cursor.k", []byte(`{"phase": "hal`)); err != nil {
			t.Fatal(err)
		}
		_, _, err = l.Get(ctx, "k")
		if err == nil || errors.Is(err, ledger.ErrNotFound) || !strings.Contains(err.Error(), "nats kv get pullab_cursor k") {
			t.Errorf("truncated record: %v", err)
		}
		if _, err := ledger.Open[record](ctx, b, "nowhere"); err == nil || !strings.Contains(err.Error(), "topology apply") {
			t.Errorf("unknown bucket: %v", err)
		}
	})
}

func TestBlobs(t *testing.T) {
	// Twice: a timer of nats.go that escapes from the first bubble ends the second.
	for range 2 {
		synctest.Test(t, func(t *testing.T) {
			ctx := context.Background()
			b := natstest.Start(t)
			s, err := ledger.OpenBlobs(ctx, b, topology.ResultRows)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Get(ctx, "run"); !errors.Is(err, ledger.ErrNotFound) {
				t.Errorf("Get of nothing: %v", err)
			}
			for _, size := range []int{0, 10, 3 << 20} {
				want := bytes.Repeat([]byte("row\n"), size/4)
				if err := s.Put(ctx, "run", bytes.NewReader(want)); err != nil {
					t.Fatal(err)
				}
				if got, err := s.Get(ctx, "run"); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d of %d bytes, %v", len(got), len(want), err)
				}
			}
			if _, err := ledger.OpenBlobs(ctx, b, "nowhere"); err == nil {
				t.Error("unknown object store opens")
			}
		})
	}
}
