package progress_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pullab/pullab/pkg/backoff"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/pullab/progress"
)

func phases() []*pullabv1.RunProgress {
	return []*pullabv1.RunProgress{
		{NodeId: "n1", Phase: pullabv1.RunPhase_RUN_PHASE_FETCHING, Detail: "kernel"},
		{NodeId: "n1", Phase: pullabv1.RunPhase_RUN_PHASE_FETCHING, Detail: "kernel"},
		{NodeId: "n1", Phase: pullabv1.RunPhase_RUN_PHASE_BOOTING},
	}
}

func TestLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b strings.Builder
		d := progress.New(&b, false)
		for _, p := range phases() {
			d.Show(p)
			if err := backoff.Sleep(t.Context(), 2*time.Second); err != nil {
				t.Fatal(err)
			}
		}
		d.Note("done: %d", 1)
		if want := "   0s  n1  fetching kernel\n   4s  n1  booting\ndone: 1\n"; b.String() != want {
			t.Errorf("got\n%q, want\n%q", b.String(), want)
		}
	})
}

func TestBar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b strings.Builder
		d := progress.New(&b, true)
		for _, p := range phases() {
			d.Show(p)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3500*time.Millisecond)
		defer cancel()
		d.Run(ctx)
		if !strings.Contains(b.String(), "[#######-----------------------]    3s booting") || !strings.HasSuffix(b.String(), "\r\x1b[K") {
			t.Errorf("%q", b.String())
		}
	})
}

func TestEveryPhaseHasAShare(t *testing.T) {
	for n, name := range pullabv1.RunPhase_name {
		if n == 0 {
			continue
		}
		var b strings.Builder
		progress.New(&b, true).Show(&pullabv1.RunProgress{Phase: pullabv1.RunPhase(n)})
		if n != int32(pullabv1.RunPhase_RUN_PHASE_RESERVED) && !strings.Contains(b.String(), "#") {
			t.Errorf("%s draws an empty bar", name)
		}
	}
}
