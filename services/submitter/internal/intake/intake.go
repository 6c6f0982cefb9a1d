// Package intake takes results off the queue for both sides of the submitter:
// whether they are to be reported, their receipt, their rows.
package intake

import (
	"context"
	"errors"
	"fmt"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/pkg/wire"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/submitter/internal/receipt"
)

// Desk has the submitter's records.
type Desk struct {
	Receipts *ledger.Ledger[receipt.Receipt]
	Blobs    *ledger.Blobs
}

// Open the buckets that topology declared.
func Open(ctx context.Context, b *bus.Bus) (*Desk, error) {
	receipts, err := ledger.Open[receipt.Receipt](ctx, b, topology.Receipts)
	if err != nil {
		return nil, err
	}
	blobs, err := ledger.OpenBlobs(ctx, b, topology.ResultRows)
	if err != nil {
		return nil, err
	}
	return &Desk{Receipts: receipts, Blobs: blobs}, nil
}

// Finished is the message, which nobody can report without a node.
func Finished(d *queue.Delivery) (*pullabv1.RunFinished, error) {
	fin, ok := d.Message.(*pullabv1.RunFinished)
	if !ok {
		return nil, queue.Drop(fmt.Errorf("a %s on %s: only results belong there", d.Type, d.Subject))
	}
	if fin.GetOrigin().GetNodeId() == "" || fin.GetRunId() == "" {
		return nil, queue.Drop(errors.New("a result without a node id or run id cannot be reported"))
	}
	return fin, nil
}

// Local runs come from no API: there is nobody to report them to.
func Local(ctx context.Context, fin *pullabv1.RunFinished) bool {
	if fin.GetOrigin().GetApiBaseUri() != "" {
		return false
	}
	zerolog.Ctx(ctx).Info().Str("run", fin.GetRunId()).Msg("a run of no API; not reported")
	return true
}

// Receipt of a result.
func (k *Desk) Receipt(ctx context.Context, fin *pullabv1.RunFinished) (*receipt.Record, error) {
	return receipt.Open(ctx, k.Receipts, fin.GetOrigin().GetNodeId(), fin.GetRunId())
}

// RowsLostError: the rows of a result that were stored apart cannot be had.
type RowsLostError struct {
	object string
	err    error
}

func (e *RowsLostError) Error() string {
	return fmt.Sprintf("the rows of this result are lost: object %s: %v", e.object, e.err)
}

func (e *RowsLostError) Unwrap() error { return e.err }

// Rows gives a result's rows, wherever they are; *RowsLostError when they are
// nowhere.
func (k *Desk) Rows(ctx context.Context, fin *pullabv1.RunFinished) ([]*pullabv1.TestRow, error) {
	name := fin.GetRowsObject()
	if name == "" {
		return fin.GetRows(), nil
	}
	b, err := k.Blobs.Get(ctx, name)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, &RowsLostError{name, err}
	}
	if err != nil {
		return nil, err
	}
	apart := &pullabv1.RunRows{}
	if err := wire.DecodeInto(b, apart); err != nil {
		return nil, &RowsLostError{name, err}
	}
	return apart.GetRows(), nil
}

// Interruptible keeps a request that was cut off by the end of ctx from being
// taken for a failure of the far side.
func Interruptible(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
