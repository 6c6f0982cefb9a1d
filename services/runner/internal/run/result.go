package run

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pullab/pullab/pkg/executor"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/pkg/wire"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/runner/internal/verdict"
)

// maxInside is the largest result that keeps its rows. It is below
// wire.MaxPayload because the ledger's record, which holds the result too, must
// not be larger than that either: a quarter is left for the rest of the record.
const maxInside = wire.MaxPayload / 4 * 3

// finished is the result's frame around what was judged.
func (j *journey) finished(v verdict.Judged) *pullabv1.RunFinished {
	p := j.plan
	started := j.rec.AttemptStarted
	if started.IsZero() {
		started = j.rec.Started
	}
	f := &pullabv1.RunFinished{
		Origin: p.GetOrigin(), RunId: j.rec.RunID, JobId: p.GetJobId(), Build: p.GetBuild(), Executor: p.GetExecutor(), Arch: p.GetArch(),
		Attempt: int32(j.rec.Attempt), Verdict: v.Verdict, Rows: v.Rows,
		StartedAt: timestamppb.New(started), FinishedAt: timestamppb.Now(),
	}
	if p.GetExecutor() == topology.None {
		f.Attempt = 0
	}
	return f
}

// seal decides the result: from now on the record has it, and nothing else is
// ever published for this run. The caller saves the record.
func (j *journey) seal(ctx context.Context, f *pullabv1.RunFinished) error {
	b, err := wire.Encode(f)
	if err != nil {
		return queue.Drop(err)
	}
	if len(b) > maxInside && j.PutRows != nil && len(f.GetRows()) > 0 {
		if b, err = j.apart(ctx, f); err != nil {
			return err
		}
	}
	sum := sha256.Sum256(b)
	j.rec.Phase, j.rec.Result, j.rec.Digest = Collecting, b, hex.EncodeToString(sum[:])
	return nil
}

// apart moves the rows to the object store.
func (j *journey) apart(ctx context.Context, f *pullabv1.RunFinished) ([]byte, error) {
	rows, err := wire.Encode(&pullabv1.RunRows{Rows: f.GetRows()})
	if err != nil {
		return nil, queue.Drop(err)
	}
	if err := j.PutRows(ctx, f.GetRunId(), bytes.NewReader(rows)); err != nil {
		return nil, queue.Retry(fmt.Errorf("storing %d rows: %w", len(f.GetRows()), err))
	}
	f.RowsObject, f.Rows = f.GetRunId(), nil
	b, err := wire.Encode(f)
	if err != nil {
		return nil, queue.Drop(err)
	}
	return b, nil
}

// publish puts the recorded result on the bus. Its id is the run's, so that
// doing it again does no harm.
func (j *journey) publish(ctx context.Context) error {
	f := &pullabv1.RunFinished{}
	if err := wire.DecodeInto(j.rec.Result, f); err != nil {
		return queue.Drop(fmt.Errorf("the ledger's result of run %s is not readable: %w", j.rec.RunID, err))
	}
	if err := j.Publish(ctx, f); err != nil {
		return queue.Retry(err)
	}
	zerolog.Ctx(ctx).Info().Str("result", strings.ToLower(strings.TrimPrefix(f.GetVerdict().GetResult().String(), "RESULT_"))).
		Str("error", f.GetVerdict().GetErrorMsg()).Int32("attempt", f.GetAttempt()).Msg("result published")
	return nil
}

// progress is what the executor tells through.
func (j *journey) progress(ctx context.Context) executor.Progress {
	return func(phase pullabv1.RunPhase, detail string) { j.tell(ctx, phase, detail) }
}

// tell passes a phase change on: every new phase, and of details within a
// phase not more than one per progressGap.
func (j *journey) tell(ctx context.Context, phase pullabv1.RunPhase, detail string) {
	now := time.Now()
	p := &pullabv1.RunProgress{
		NodeId: j.plan.GetOrigin().GetNodeId(), RunId: j.rec.RunID, Attempt: int32(j.rec.Attempt), Phase: phase,
		Detail: strings.ToValidUTF8(detail, "\uFFFD"), At: timestamppb.New(now), Executor: j.rec.Executor,
	}
	if left := j.rec.Deadline.Sub(now); left > 0 {
		p.BudgetS = int32(min(left/time.Second, 1<<31-1))
	}
	j.mu.Lock()
	last := j.last
	if last != nil && last.GetPhase() == phase && (last.GetDetail() == detail || now.Sub(last.GetAt().AsTime()) < progressGap) {
		j.mu.Unlock()
		return
	}
	j.last = p
	j.mu.Unlock()
	j.Tell(ctx, p)
}
