package run

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/pullab/pullab/pkg/executor"
)

// Phase is how far a run is, as the ledger keeps it.
//
//	(none) ──▶ launching ──▶ running ──▶ collecting ──▶ finished
//	               ▲            │
//	               └─ reserved ◀┘ the lab failed; another attempt waits
type Phase string

const (
	// Reserved: the next attempt waits out its delay. Handle is the failed one's
	// machine, which is being stopped. Whoever gets
	// the message next moves it on. A first attempt starts in Launching, which
	// saves a write.
	Reserved Phase = "reserved"
	// Launching: Start is called or about to be; a machine may exist.
	Launching Phase = "launching"
	// Running: the machine exists and Handle names it.
	Running Phase = "running"
	// Collecting: Result is decided and will not change. The machine is being
	// stopped and the result published.
	Collecting Phase = "collecting"
	// Finished: the result is on PULLAB_RESULTS. The end; the bucket's age removes
	// the record, the reaper a machine that is left.
	Finished Phase = "finished"
)

// Record is the ledger's word on the run of one node, in bucket pullab_runs
// under the node's id. It is written before and after each effect.
type Record struct {
	// RunID is the name that the first plan chose; a later plan for the same node
	// runs under it.
	RunID   string `json:"run_id"`
	Attempt int    `json:"attempt"`
	Phase   Phase  `json:"phase"`
	// Executor and Handle of the attempt's machine.
	Executor string           `json:"executor"`
	Handle   *executor.Handle `json:"handle,omitempty"`
	// Started is when the first attempt began, AttemptStarted this one, Deadline
	// when its machine must be gone.
	Started        time.Time `json:"started"`
	AttemptStarted time.Time `json:"attempt_started,omitzero"`
	Deadline       time.Time `json:"deadline,omitzero"`
	// Owner works on the run. Epoch grows with each change of owner.
	Owner Owner `json:"owner"`
	Epoch int   `json:"epoch"`
	// Adoptions of this attempt: many mean that a runner dies of it.
	Adoptions int   `json:"adoptions,omitempty"`
	History   []Try `json:"history,omitempty"`
	// Result is the RunFinished as protojson, from Collecting on; Digest its
	// SHA-256 in hex.
	Result json.RawMessage `json:"result,omitempty"`
	Digest string          `json:"digest,omitempty"`
}

// Owner is a runner process.
type Owner struct {
	Host string `json:"host"`
	PID  int    `json:"pid"`
	// Token tells two processes apart that have the same number in two containers.
	Token string `json:"token"`
}

// Try is an attempt at which the lab failed.
type Try struct {
	Attempt int       `json:"attempt"`
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended"`
	// Reason is the LabError's word, Error its sentence.
	Reason string `json:"reason"`
	Error  string `json:"error"`
}

// Records is the runner's ledger; *ledger.Ledger[Record] is one.
type Records interface {
	Get(ctx context.Context, key string) (Record, uint64, error)
	Create(ctx context.Context, key string, r Record) (uint64, error)
	Update(ctx context.Context, key string, r Record, rev uint64) (uint64, error)
}

const runPrefix = "run_pulllab-"

// NodeOf reads the node id out of a run id,
// run_pulllab-<arch>-<node id>_<YYYYMMDD_HHMMSS>; empty when it is none.
func NodeOf(runID string) string {
	rest, ok := strings.CutPrefix(runID, runPrefix)
	_, rest, dash := strings.Cut(rest, "-")
	const stamp = len("_20060102_150405")
	if !ok || !dash || len(rest) <= stamp {
		return ""
	}
	node, when := rest[:len(rest)-stamp], rest[len(rest)-stamp:]
	if _, err := time.Parse("_20060102_150405", when); err != nil {
		return ""
	}
	return node
}
