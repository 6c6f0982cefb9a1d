package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/executor"
	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/pkg/wire"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/runner/internal/verdict"
)

const (
	// defaultTimeout of a plan that names none: the predecessor's max_runtime.
	defaultTimeout = time.Hour
	// Overdue is how long after its deadline a machine that nobody here can reach
	// is taken for gone (invariant 3).
	Overdue = 2 * time.Minute
	// elsewhere is how long a message rests that only another host can work on.
	elsewhere = 10 * time.Second
	// maxAdoptions of one attempt. Restarts of runners count too, so it is far
	// above what an evening of deployments needs.
	maxAdoptions = 20
	// stopTime is what stopping a machine may take before the reaper has to.
	stopTime = time.Minute
	// progressGap between two words on the same phase.
	progressGap = time.Second
)

// Logs publishes a run's files. It fails only with the cause of an ended
// context.
type Logs interface {
	Publish(ctx context.Context, runID, dir string, files []executor.File) ([]*pullabv1.StoredFile, error)
}

// Driver runs plans. All its fields are set before the first Do.
type Driver struct {
	// Executors by the name that plans use.
	Executors map[string]executor.Executor
	// HostBound names executors whose machines only runners on the same host can
	// reach, also while the handle is not yet known.
	HostBound map[string]bool
	Records   Records
	Logs      Logs
	// Scrub takes secrets out of a row's text; nil leaves it.
	Scrub func(text string) string
	// Publish puts a result on PULLAB_RESULTS.
	Publish func(ctx context.Context, f *pullabv1.RunFinished) error
	// PutRows stores rows too large for a message; nil keeps them inside.
	PutRows func(ctx context.Context, name string, r io.Reader) error
	// Tell passes progress on.
	Tell  func(ctx context.Context, p *pullabv1.RunProgress)
	Owner Owner
	// LogsDir holds a directory per run.
	LogsDir string
	// Attempts at a run when the lab fails, and the delays between them.
	Attempts int
	Backoff  backoff.Policy
}

// errStale: another runner took the run over.
var errStale = errors.New("another runner has taken this run over")

// Do takes the plan on until its result is published. Its errors are for
// package queue.
func (d *Driver) Do(ctx context.Context, plan *pullabv1.RunPlanned) error {
	node := plan.GetOrigin().GetNodeId()
	log := zerolog.Ctx(ctx).With().Str("node", node).Str("run", plan.GetRunId()).Logger()
	ctx = log.WithContext(ctx)
	j := &journey{Driver: d, plan: plan, key: wire.Token(node)}
	err := j.take(ctx)
	for err == nil && j.rec.Phase != Finished {
		err = j.step(ctx)
	}
	switch {
	case errors.Is(err, errStale):
		// Not acknowledged, and not given back before the new owner's lease would
		// have run out anyway; its next renewal overrides this.
		log.Warn().Int("attempt", j.rec.Attempt).Msg(errStale.Error() + ": stopping without effects")
		return queue.RetryAfter(topology.AckWait, err)
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return err
}

// journey is one owner's work on one run.
type journey struct {
	*Driver
	plan *pullabv1.RunPlanned
	key  string
	rec  Record
	// rev is the ledger's revision of rec; 0 before the first write.
	rev uint64

	mu   sync.Mutex
	last *pullabv1.RunProgress
}

func (j *journey) step(ctx context.Context) error {
	ex := j.Executors[j.rec.Executor]
	if ex == nil && j.rec.Phase != Collecting {
		return queue.Drop(fmt.Errorf("the plan names executor %q and came to a runner without it: its subject does not fit", j.rec.Executor))
	}
	switch j.rec.Phase {
	case Launching:
		return j.launch(ctx, ex)
	case Running:
		return j.watch(ctx, ex)
	case Collecting:
		return j.collect(ctx)
	default:
		return queue.Drop(fmt.Errorf("the ledger has the run in phase %q, which this pullab does not know: upgrade it", j.rec.Phase))
	}
}

// take makes the run ours: a new record, or one that another owner left.
func (j *journey) take(ctx context.Context) error {
	j.rec = Record{RunID: j.plan.GetRunId(), Attempt: 1, Executor: j.plan.GetExecutor(), Started: time.Now(), Owner: j.Owner, Epoch: 1}
	if err := j.begin(ctx); err != nil {
		return err
	}
	err := j.save(ctx)
	if !errors.Is(err, errStale) {
		return err
	}
	return j.adopt(ctx)
}

// begin moves a run without a machine to its next attempt, or to its end when
// there is nothing to attempt.
func (j *journey) begin(ctx context.Context) error {
	if j.plan.GetExecutor() == topology.None {
		return j.seal(ctx, j.finished(verdict.Judged{Verdict: verdict.Refused(j.plan.GetRefusal())}))
	}
	j.rec.Phase, j.rec.Executor, j.rec.Handle, j.rec.Adoptions = Launching, j.plan.GetExecutor(), nil, 0
	j.rec.AttemptStarted = time.Now()
	j.rec.Deadline = j.rec.AttemptStarted.Add(j.timeout())
	if j.fits(j.rec.AttemptStarted) {
		return nil
	}
	zerolog.Ctx(ctx).Warn().Msg("no machine was free in time")
	return j.seal(ctx, j.finished(verdict.LabFailed(j.plan, verdict.NodeTimeout, fmt.Sprintf(
		"no machine was free in time: the run may take %v and nobody waits for it after %s. Give this lab more slots, or fewer jobs",
		j.timeout(), j.plan.GetFinishBefore().AsTime().Format(time.RFC3339)))))
}

func (j *journey) timeout() time.Duration {
	if t := j.plan.GetRunTimeout().AsDuration(); t > 0 {
		return t
	}
	return defaultTimeout
}

// fits tells whether an attempt begun at t can use all its time.
func (j *journey) fits(t time.Time) bool {
	f := j.plan.GetFinishBefore()
	return f == nil || !t.Add(j.timeout()).After(f.AsTime())
}

// adopt takes over what the ledger has.
func (j *journey) adopt(ctx context.Context) error {
	rec, rev, err := j.Records.Get(ctx, j.key)
	if err != nil {
		return queue.Retry(err)
	}
	j.rec, j.rev = rec, rev
	log := zerolog.Ctx(ctx)
	if rec.RunID != j.plan.GetRunId() {
		log.Warn().Str("recorded", rec.RunID).Msg("this node was planned under another run name before; that one is kept")
		j.plan = proto.CloneOf(j.plan)
		j.plan.RunId = rec.RunID
	}
	if rec.Phase == Finished {
		log.Info().Msg("already finished: publishing the recorded result again")
		return j.publish(ctx)
	}
	away := j.away()
	if left := time.Until(rec.Deadline.Add(Overdue)); away && left > 0 {
		return queue.RetryAfter(min(left, elsewhere), fmt.Errorf(
			"the run's machine is on host %s: waiting for the runner there, at most until %s", rec.Owner.Host, rec.Deadline.Add(Overdue).Format(time.RFC3339)))
	}
	j.rec.Epoch++
	j.rec.Adoptions++
	j.rec.Owner = j.Owner
	log.Info().Int("attempt", rec.Attempt).Str("phase", string(rec.Phase)).Int("epoch", j.rec.Epoch).Msg("adopting a run")
	switch {
	case j.rec.Phase == Reserved:
		if err := j.stop(ctx); err != nil {
			return err
		}
		if err := j.begin(ctx); err != nil {
			return err
		}
	case j.plan.GetExecutor() == topology.None && j.rec.Phase != Collecting:
		if err := j.begin(ctx); err != nil {
			return err
		}
	case j.rec.Phase == Collecting:
	case away:
		return j.failed(ctx, &executor.LabError{Reason: "lost", Fix: "The runner on host " + rec.Owner.Host + " did not come back before the machine's deadline"})
	case j.rec.Adoptions > maxAdoptions:
		return j.failed(ctx, &executor.LabError{Reason: "adoptions", Permanent: true,
			Fix: fmt.Sprintf("Runners died or lost this run %d times; look at their logs", j.rec.Adoptions)})
	}
	return j.save(ctx)
}

// away tells whether the recorded machine can be reached only by another runner.
func (j *journey) away() bool {
	missing := j.rec.Executor != topology.None && j.Executors[j.rec.Executor] == nil
	switch j.rec.Phase {
	case Launching:
		return missing || j.HostBound[j.rec.Executor] && j.rec.Owner.Host != j.Owner.Host
	case Running:
		return missing || j.foreign(j.rec.Handle)
	default:
		return false
	}
}

func (j *journey) foreign(h *executor.Handle) bool {
	return h != nil && h.Host != "" && h.Host != j.Owner.Host
}

// run is the attempt as the executor sees it.
func (j *journey) run() executor.Run {
	return executor.Run{Plan: j.plan, Attempt: j.rec.Attempt, Deadline: j.rec.Deadline, Dir: filepath.Join(j.LogsDir, j.rec.RunID)}
}

func (j *journey) launch(ctx context.Context, ex executor.Executor) error {
	j.tell(ctx, pullabv1.RunPhase_RUN_PHASE_LAUNCHING, "")
	if !time.Now().Before(j.rec.Deadline) {
		return j.failed(ctx, &executor.LabError{Reason: "lost", Fix: "The runner died while the machine was launched and came back after its deadline"})
	}
	run := j.run()
	if err := os.MkdirAll(run.Dir, 0o755); err != nil {
		return j.failed(ctx, &executor.LabError{Reason: "disk", Err: err, Fix: "Make runner.data_dir writable, or free space"})
	}
	sctx, cancel := within(ctx, j.rec.Deadline)
	defer cancel()
	h, err := ex.Start(sctx, run, j.progress(ctx))
	if err != nil {
		return j.failed(ctx, err)
	}
	j.rec.Phase, j.rec.Handle = Running, &h
	return j.save(ctx)
}

// within ends with the lab's failure at t, for executors that would not: the
// slot is not theirs for ever.
func within(ctx context.Context, t time.Time) (context.Context, context.CancelFunc) {
	return context.WithDeadlineCause(ctx, t, &executor.LabError{Reason: "deadline", Fix: "The executor was not done when the run's time was over"})
}

func (j *journey) watch(ctx context.Context, ex executor.Executor) error {
	j.tell(ctx, pullabv1.RunPhase_RUN_PHASE_RUNNING, j.rec.Handle.ID)
	actx, cancel := within(ctx, j.rec.Deadline.Add(Overdue))
	defer cancel()
	o, err := ex.Await(actx, j.run(), *j.rec.Handle, j.progress(ctx))
	if err != nil {
		return j.failed(ctx, err)
	}
	j.tell(ctx, pullabv1.RunPhase_RUN_PHASE_COLLECTING, "")
	// Published before the result is sealed, for the links in it. A crash in here
	// awaits again and publishes the same files to the same places.
	files, err := j.Logs.Publish(ctx, j.rec.RunID, j.run().Dir, o.Files)
	if err != nil {
		return err
	}
	j.scrub(&o)
	judged := verdict.Judge(j.plan, o)
	for _, b := range judged.Broken {
		zerolog.Ctx(ctx).Error().Str("executor", j.rec.Executor).Msg("the executor broke its contract: " + b)
	}
	f := j.finished(judged)
	f.Files, f.KernelRelease, f.Device, f.Facts = files, o.Release, o.Device, o.Facts
	if !o.Started.IsZero() && !o.Finished.Before(o.Started) {
		f.StartedAt, f.FinishedAt = timestamppb.New(o.Started), timestamppb.New(o.Finished)
	}
	if err := j.seal(ctx, f); err != nil {
		return err
	}
	return j.save(ctx)
}

// scrub comes before the judge, who cuts texts to what KCIDB takes.
func (j *journey) scrub(o *executor.Outcome) {
	if j.Scrub == nil {
		return
	}
	o.KernelReason = j.Scrub(o.KernelReason)
	for _, r := range o.Rows {
		r.LogExcerpt, r.Reason = j.Scrub(r.GetLogExcerpt()), j.Scrub(r.GetReason())
	}
}

// failed decides what a failed call means: an interruption, another attempt,
// or the end.
func (j *journey) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var lab *executor.LabError
	if !errors.As(err, &lab) {
		zerolog.Ctx(ctx).Error().Err(err).Str("executor", j.rec.Executor).Msg("the executor broke its contract: its errors must be *LabError; taken for the lab's failure")
		lab = &executor.LabError{Reason: "executor", Err: err}
	}
	log := zerolog.Ctx(ctx).With().Int("attempt", j.rec.Attempt).Str("reason", lab.Reason).Err(lab).Logger()
	j.rec.History = append(j.rec.History, Try{
		Attempt: j.rec.Attempt, Started: j.rec.AttemptStarted, Ended: time.Now(), Reason: lab.Reason, Error: short(lab),
	})
	delay := j.Backoff.Delay(j.rec.Attempt)
	if lab.Permanent || j.rec.Attempt >= j.Attempts || !j.fits(time.Now().Add(delay)) {
		log.Error().Msg("the lab failed for good; reporting it as incomplete")
		if err := j.seal(ctx, j.finished(verdict.LabFailed(j.plan, verdict.Infrastructure, fmt.Sprintf(
			"the lab failed at attempt %d: %s", j.rec.Attempt, short(lab))))); err != nil {
			return err
		}
		return j.save(ctx)
	}
	log.Warn().Dur("delay", delay).Msg("the lab failed; trying again")
	// Recorded before the machine is stopped, which the next attempt does again:
	// what failed would be unknown after a crash in between.
	j.rec.Attempt++
	j.rec.Phase = Reserved
	if err := j.save(ctx); err != nil {
		return err
	}
	if err := j.stop(ctx); err != nil {
		return err
	}
	j.tell(ctx, pullabv1.RunPhase_RUN_PHASE_RESERVED, "another attempt after: "+lab.Reason)
	return queue.RetryAfter(delay, lab)
}

// short is an error's text as a record has room for.
func short(err error) string {
	const limit = 2000
	s := strings.ToValidUTF8(err.Error(), "\uFFFD")
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + " ..."
	}
	return s
}

// stop ends the attempt's machine as far as it is known and reachable. What
// cannot be stopped now is left to the reaper; only an ended context is an
// error.
func (j *journey) stop(ctx context.Context) error {
	h := j.rec.Handle
	ex := j.Executors[j.rec.Executor]
	if h == nil || ex == nil || j.foreign(h) {
		return nil
	}
	sctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	err := ex.Stop(sctx, *h)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		zerolog.Ctx(ctx).Error().Err(err).Str("machine", h.ID).Msg("machine not stopped; the reaper will try again")
	}
	return nil
}

func (j *journey) collect(ctx context.Context) error {
	if err := j.stop(ctx); err != nil {
		return err
	}
	if err := j.publish(ctx); err != nil {
		return err
	}
	j.rec.Phase = Finished
	if err := j.save(ctx); err != nil {
		return err
	}
	j.tell(ctx, pullabv1.RunPhase_RUN_PHASE_FINISHED, "")
	return nil
}

// save writes the record over the revision that was read.
func (j *journey) save(ctx context.Context) error {
	var rev uint64
	var err error
	if j.rev == 0 {
		rev, err = j.Records.Create(ctx, j.key, j.rec)
	} else {
		rev, err = j.Records.Update(ctx, j.key, j.rec, j.rev)
	}
	switch {
	case err == nil:
		j.rev = rev
		return nil
	case errors.Is(err, ledger.ErrConflict):
		return errStale
	default:
		return queue.Retry(err)
	}
}
