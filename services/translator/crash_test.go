package translator

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/translator/internal/admission"
)

// fuse ends a process at a step: from then on nothing it does has any effect.
// Steps are the moments before and after everything that the translator does
// to the world.
type fuse struct {
	mu    sync.Mutex
	at, n int
}

func (f *fuse) step() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	if f.at > 0 && f.n >= f.at {
		return errCrash
	}
	return nil
}

// around runs an effect between two steps.
func (f *fuse) around(effect func() error) error {
	if err := f.step(); err != nil {
		return err
	}
	if err := effect(); err != nil {
		return err
	}
	return f.step()
}

type mortalLedger struct {
	admission.Ledger
	fuse *fuse
}

func (l mortalLedger) Create(ctx context.Context, key string, r admission.Record) (rev uint64, err error) {
	err = l.fuse.around(func() error { rev, err = l.Ledger.Create(ctx, key, r); return err })
	return rev, err
}

func (l mortalLedger) Update(ctx context.Context, key string, r admission.Record, last uint64) (rev uint64, err error) {
	err = l.fuse.around(func() error { rev, err = l.Ledger.Update(ctx, key, r, last); return err })
	return rev, err
}

type mortalOutbox struct {
	outbox
	fuse *fuse
}

func (o mortalOutbox) Publish(ctx context.Context, subject, node, id string, m proto.Message) (fresh bool, err error) {
	err = o.fuse.around(func() error { fresh, err = o.outbox.Publish(ctx, subject, node, id, m); return err })
	return fresh, err
}

// process handles the offer in a process of its own, which dies at a step; 0 is
// never. It tells how many steps there were.
func (s *story) process(at int) (steps int, err error) {
	s.Helper()
	f := &fuse{at: at}
	records, err := ledger.Open[admission.Record](s.Context(), s.bus, topology.Admissions)
	if err != nil {
		s.Fatal(err)
	}
	s.world.before = func(*http.Request) (*http.Response, error) { return nil, f.step() }
	s.world.after = func(*http.Request) error { return f.step() }
	svc, err := assemble(s.cfg, s.bus, mortalLedger{records, f}, mortalOutbox{queue.NewOutbox(s.bus, topology.Runs), f}, WithTransport(s.world))
	if err != nil {
		s.Fatal(err)
	}
	err = svc.handle(s.context(), &queue.Delivery{Message: &pullabv1.JobOffered{Origin: origin(jobID)}, Node: jobID})
	return f.n, err
}

// whole checks that the job ended in one plan, under the names that were on
// record first, with the claim to match.
func (s *story) whole(first admission.Record) {
	s.Helper()
	plan := s.plan()
	if plan.GetRefusal() != nil {
		s.Errorf("refused: %v", plan.GetRefusal())
	}
	s.checkClaim(plan)
	r := s.record(jobID)
	if r.Phase != admission.Planned || r.RunID != plan.GetRunId() || r.JobID != plan.GetJobId() {
		s.Errorf("record %+v, plan %s with %s", r, plan.GetRunId(), plan.GetJobId())
	}
	if first.RunID != "" && (first.RunID != r.RunID || first.JobID != r.JobID) {
		s.Errorf("names changed from %+v to %+v", first, r)
	}
}

func TestCrashAtEveryStep(t *testing.T) {
	t.Parallel()
	var steps int
	tell(t, func(s *story) {
		var err error
		if steps, err = s.process(0); err != nil {
			s.Fatal(err)
		}
		s.whole(admission.Record{})
	})
	// Three records, a plan, a claim, and six reads at least, each with a
	// before and an after.
	if steps < 20 {
		t.Fatalf("only %d steps: the fuse does not see everything", steps)
	}
	for at := range steps {
		t.Run(fmt.Sprint(at+1), func(t *testing.T) {
			t.Parallel()
			tell(t, func(s *story) {
				if _, err := s.process(at + 1); !errors.Is(err, errCrash) {
					s.Fatalf("died with %v", err)
				}
				first := s.record(jobID)
				if _, err := s.process(0); err != nil {
					s.Fatalf("the next process: %v", err)
				}
				s.whole(first)
			})
		})
	}
}

// Each process gets one step further than the one before.
func TestCrashAgainAndAgain(t *testing.T) {
	t.Parallel()
	tell(t, func(s *story) {
		var first admission.Record
		for at := 1; ; at++ {
			_, err := s.process(at)
			if first.RunID == "" {
				first = s.record(jobID)
			}
			if err == nil {
				break
			}
			if !errors.Is(err, errCrash) || at > 100 {
				s.Fatalf("process %d: %v", at, err)
			}
		}
		s.whole(first)
	})
}

// Two translators have one job at once, as after a lost lease: the second goes
// through while the first is fetching. One plan, one claim, and the first notices
// that it is behind.
func TestTwoTranslatorsAtOnce(t *testing.T) {
	t.Parallel()
	tell(t, func(s *story) {
		slow, quick := s.service(), s.service()
		delivery := &queue.Delivery{Message: &pullabv1.JobOffered{Origin: origin(jobID)}, Node: jobID}
		overtaken := false
		s.world.before = func(r *http.Request) (*http.Response, error) {
			if r.URL.Host == fileHost && !overtaken {
				overtaken = true
				if err := quick.handle(s.context(), delivery); err != nil {
					s.Errorf("the quick one: %v", err)
				}
			}
			return nil, nil
		}
		err := slow.handle(s.context(), delivery)
		if !errors.Is(err, ledger.ErrConflict) || !overtaken {
			s.Errorf("the slow one: %v", err)
		}
		if n := s.world.count(http.MethodPatch, ""); n != 1 {
			s.Errorf("claimed %d times", n)
		}
		s.whole(s.record(jobID))
	})
}
