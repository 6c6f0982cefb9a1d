package translator

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/protobuf/proto"

	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/services/translator/internal/catalog"
	"github.com/pullab/pullab/services/translator/internal/jobdef"
	"github.com/pullab/pullab/services/translator/internal/lineage"
	"github.com/pullab/pullab/services/translator/internal/planner"
)

const (
	userAgent = "pullab-translator"
	// maxDeliveries of one offer: with a minute between the last ones, more
	// than the 6 hours that KernelCI keeps a job open.
	maxDeliveries = 400
	backoffMin    = time.Second
	backoffMax    = time.Minute
	// chainNodes and chainTTL bound the memory of kbuilds and checkouts: about
	// 2 KiB each.
	chainNodes = 4096
	chainTTL   = 10 * time.Minute
)

// nodes is the part of kernelci.Client that admission needs.
type nodes interface {
	Node(ctx context.Context, id string) (*kernelci.Node, error)
	Update(ctx context.Context, id string, fields map[string]any) (*kernelci.Node, error)
}

// outbox is the part of queue.Outbox that is used.
type outbox interface {
	Publish(ctx context.Context, subject, node, id string, m proto.Message) (fresh bool, err error)
}

// Service is the translator.
type Service struct {
	cfg     Config
	inbox   *queue.Inbox
	slots   queue.Slots
	out     outbox
	records records
	api     nodes
	walker  *lineage.Walker
	fetcher *jobdef.Fetcher
	catalog *catalog.Catalog
	planner planner.Settings
	// warnUnclaimed is for the one warning that jobs run without claims.
	warnUnclaimed sync.Once
}

type options struct{ transport http.RoundTripper }

// Option of New and PlanLocal.
type Option func(*options)

// WithTransport sends every HTTP request through rt: tests put handlers there.
func WithTransport(rt http.RoundTripper) Option { return func(o *options) { o.transport = rt } }

func optionsOf(opts []Option) options {
	var o options
	for _, f := range opts {
		f(&o)
	}
	return o
}

// New checks the configuration and opens the ledger. b must have pullab's
// topology.
func New(ctx context.Context, cfg Config, b *bus.Bus, opts ...Option) (*Service, error) {
	o := optionsOf(opts)
	cat, err := catalog.Load(cfg.Translator.Catalog)
	if err != nil {
		return nil, err
	}
	api, err := kernelci.New(kernelci.Options{
		BaseURI: cfg.KernelCI.APIBaseURI, Token: cfg.KernelCI.APIToken.Reveal(), Transport: o.transport, UserAgent: userAgent,
	})
	if err != nil {
		return nil, fmt.Errorf("kernelci-api: %w", err)
	}
	admissions, err := ledger.Open[Admission](ctx, b, topology.Admissions)
	if err != nil {
		return nil, fmt.Errorf("opening the ledger %s: %w", topology.Admissions, err)
	}
	return &Service{
		cfg: cfg,
		inbox: queue.NewInbox(b, queue.InboxConfig{
			Service: "translator", Stream: topology.Jobs, Consumer: topology.Translator,
			MaxDeliveries: maxDeliveries, BackoffMin: backoffMin, BackoffMax: backoffMax,
		}),
		slots:   queue.FixedSlots(cfg.Translator.Concurrency),
		out:     queue.NewOutbox(b, topology.Runs),
		records: admissions,
		api:     api,
		walker:  lineage.NewWalker(api, chainNodes, chainTTL),
		fetcher: jobdef.NewFetcher(jobdef.Options{Transport: o.transport, Timeout: cfg.Translator.FetchTimeout, UserAgent: userAgent}),
		catalog: cat,
		planner: cfg.planner(),
	}, nil
}

// Run translates until ctx ends; nil on a clean stop, with every job in hand
// finished or given back.
func (s *Service) Run(ctx context.Context) error {
	s.announce(ctx)
	return s.inbox.Run(ctx, s.slots, s.handle)
}

// Once translates what is offered now and returns.
func (s *Service) Once(ctx context.Context) error {
	s.announce(ctx)
	return s.inbox.Drain(ctx, s.slots, s.handle)
}

func (s *Service) announce(ctx context.Context) {
	zerolog.Ctx(ctx).Info().Strs("platforms", s.catalog.Names()).Str("claim", s.cfg.Translator.Claim).Msg("Translating offered jobs")
	if s.cfg.Translator.Claim == ClaimAuto && s.cfg.KernelCI.APIToken == "" {
		s.unclaimed(ctx, noToken)
	}
}

const noToken = "there is no kernelci.api_token"

func (s *Service) unclaimed(ctx context.Context, why string) {
	s.warnUnclaimed.Do(func() {
		zerolog.Ctx(ctx).Warn().Msgf("Jobs are run without a claim, because %s: another lab of runtime %s may run them too. "+
			"Set translator.claim to off to silence this, or to required to wait for a working token.", why, s.cfg.KernelCI.RuntimeName)
	})
}
