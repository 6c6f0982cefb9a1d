// Package receipt keeps what is known of each result's reporting in the bucket
// pullab_receipts, one record per node.
package receipt

import (
	"context"
	"errors"
	"time"

	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/wire"
)

// Receipt is what is known of one node's reporting: the record under its id in
// pullab_receipts. The two sides write their own halves.
type Receipt struct {
	RunID string `json:"run_id"`
	KCIDB KCIDB  `json:"kcidb"`
	Node  Node   `json:"node"`
}

// States of a half; none yet is the empty string.
const (
	// Submitted: KCIDB has given a submission id; it is to be followed.
	Submitted = "submitted"
	// Processed: KCIDB has accepted the rows. Final.
	Processed = "processed"
	// Failed: the rows are in PULLAB_DEAD with the reason. Sending the letter
	// again starts anew.
	Failed = "failed"
	// Writing: a tree is being written, by writer, since At.
	Writing = "writing"
	// Written: the node is finished. Final.
	Written = "written"
	// Gone: the API does not know the node. Final.
	Gone = "gone"
	// Foreign: the node is claimed by somebody else; the result is in
	// PULLAB_DEAD.
	Foreign = "foreign"
)

// KCIDB is the half of the rows.
type KCIDB struct {
	State      string    `json:"state,omitempty"`
	Submission string    `json:"submission,omitempty"`
	Rows       int       `json:"rows,omitempty"`
	At         time.Time `json:"at,omitzero"`
	// Submissions counts how often the rows were sent.
	Submissions int    `json:"submissions,omitempty"`
	Reason      string `json:"reason,omitempty"`
}

// Node is the half of the node.
type Node struct {
	State    string    `json:"state,omitempty"`
	Writer   string    `json:"writer,omitempty"`
	Children int       `json:"children,omitempty"`
	At       time.Time `json:"at,omitzero"`
	Reason   string    `json:"reason,omitempty"`
}

// Record is one node's receipt as this process last saw it.
type Record struct {
	book *ledger.Ledger[Receipt]
	key  string
	// Run is the run that is being reported; the receipt may be another's.
	Run string
	Receipt
	rev uint64
}

// Open reads a node's receipt, empty when there is none yet.
func Open(ctx context.Context, book *ledger.Ledger[Receipt], node, run string) (*Record, error) {
	r := &Record{book: book, key: wire.Token(node), Run: run}
	return r, r.load(ctx)
}

func (r *Record) load(ctx context.Context) error {
	v, rev, err := r.book.Get(ctx, r.key)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return err
	}
	r.Receipt, r.rev = v, rev
	return nil
}

// Change writes what f makes of the receipt, again and again while the other
// side writes its half at the same moment.
func (r *Record) Change(ctx context.Context, f func(*Receipt)) error {
	for {
		next := r.Receipt
		next.RunID = r.Run
		f(&next)
		var err error
		var rev uint64
		if r.rev == 0 {
			rev, err = r.book.Create(ctx, r.key, next)
		} else {
			rev, err = r.book.Update(ctx, r.key, next, r.rev)
		}
		switch {
		case err == nil:
			r.Receipt, r.rev = next, rev
			return nil
		case !errors.Is(err, ledger.ErrConflict):
			return err
		}
		if err := r.load(ctx); err != nil {
			return err
		}
	}
}
