//go:build linux

package machine

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestSameSerial(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		got, want string
		same      bool
	}{
		{"pullab-root", "pullab-root", true},
		{"pullab-roo", "pullab-root", false},
		{"12345678901234567890", "12345678901234567890-longer", true}, // virtio-blk's room
		{"1234567890123456789", "12345678901234567890", false},
		{"", "pullab-root", false},
	} {
		if got := sameSerial(tt.got, tt.want); got != tt.same {
			t.Errorf("%q for %q: %v", tt.got, tt.want, got)
		}
	}
}

func TestAwait(t *testing.T) {
	t.Parallel()
	absent := errors.New("absent")
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		appears := func() (string, error) {
			if time.Since(start) < time.Second {
				return "", absent
			}
			return "node", nil
		}
		if got, err := Await(t.Context(), 3*time.Second, appears); got != "node" || err != nil || time.Since(start) > time.Second+look {
			t.Errorf("%q, %v after %s", got, err, time.Since(start))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		never := func() (string, error) { return "", absent }
		if _, err := Await(t.Context(), 3*time.Second, never); !errors.Is(err, absent) || time.Since(start) != 3*time.Second {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Await(ctx, 3*time.Second, never); !errors.Is(err, absent) {
			t.Errorf("%v", err)
		}
	})
}
