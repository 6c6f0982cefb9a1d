package submitter

import (
	"errors"
	"fmt"
	"time"

	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/services/submitter/internal/batch"
	"github.com/pullab/pullab/services/submitter/internal/finisher"
)

// Config of the submitter.
type Config struct {
	KernelCI  config.KernelCI `section:"kernelci"`
	NATS      config.NATS     `section:"nats"`
	Report    Report          `section:"report"`
	Submitter Settings        `section:"submitter"`
}

// Report says where results go.
type Report struct {
	KCIDB bool   `key:"kcidb" env:"PULLAB_REPORT_KCIDB" default:"true" help:"Whether rows are sent to KCIDB. With report.node too, KernelCI's own bridge sends the same results once more under its origin, and the dashboard's tree pages count such jobs twice."`
	Node  string `key:"node" env:"PULLAB_REPORT_NODE" default:"auto" help:"Whether the job's node in kernelci-api is finished with result, log and tree. auto: where the token may edit the runtime's nodes, by /whoami. \"on\": wait until it may. \"off\": never. (In YAML on and off need their quotes.)"`
}

// Validate checks the choice.
func (r Report) Validate() error {
	switch r.Node {
	case finisher.On, finisher.Off, finisher.Auto:
		return nil
	}
	return fmt.Errorf("report.node is %q: write on, off or auto", r.Node)
}

// Settings are the submitter's own section.
type Settings struct {
	BatchRows      int           `key:"batch_rows" env:"PULLAB_BATCH_ROWS" default:"1000" help:"Rows that one submission holds at most. One job's rows are never torn apart."`
	BatchBytes     int           `key:"batch_bytes" env:"PULLAB_BATCH_BYTES" default:"4194304" help:"Bytes of rows that one submission holds at most, unless one job alone has more."`
	BatchAge       time.Duration `key:"batch_age" env:"PULLAB_BATCH_AGE" default:"250ms" help:"How long a result waits for others to be sent with it."`
	StatusPoll     time.Duration `key:"status_poll" env:"PULLAB_STATUS_POLL" default:"250ms" help:"Pause before the first look at a submission's status. It doubles up to a minute."`
	ResubmitAfter  time.Duration `key:"resubmit_after" env:"PULLAB_RESUBMIT_AFTER" default:"30s" help:"Pause before a failed submission is sent again. For a job that fails alone it doubles up to an hour."`
	NotFoundAfter  time.Duration `key:"not_found_after" env:"PULLAB_NOT_FOUND_AFTER" default:"10m" help:"For how long KCIDB may not know a submission before it is sent again."`
	ConvictAfter   time.Duration `key:"convict_after" env:"PULLAB_CONVICT_AFTER" default:"24h" help:"For how long a job's rows may fail on their own, while KCIDB processes nothing else, before they are given up. While it does process others, the second failure is enough."`
	RequestTimeout time.Duration `key:"request_timeout" env:"PULLAB_SUBMIT_TIMEOUT" default:"60s" help:"Time for one request to KCIDB, upload included."`
	Slots          int           `key:"slots" env:"PULLAB_SUBMITTER_SLOTS" default:"512" help:"Results that are on their way to KCIDB at the same time."`
	NodeSlots      int           `key:"node_slots" env:"PULLAB_SUBMITTER_NODE_SLOTS" default:"16" help:"Nodes that are written at the same time."`
}

// maxSlots is half of what the broker lets one consumer have unacknowledged; the
// other half is for results that wait for a retry.
const maxSlots = 2000

// Validate checks the limits.
func (s Settings) Validate() error {
	var errs []error
	for _, n := range []struct {
		key              string
		value, low, high int
	}{
		{"batch_rows", s.BatchRows, 1, 10_000}, {"batch_bytes", s.BatchBytes, 1, 256 << 20},
		{"slots", s.Slots, 1, maxSlots}, {"node_slots", s.NodeSlots, 1, maxSlots},
	} {
		if n.value < n.low || n.value > n.high {
			errs = append(errs, fmt.Errorf("submitter.%s is %d: it must be between %d and %d", n.key, n.value, n.low, n.high))
		}
	}
	for _, d := range []struct {
		key        string
		value, low time.Duration
	}{
		{"batch_age", s.BatchAge, 0}, {"status_poll", s.StatusPoll, time.Millisecond},
		{"resubmit_after", s.ResubmitAfter, time.Millisecond}, {"not_found_after", s.NotFoundAfter, 0},
		{"convict_after", s.ConvictAfter, 0}, {"request_timeout", s.RequestTimeout, time.Millisecond},
	} {
		if d.value < d.low {
			errs = append(errs, fmt.Errorf("submitter.%s is %s: it must be at least %s", d.key, d.value, d.low))
		}
	}
	return errors.Join(errs...)
}

// maxOrigin is the width of the dashboard's column (kernelci-wire.md 5.4).
const maxOrigin = 100

// Validate checks what several sections say together.
func (c Config) Validate() error {
	if c.Report.KCIDB && len(c.KernelCI.KCIDBOrigin) > maxOrigin {
		return fmt.Errorf("kernelci.kcidb_origin has %d characters: KCIDB takes %d", len(c.KernelCI.KCIDBOrigin), maxOrigin)
	}
	if c.Report.Node == finisher.On && c.KernelCI.APIToken == "" {
		return errors.New(`report.node is "on", but there is no kernelci.api_token to write nodes with: give one (KERNELCI_API_TOKEN) or set report.node to auto`)
	}
	return nil
}

func (s Settings) batch() batch.Settings {
	return batch.Settings{
		Rows: s.BatchRows, Bytes: s.BatchBytes, Age: s.BatchAge, Poll: s.StatusPoll,
		Resubmit: s.ResubmitAfter, NotFound: s.NotFoundAfter, ConvictAfter: s.ConvictAfter,
	}
}
