package submitter

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/services/submitter/internal/batch"
	"github.com/pullab/pullab/services/submitter/internal/finisher"
	"github.com/pullab/pullab/services/submitter/internal/intake"
	"github.com/pullab/pullab/services/submitter/internal/kcidb"
)

const (
	name      = "submitter"
	userAgent = "pullab-submitter"
	// backoffMax of a result whose far side is the API; results wait for ever.
	backoffMax = 5 * time.Minute
	// preflightTimeout of the question whether the token is good.
	preflightTimeout = 10 * time.Second
)

// Service is the submitter.
type Service struct {
	cfg    Config
	bus    *bus.Bus
	client *kcidb.Client
	lane   *batch.Lane
	kcidb  *kcidbSide
	node   *finisher.Finisher
}

type options struct {
	transport http.RoundTripper
	env       func(string) (string, bool)
}

// Option of New.
type Option func(*options)

// WithTransport sends every HTTP request through rt: tests put handlers there.
func WithTransport(rt http.RoundTripper) Option { return func(o *options) { o.transport = rt } }

// WithEnvironment looks the KCIDB credentials' variables up in env, as their
// precedence over the file cannot be seen in a Config. Without it only the
// Config counts.
func WithEnvironment(env func(string) (string, bool)) Option {
	return func(o *options) { o.env = env }
}

// New checks the configuration and opens the receipts. b must have pullab's
// topology. A missing token is an error in the guide's words.
func New(ctx context.Context, cfg Config, b *bus.Bus, opts ...Option) (*Service, error) {
	var o options
	for _, f := range opts {
		f(&o)
	}
	d, err := intake.Open(ctx, b)
	if err != nil {
		return nil, err
	}
	api, err := kernelci.New(kernelci.Options{
		BaseURI: cfg.KernelCI.APIBaseURI, Token: cfg.KernelCI.APIToken.Reveal(), Transport: o.transport, UserAgent: userAgent,
	})
	if err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, bus: b, kcidb: &kcidbSide{desk: d, origin: cfg.KernelCI.KCIDBOrigin}}
	s.node = finisher.New(d, api, cfg.Report.Node, cfg.KernelCI.APIToken != "")
	if !cfg.Report.KCIDB {
		return s, nil
	}
	target, err := kcidb.Resolve(o.env, cfg.KernelCI)
	for _, n := range target.Notes {
		zerolog.Ctx(ctx).Warn().Msg(n)
	}
	if err != nil {
		return nil, err
	}
	zerolog.Ctx(ctx).Info().Str("url", target.URL).Str("token_from", target.From).Str("origin", cfg.KernelCI.KCIDBOrigin).Msg("rows go to KCIDB")
	s.client = kcidb.NewClient(target, o.transport, cfg.Submitter.RequestTimeout, userAgent)
	s.lane = batch.New(s.client, cfg.Submitter.batch())
	s.kcidb.lane = s.lane
	return s, nil
}

// Run reports results until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	return s.work(ctx, true, (*queue.Inbox).Run)
}

// Once reports what is on the queue now, sees it accepted, and returns. While a
// far side is down it waits for it; end ctx to give up.
func (s *Service) Once(ctx context.Context) error {
	return s.work(ctx, false, (*queue.Inbox).Drain)
}

// work runs both sides and the lane between one of them and KCIDB.
func (s *Service) work(parent context.Context, preflight bool, take func(*queue.Inbox, context.Context, queue.Slots, queue.Handler) error) error {
	ctx, stop := context.WithCancelCause(parent)
	defer stop(nil)
	laneCtx, stopLane := context.WithCancel(ctx)
	var lane, sides sync.WaitGroup
	if s.lane != nil {
		lane.Go(func() { s.lane.Run(laneCtx) })
		if preflight {
			lane.Go(func() { s.preflight(laneCtx) })
		}
	}
	var errs [2]error
	side := func(i int, consumer string, slots int, h queue.Handler) {
		sides.Go(func() {
			in := queue.NewInbox(s.bus, queue.InboxConfig{Service: name, Stream: topology.Results, Consumer: consumer, BackoffMax: backoffMax})
			if errs[i] = take(in, ctx, queue.FixedSlots(slots), h); errs[i] != nil {
				stop(errs[i])
			}
		})
	}
	side(0, topology.SubmitterKCIDB, s.cfg.Submitter.Slots, s.kcidb.handle)
	side(1, topology.SubmitterNode, s.cfg.Submitter.NodeSlots, s.node.Handle)
	sides.Wait()
	stopLane()
	lane.Wait()
	return errors.Join(errs[:]...)
}

// preflight says at start what would else be learnt with the first result. It
// stops nothing: results wait.
func (s *Service) preflight(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, preflightTimeout)
	defer cancel()
	log := zerolog.Ctx(ctx)
	switch err := s.client.AuthTest(ctx); {
	case err == nil:
		log.Info().Msg("KCIDB accepts the token")
	case !errors.Is(context.Cause(ctx), context.Canceled):
		log.Error().Err(err).Msg("KCIDB does not accept the token now; results wait until it does")
	}
}
