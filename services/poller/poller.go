package poller

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/services/poller/internal/census"
	"github.com/pullab/pullab/services/poller/internal/cursor"
	"github.com/pullab/pullab/services/poller/internal/feed"
	"github.com/pullab/pullab/services/poller/internal/judge"
	"github.com/pullab/pullab/services/poller/internal/offers"
	"github.com/pullab/pullab/services/poller/internal/pace"
	"github.com/pullab/pullab/services/poller/internal/preflight"
)

const userAgent = "pullab-poller"

// Service is the poller.
type Service struct {
	cfg    Config
	api    *kernelci.Client
	rules  judge.Rules
	desk   *offers.Desk
	cursor *cursor.Keeper
	feed   *feed.Feed
	// count of the reading under way; whether any event was ever ours, and when
	// the operator was told that none was. They belong to the goroutine that
	// polls.
	count   census.Count
	matched bool
	hinted  time.Time
}

type options struct{ transport http.RoundTripper }

// Option of New.
type Option func(*options)

// WithTransport sends every HTTP request through rt: tests put handlers there.
func WithTransport(rt http.RoundTripper) Option { return func(o *options) { o.transport = rt } }

// New checks the configuration and opens ledger and cursor. b must have
// pullab's topology.
func New(ctx context.Context, cfg Config, b *bus.Bus, opts ...Option) (*Service, error) {
	var o options
	for _, f := range opts {
		f(&o)
	}
	if err := errors.Join(cfg.Validate(), cfg.Poller.Validate()); err != nil {
		return nil, err
	}
	api, err := kernelci.New(kernelci.Options{
		BaseURI: cfg.KernelCI.APIBaseURI, Token: cfg.KernelCI.APIToken.Reveal(),
		Transport: o.transport, Timeout: cfg.Poller.RequestTimeout, UserAgent: userAgent,
	})
	if err != nil {
		return nil, err
	}
	s := &Service{
		cfg: cfg, api: api,
		rules: judge.Rules{
			Runtime: cfg.KernelCI.RuntimeName, Platforms: cfg.KernelCI.Platforms,
			State: cfg.Poller.State, Lab: cfg.KernelCI.KCIDBOrigin, MinRuntime: cfg.Poller.MinRuntime,
		},
		feed: feed.New(api, kernelci.EventQuery{
			State: cfg.Poller.State, Kind: "job", Channel: "node", Recursive: true, Limit: cfg.Poller.Limit,
		}, cfg.Poller.Overlap),
	}
	return s, s.open(ctx, b)
}

// open the ledger and the cursor.
func (s *Service) open(ctx context.Context, b *bus.Bus) error {
	records, err := ledger.Open[offers.Record](ctx, b, topology.Offers)
	if err != nil {
		return err
	}
	cursors, err := ledger.Open[cursor.Record](ctx, b, topology.Cursor)
	if err != nil {
		return err
	}
	s.desk = offers.NewDesk(records, queue.NewOutbox(b, topology.Jobs), s.api.BaseURI(), s.cfg.Poller.ReofferAfter)
	store := cursor.NewStore(cursors, cursor.Key(s.api.Host(), s.rules.Runtime, s.rules.Platforms))
	s.cursor = cursor.NewKeeper(store, s.api, s.cfg.Poller.Lookback, func(ctx context.Context) error {
		_, _, err := s.api.Nodes(ctx, s.filter(), 1, 0)
		if errors.As(err, new(*kernelci.ItemsError)) {
			return nil
		}
		return err
	})
	if file := s.cfg.KernelCI.CursorFile; file != "" {
		return s.cursor.SeedFrom(ctx, file)
	}
	return nil
}

// Run polls and sweeps until ctx ends; nil on a clean stop. Errors of the API
// and the broker are waited out.
func (s *Service) Run(ctx context.Context) error {
	s.announce(ctx)
	var wg sync.WaitGroup
	if s.cfg.Poller.SweepInterval > 0 {
		wg.Go(func() { pace.Every(ctx, "Sweep", s.cfg.Poller.SweepInterval, s.sweep) })
	}
	pace.Every(ctx, "Poll", time.Duration(s.cfg.KernelCI.PollIntervalSec)*time.Second, s.poll)
	wg.Wait()
	return nil
}

// Once sweeps and polls once. An error that may pass is tried a few times; a stop
// by ctx is none.
func (s *Service) Once(ctx context.Context) error {
	s.announce(ctx)
	var errs []error
	if s.cfg.Poller.SweepInterval > 0 {
		errs = append(errs, pace.Once(ctx, "Sweep", s.sweep))
	}
	errs = append(errs, pace.Once(ctx, "Poll", s.poll))
	return errors.Join(errs...)
}

func (s *Service) announce(ctx context.Context) {
	platforms := s.rules.Platforms
	if len(platforms) == 0 {
		platforms = []string{"all"}
	}
	zerolog.Ctx(ctx).Info().Str("api", s.api.BaseURI()).Str("runtime", s.rules.Runtime).Strs("platforms", platforms).
		Str("state", s.rules.State).Int("poll_interval_sec", s.cfg.KernelCI.PollIntervalSec).Msg("Polling for pull-lab jobs")
	preflight.Check(ctx, s.api, s.cfg.KernelCI.APIToken != "", s.rules.Runtime)
}

// filter of the sweep (kernelci-wire.md 1.5).
func (s *Service) filter() url.Values {
	return url.Values{
		"kind": {"job"}, "state": {s.rules.State}, "data.runtime": {s.rules.Runtime}, "data.job_id": {"null"},
	}
}

// job is a node, judged as it is now by the API's time. Before the API's first
// answer with a Date that is this machine's: only the time that is left for the
// job, and the times in its record, are measured by it.
func (s *Service) job(n *kernelci.Node, event string) offers.Job {
	now, known := s.api.Now()
	if !known {
		now = time.Now().UTC()
	}
	return offers.Job{Node: n, Event: event, Now: now, Verdict: s.rules.Judge(n, now)}
}
