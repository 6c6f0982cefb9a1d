package pace

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pullab/pullab/pkg/kernelci"
)

func TestEvery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		start := time.Now()
		var at []time.Duration
		answers := []error{nil, errors.New("down"), errors.New("down"), &kernelci.APIError{Status: 429, RetryAfter: 10 * time.Minute}, nil, nil}
		Every(ctx, "Poll", 30*time.Second, func(context.Context) error {
			at = append(at, time.Since(start))
			if len(at) == len(answers) {
				cancel()
			}
			return answers[len(at)-1]
		})
		between := func(i int, low, high time.Duration) {
			t.Helper()
			if d := at[i] - at[i-1]; d < low || d > high {
				t.Errorf("wait %d was %s, want %s to %s", i, d, low, high)
			}
		}
		between(1, 27*time.Second, 33*time.Second)
		between(2, time.Second, 2*time.Second)
		between(3, 2*time.Second, 4*time.Second)
		between(4, 10*time.Minute, 10*time.Minute)
		between(5, 27*time.Second, 33*time.Second)
	})
}

func TestOnce(t *testing.T) {
	down := errors.New("down")
	for name, tt := range map[string]struct {
		answers []error
		calls   int
		err     error
	}{
		"works":     {[]error{nil}, 1, nil},
		"recovers":  {[]error{down, down, nil}, 3, nil},
		"gives up":  {[]error{down, down, down, nil}, 3, down},
		"permanent": {[]error{&kernelci.APIError{Status: 400}}, 1, &kernelci.APIError{}},
		"temporary": {[]error{&kernelci.APIError{Status: 503}, nil}, 2, nil},
		"impatient": {[]error{&kernelci.APIError{Status: 429, RetryAfter: time.Hour}}, 1, &kernelci.APIError{}},
	} {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			err := Once(t.Context(), "Poll", func(context.Context) error {
				calls++
				return tt.answers[calls-1]
			})
			var api *kernelci.APIError
			if calls != tt.calls || (err == nil) != (tt.err == nil) || errors.As(tt.err, &api) != errors.As(err, &api) {
				t.Errorf("%s: %d calls, %v", name, calls, err)
			}
		})
	}
}

func TestOnceStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		err := Once(ctx, "Poll", func(context.Context) error {
			calls++
			cancel()
			return ctx.Err()
		})
		if err != nil || calls != 1 {
			t.Error(err, calls)
		}
		if err := Once(ctx, "Poll", func(context.Context) error { calls++; return nil }); err != nil || calls != 1 {
			t.Error(err, calls)
		}
	})
}
