package offers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/queue"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/poller/internal/judge"
)

const nodeID = "6a86d157c5867fba94731e66"

var (
	now    = time.Date(2026, 8, 20, 10, 6, 0, 0, time.UTC)
	errDie = errors.New("the process dies here")
)

// far is ledger and outbox: what survives a crash. Every step may die before or
// after its effect.
type far struct {
	mu      sync.Mutex
	records map[string]Record
	revs    map[string]uint64
	// ids that the broker knows, subjects that hold a message, all messages.
	ids, subjects map[string]bool
	messages      []*pullabv1.JobOffered
	steps         []string
	// die is asked at each moment, and may end the process there.
	die func(moment string) error
	// before an update, for another poller to get in between.
	between func(moment string)
}

func newFar() *far {
	return &far{records: map[string]Record{}, revs: map[string]uint64{}, ids: map[string]bool{}, subjects: map[string]bool{}}
}

func (f *far) step(name string, effect func() error) error {
	if f.between != nil {
		f.between(name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, when := range []string{"before ", "after "} {
		if when == "after " {
			if err := effect(); err != nil {
				return err
			}
			f.steps = append(f.steps, name)
		}
		if f.die != nil {
			if err := f.die(when + name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *far) Get(_ context.Context, key string) (r Record, rev uint64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := f.records[key]
	if !ok {
		return r, 0, fmt.Errorf("%w: %s", ledger.ErrNotFound, key)
	}
	return r, f.revs[key], nil
}

func (f *far) Create(_ context.Context, key string, r Record) (uint64, error) {
	return f.put(key, r, 0)
}

func (f *far) Update(_ context.Context, key string, r Record, rev uint64) (uint64, error) {
	return f.put(key, r, rev)
}

func (f *far) put(key string, r Record, rev uint64) (uint64, error) {
	err := f.step(string(r.Phase), func() error {
		if f.revs[key] != rev {
			return ledger.ErrConflict
		}
		f.records[key] = r
		f.revs[key]++
		return nil
	})
	return rev + 1, err
}

func (f *far) Publish(_ context.Context, subject, _, id string, m proto.Message) (fresh bool, err error) {
	err = f.step("publish", func() error {
		if !f.ids[id] && !f.subjects[subject] {
			f.messages = append(f.messages, m.(*pullabv1.JobOffered))
			fresh = true
		}
		f.ids[id], f.subjects[subject] = true, true
		return nil
	})
	return fresh, err
}

func job(event string) Job {
	return Job{Event: event, Now: now, Node: &kernelci.Node{
		ID: nodeID, Name: "baseline-x86", Kind: "job", Parent: "6a86cc10c5867fba94730b11", Path: []string{"checkout", "kbuild", "baseline-x86"},
		Artifacts: map[string]string{"job_definition": "https://files.example/x.json"}, RetryCounter: 2,
		Data:    kernelci.Data{Runtime: "pull labs", Platform: "aws.ec2"},
		Timeout: now.Add(6 * time.Hour), Created: now.Add(-time.Minute),
	}}
}

func desk(f *far) *Desk { return NewDesk(f, f, "https://api.example/latest", 30*time.Minute) }

func TestOffer(t *testing.T) {
	f := newFar()
	if r, err := desk(f).Handle(t.Context(), job("e1")); err != nil || r != Made {
		t.Fatal(r, err)
	}
	if want := []string{"seen", "publish", "offered"}; !slices.Equal(f.steps, want) {
		t.Errorf("order %v, want %v", f.steps, want)
	}
	if !f.subjects["pullab.jobs.pull=20labs.aws=2eec2."+nodeID] || !f.ids["offer-"+nodeID+"-1"] {
		t.Error(f.subjects, f.ids)
	}
	o := f.messages[0].GetOrigin()
	if o.GetApiBaseUri() != "https://api.example/latest" || o.GetRuntime() != "pull labs" || o.GetPlatform() != "aws.ec2" ||
		o.GetNodeId() != nodeID || o.GetNodeName() != "baseline-x86" || len(o.GetNodePath()) != 3 || o.GetParentId() == "" ||
		o.GetJobDefinitionUrl() != "https://files.example/x.json" || o.GetRetryCounter() != 2 || o.GetEventId() != "e1" ||
		!o.GetOfferedAt().AsTime().Equal(now) || !o.GetNodeTimeout().AsTime().Equal(now.Add(6*time.Hour)) ||
		!o.GetNodeCreated().AsTime().Equal(now.Add(-time.Minute)) {
		t.Errorf("%v", o)
	}
	// The overlap, and the sweep shortly after, bring it again.
	for _, event := range []string{"e1", "e2", ""} {
		if r, err := desk(f).Handle(t.Context(), job(event)); err != nil || r != Known || len(f.steps) != 3 {
			t.Errorf("%q: %v, %v, %v", event, r, err, f.steps)
		}
	}
}

func TestOriginWithoutTimes(t *testing.T) {
	f, j := newFar(), job("e1")
	j.Node.Created, j.Node.Timeout = time.Time{}, time.Time{}
	if _, err := desk(f).Handle(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	o := f.messages[0].GetOrigin()
	// 0x6a86d157 seconds.
	if o.GetNodeTimeout() != nil || o.GetNodeCreated().GetSeconds() != 0x6a86d157 {
		t.Error(o.GetNodeTimeout(), o.GetNodeCreated())
	}
}

// A process may die at any moment; the next one brings the job onto the queue,
// once, and the record to its end.
func TestCrashAnywhere(t *testing.T) {
	for _, moment := range []string{"before seen", "after seen", "before publish", "after publish", "before offered", "after offered"} {
		for _, event := range []string{"e1", ""} {
			t.Run(moment+" "+event, func(t *testing.T) {
				f := newFar()
				f.die = func(m string) error {
					if m == moment {
						return errDie
					}
					return nil
				}
				if _, err := desk(f).Handle(t.Context(), job("e1")); !errors.Is(err, errDie) {
					t.Fatal(err)
				}
				f.die = nil
				if _, err := desk(f).Handle(t.Context(), job(event)); err != nil {
					t.Fatal(err)
				}
				if len(f.messages) != 1 || f.records[nodeID].Phase != Offered || f.records[nodeID].Round != 1 {
					t.Errorf("%d messages, %+v", len(f.messages), f.records[nodeID])
				}
			})
		}
	}
}

// The sweep repeats an offer that must be lost: later each time, under a new
// id; a job still queued stays one.
func TestRepeat(t *testing.T) {
	f, d := newFar(), desk(newFar())
	d.ledger, d.out = f, f
	handle := func(after time.Duration) Result {
		t.Helper()
		j := job("")
		j.Now = now.Add(after)
		r, err := d.Handle(t.Context(), j)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	lose := func() { f.subjects = map[string]bool{} }
	handle(0)
	for _, tt := range []struct {
		after    time.Duration
		want     Result
		messages int
	}{
		{29 * time.Minute, Known, 1},
		{30 * time.Minute, Repeated, 2},
		{89 * time.Minute, Known, 2},
		{90 * time.Minute, Repeated, 3},
		{209 * time.Minute, Known, 3},
		{210 * time.Minute, Repeated, 4},
	} {
		lose()
		if got := handle(tt.after); got != tt.want || len(f.messages) != tt.messages {
			t.Errorf("after %s: %v, %d messages; want %v, %d", tt.after, got, len(f.messages), tt.want, tt.messages)
		}
	}
	// Still queued: refused there, and harmless.
	if got := handle(48 * time.Hour); got != Repeated || len(f.messages) != 4 {
		t.Error(got, len(f.messages))
	}
	// An event never repeats an offer.
	j := job("e9")
	j.Now = now.Add(1000 * time.Hour)
	if r, err := d.Handle(t.Context(), j); err != nil || r != Known {
		t.Error(r, err)
	}
}

func TestSkip(t *testing.T) {
	f := newFar()
	j := job("e1")
	skip := func(r judge.Reason) Result {
		t.Helper()
		j.Verdict = judge.Verdict{Reason: r, Detail: "because"}
		got, err := desk(f).Handle(t.Context(), j)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := skip(judge.Claimed); got != Passed || f.records[nodeID].Reason != "claimed" || f.records[nodeID].Detail != "because" {
		t.Error(got, f.records)
	}
	if got := skip(judge.Claimed); got != Known || len(f.steps) != 1 {
		t.Error("the same reason twice:", got, f.steps)
	}
	if got := skip(judge.TooLate); got != Passed || f.records[nodeID].Reason != "too-late" {
		t.Error(got, f.records)
	}
	// The claim went away: it is a job like any other.
	if got := skip(judge.None); got != Made || len(f.messages) != 1 || f.records[nodeID].Reason != "" {
		t.Error(got, f.records)
	}
	// Our own claim is on it now: that is no news.
	if got := skip(judge.Claimed); got != Known || f.records[nodeID].Phase != Offered {
		t.Error(got, f.records)
	}
}

func TestTooLarge(t *testing.T) {
	f := newFar()
	f.die = func(m string) error {
		if m == "before publish" {
			return fmt.Errorf("%w: 1 MB", queue.ErrTooLarge)
		}
		return nil
	}
	if r, err := desk(f).Handle(t.Context(), job("e1")); err != nil || r != Passed || f.records[nodeID].Reason != "too-large" {
		t.Error(r, err, f.records)
	}
}

// Another poller gets in between at every write: one message, one record.
func TestTwoPollers(t *testing.T) {
	for _, moment := range []string{"seen", "publish", "offered"} {
		t.Run(moment, func(t *testing.T) {
			f := newFar()
			other := false
			f.between = func(m string) {
				if m == moment && !other {
					other = true
					if _, err := desk(f).Handle(t.Context(), job("e2")); err != nil {
						t.Error(err)
					}
				}
			}
			if _, err := desk(f).Handle(t.Context(), job("e1")); err != nil {
				t.Fatal(err)
			}
			if len(f.messages) != 1 || f.records[nodeID].Phase != Offered || f.records[nodeID].Round != 1 {
				t.Errorf("%d messages, %+v", len(f.messages), f.records[nodeID])
			}
		})
	}
}

// A record that is always written by someone else is left for now, not for ever.
func TestEndlessConflict(t *testing.T) {
	f := newFar()
	f.die = func(m string) error {
		if strings.HasPrefix(m, "before seen") {
			return ledger.ErrConflict
		}
		return nil
	}
	if _, err := desk(f).Handle(t.Context(), job("e1")); !errors.Is(err, ledger.ErrConflict) {
		t.Error(err)
	}
}

func TestHandleAll(t *testing.T) {
	f := newFar()
	var jobs []Job
	for n := range 300 {
		j := job("e")
		j.Node.ID = fmt.Sprintf("%024x", n)
		if n%3 == 0 {
			j.Verdict = judge.Verdict{Reason: judge.TooLate}
		}
		jobs = append(jobs, j)
	}
	got := desk(f).HandleAll(t.Context(), 16, jobs)
	if got.Made != 200 || got.Passed != 100 || got.Known != 0 || got.Failed != nil || len(f.messages) != 200 {
		t.Errorf("%+v", got)
	}
	got = desk(f).HandleAll(t.Context(), 16, jobs)
	if got.Made != 0 || got.Passed != 0 || got.Known != 300 {
		t.Errorf("%+v", got)
	}
	f.die = func(string) error { return errDie }
	f.records, f.revs = map[string]Record{}, maps.Clone(map[string]uint64{})
	if got = desk(f).HandleAll(t.Context(), 16, jobs); len(got.Failed) != 300 {
		t.Errorf("%d failed", len(got.Failed))
	}
	if got = desk(f).HandleAll(t.Context(), 16, nil); got.Made+got.Known+len(got.Failed) != 0 {
		t.Errorf("%+v", got)
	}
}
