// Package runner runs plans on machines and publishes results: it takes
// RunPlanned from PULLAB_RUNS and puts RunFinished on PULLAB_RESULTS.
//
// A slot is reserved first, then exactly one plan is pulled for it. What happens
// then is in internal/run; what is reported of it in internal/verdict; where the
// files go in internal/logs; who stops forgotten machines in internal/reaper.
package runner

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"sync"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/executor"
	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/runner/internal/logs"
	"github.com/pullab/pullab/services/runner/internal/reaper"
	"github.com/pullab/pullab/services/runner/internal/run"
)

// refusals at a time: they need no machine, only the bus.
const refusals = 8

// Service is a running runner.
type Service struct {
	driver  *run.Driver
	reaper  *reaper.Reaper
	inboxes []inbox
}

type inbox struct {
	*queue.Inbox
	slots queue.Slots
}

type options struct {
	executors map[string]executor.Executor
	progress  func(*pullabv1.RunProgress)
	transport http.RoundTripper
	host      string
}

// Option changes how New builds a Service.
type Option func(*options)

// WithExecutors serves these, by the names in topology.Executors, instead of
// those in runner.executors.
func WithExecutors(m map[string]executor.Executor) Option {
	return func(o *options) { o.executors = m }
}

// WithProgress also calls f at every phase change. f must not block.
func WithProgress(f func(*pullabv1.RunProgress)) Option {
	return func(o *options) { o.progress = f }
}

// WithTransport uploads logs through t.
func WithTransport(t http.RoundTripper) Option {
	return func(o *options) { o.transport = t }
}

// WithHost is the name of this host in ledger and handles, instead of the
// machine's own.
func WithHost(name string) Option {
	return func(o *options) { o.host = name }
}

// New opens executors, ledger and inboxes.
func New(ctx context.Context, cfg Config, b *bus.Bus, opts ...Option) (*Service, error) {
	d, o, err := driver(cfg, opts)
	if err != nil {
		return nil, err
	}
	records, err := ledger.Open[run.Record](ctx, b, topology.RunLedger)
	if err != nil {
		return nil, err
	}
	rows, err := ledger.OpenBlobs(ctx, b, topology.ResultRows)
	if err != nil {
		return nil, err
	}
	results, progress := queue.NewOutbox(b, topology.Results), queue.NewOutbox(b, topology.Progress)
	d.Records, d.PutRows = records, rows.Put
	d.Publish = func(ctx context.Context, f *pullabv1.RunFinished) error {
		node := f.GetOrigin().GetNodeId()
		_, err := results.Publish(ctx, topology.ResultSubject(f.GetOrigin().GetRuntime(), node), node, f.GetRunId(), f)
		return err
	}
	d.Tell = func(ctx context.Context, p *pullabv1.RunProgress) {
		progress.Tell(ctx, topology.ProgressSubject(p.GetNodeId()), p.GetNodeId(), p)
		if o.progress != nil {
			o.progress(p)
		}
	}
	return &Service{
		driver: d, inboxes: inboxes(cfg.Runner, b, d),
		reaper: &reaper.Reaper{Executors: d.Executors, Get: records.Get, Host: d.Owner.Host},
	}, nil
}

// driver is the part that needs no bus.
func driver(cfg Config, opts []Option) (*run.Driver, *options, error) {
	var o options
	for _, f := range opts {
		f(&o)
	}
	var err error
	if o.host == "" {
		if o.host, err = os.Hostname(); err != nil {
			return nil, nil, fmt.Errorf("this host has no name: %w", err)
		}
	}
	if o.executors == nil {
		if o.executors, err = executors(cfg, o.host); err != nil {
			return nil, nil, err
		}
	}
	dir, err := cfg.Runner.logsDir()
	if err != nil {
		return nil, nil, err
	}
	files := logs.New(cfg.Logs, o.transport)
	return &run.Driver{
		Executors: o.executors, HostBound: hostBound, Logs: files, Scrub: files.Text, LogsDir: dir,
		Owner:    run.Owner{Host: o.host, PID: os.Getpid(), Token: rand.Text()},
		Attempts: cfg.Runner.Attempts, Backoff: backoff.Policy{Min: cfg.Runner.BackoffMin, Max: cfg.Runner.BackoffMax},
	}, &o, nil
}

// inboxes are one for every executor and arch, where the arches of an executor
// share its slots, and one for refusals.
func inboxes(s Settings, b *bus.Bus, d *run.Driver) []inbox {
	add := func(consumer string, slots queue.Slots) inbox {
		return inbox{queue.NewInbox(b, queue.InboxConfig{Service: "runner", Stream: topology.Runs, Consumer: consumer}), slots}
	}
	all := []inbox{add(topology.RunnerConsumer(topology.None, ""), queue.FixedSlots(refusals))}
	for _, name := range slices.Sorted(maps.Keys(d.Executors)) {
		slots := queue.FixedSlots(s.slots(name))
		for _, arch := range s.Arches {
			all = append(all, add(topology.RunnerConsumer(name, arch), slots))
		}
	}
	return all
}

// Run runs plans until ctx ends. Machines that still run then stay: whoever
// gets their messages next adopts them.
func (s *Service) Run(ctx context.Context) error {
	return s.each(ctx, func(ctx context.Context, in inbox) error { return in.Run(ctx, in.slots, s.handle) })
}

// Once runs the plans that are queued now, and returns when all of them are
// reported.
func (s *Service) Once(ctx context.Context) error {
	return s.each(ctx, func(ctx context.Context, in inbox) error { return in.Drain(ctx, in.slots, s.handle) })
}

// each serves all inboxes, the reaper beside them; the first error ends all.
func (s *Service) each(ctx context.Context, serve func(context.Context, inbox) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var inboxes, beside sync.WaitGroup
	beside.Go(func() { s.reaper.Run(ctx) })
	errs := make([]error, len(s.inboxes))
	for i, in := range s.inboxes {
		inboxes.Go(func() {
			if errs[i] = serve(ctx, in); errs[i] != nil {
				cancel()
			}
		})
	}
	inboxes.Wait()
	cancel()
	beside.Wait()
	return errors.Join(errs...)
}

// handle is the runner's verb.
func (s *Service) handle(ctx context.Context, d *queue.Delivery) error {
	plan, ok := d.Message.(*pullabv1.RunPlanned)
	if !ok {
		return queue.Drop(fmt.Errorf("%s on %s: the runner takes RunPlanned only", d.Type, d.Subject))
	}
	if err := check(plan); err != nil {
		return queue.Drop(err)
	}
	return s.driver.Do(ctx, plan)
}

// check refuses what cannot even be reported on.
func check(p *pullabv1.RunPlanned) error {
	switch {
	case p.GetOrigin().GetNodeId() == "":
		return errors.New("the plan names no node: there is nothing to report it to")
	case run.NodeOf(p.GetRunId()) != p.GetOrigin().GetNodeId():
		return fmt.Errorf("run id %q is not run_pulllab-<arch>-<node>_<time> for node %s", p.GetRunId(), p.GetOrigin().GetNodeId())
	case (p.GetExecutor() == topology.None) != (p.GetRefusal() != nil):
		return fmt.Errorf("run %s: a plan is a refusal exactly when its executor is %q", p.GetRunId(), topology.None)
	}
	return nil
}
