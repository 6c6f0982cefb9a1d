package submitter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/services/submitter/internal/batch"
	"github.com/pullab/pullab/services/submitter/internal/intake"
	"github.com/pullab/pullab/services/submitter/internal/kcidb"
	"github.com/pullab/pullab/services/submitter/internal/receipt"
	"github.com/pullab/pullab/services/submitter/internal/rows"
)

// kcidbSide sends rows.
type kcidbSide struct {
	desk *intake.Desk
	// lane is nil when report.kcidb is off.
	lane   *batch.Lane
	origin string
}

func (s *kcidbSide) handle(ctx context.Context, d *queue.Delivery) error {
	fin, err := intake.Finished(d)
	if err != nil || intake.Local(ctx, fin) || s.lane == nil {
		return err
	}
	r, err := s.desk.Receipt(ctx, fin)
	if err != nil {
		return err
	}
	if r.KCIDB.State == receipt.Processed {
		if r.RunID != r.Run {
			zerolog.Ctx(ctx).Warn().Str("first", r.RunID).Str("run", r.Run).Msg("a second result for one node; KCIDB keeps the first")
		}
		return nil
	}
	tests, err := s.desk.Rows(ctx, fin)
	var lost *intake.RowsLostError
	if errors.As(err, &lost) {
		return s.fail(ctx, r, err)
	}
	if err != nil {
		return err
	}
	packed, err := kcidb.Pack(rows.Build(s.origin, fin, tests))
	if err != nil {
		return s.fail(ctx, r, fmt.Errorf("the rows of node %s were not sent: %w", fin.GetOrigin().GetNodeId(), err))
	}
	earlier := ""
	if r.KCIDB.State == receipt.Submitted && r.RunID == r.Run {
		earlier = r.KCIDB.Submission
	}
	err = s.lane.Deliver(ctx, batch.Job{Node: fin.GetOrigin().GetNodeId(), Rows: packed}, earlier, func(ctx context.Context, id string) error {
		return r.Change(ctx, func(rec *receipt.Receipt) {
			rec.KCIDB = receipt.KCIDB{State: receipt.Submitted, Submission: id, Rows: packed.Count, At: time.Now().UTC(), Submissions: rec.KCIDB.Submissions + 1}
		})
	})
	var guilty *batch.Guilty
	switch {
	case errors.As(err, &guilty):
		return s.fail(ctx, r, err)
	case err != nil:
		return err
	}
	zerolog.Ctx(ctx).Info().Str("node", fin.GetOrigin().GetNodeId()).Str("submission", r.KCIDB.Submission).Int("rows", packed.Count).Msg("rows accepted by KCIDB")
	return r.Change(ctx, func(rec *receipt.Receipt) { rec.KCIDB.State, rec.KCIDB.At = receipt.Processed, time.Now().UTC() })
}

// fail gives the result to people, with the reason.
func (s *kcidbSide) fail(ctx context.Context, r *receipt.Record, reason error) error {
	err := r.Change(ctx, func(rec *receipt.Receipt) {
		rec.KCIDB.State, rec.KCIDB.Reason, rec.KCIDB.At = receipt.Failed, reason.Error(), time.Now().UTC()
	})
	if err != nil {
		return err
	}
	return queue.Drop(reason)
}
