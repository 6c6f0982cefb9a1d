package runner

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/runner/internal/run"
)

// tidyTime is what stopping the machine of an interrupted RunOne may take.
const tidyTime = 30 * time.Second

// RunOne runs one plan without a broker, all attempts of it. progress may be
// nil. When ctx ends its machine is stopped: without a ledger nobody could adopt
// it.
func RunOne(ctx context.Context, cfg Config, plan *pullabv1.RunPlanned, progress func(*pullabv1.RunProgress), opts ...Option) (*pullabv1.RunFinished, error) {
	if err := check(plan); err != nil {
		return nil, err
	}
	if len(opts) == 0 && plan.GetExecutor() != topology.None {
		// Only what the plan needs has to work on this machine.
		cfg.Runner.Executors = []string{plan.GetExecutor()}
	}
	d, _, err := driver(cfg, opts)
	if err != nil {
		return nil, err
	}
	var result *pullabv1.RunFinished
	d.Records = &memory{}
	d.Publish = func(_ context.Context, f *pullabv1.RunFinished) error { result = f; return nil }
	d.Tell = func(_ context.Context, p *pullabv1.RunProgress) {
		if progress != nil {
			progress(p)
		}
	}
	for {
		err := d.Do(ctx, plan)
		if err == nil {
			return result, nil
		}
		retry, ok := errors.AsType[*queue.RetryError](err)
		if ctx.Err() == nil && ok {
			err = backoff.Sleep(ctx, max(retry.After, time.Second))
			if err == nil {
				continue
			}
		}
		return nil, errors.Join(err, tidy(context.WithoutCancel(ctx), d, plan))
	}
}

// tidy stops what RunOne started.
func tidy(ctx context.Context, d *run.Driver, plan *pullabv1.RunPlanned) error {
	ex := d.Executors[plan.GetExecutor()]
	if ex == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tidyTime)
	defer cancel()
	machines, err := ex.List(ctx)
	for _, m := range machines {
		if m.RunID == plan.GetRunId() {
			zerolog.Ctx(ctx).Info().Str("machine", m.Handle.ID).Msg("interrupted: stopping the machine")
			err = errors.Join(err, ex.Stop(ctx, m.Handle))
		}
	}
	if err != nil {
		return fmt.Errorf("the machine of %s may still run, until its deadline: %w", plan.GetRunId(), err)
	}
	return nil
}

// memory keeps the one record of a run without a broker.
type memory struct {
	mu  sync.Mutex
	rec run.Record
	rev uint64
}

func (m *memory) Get(context.Context, string) (run.Record, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rec, m.rev, nil
}

func (m *memory) Create(ctx context.Context, key string, r run.Record) (uint64, error) {
	return m.Update(ctx, key, r, 0)
}

func (m *memory) Update(_ context.Context, _ string, r run.Record, rev uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if rev != m.rev {
		return 0, ledger.ErrConflict
	}
	m.rec, m.rev = r, rev+1
	return m.rev, nil
}
