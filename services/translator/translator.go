package translator

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/protobuf/proto"

	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/translator/internal/admission"
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
	desk    *admission.Desk
	walker  *lineage.Walker
	fetcher *jobdef.Fetcher
	catalog *catalog.Catalog
	planner planner.Settings
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
	records, err := ledger.Open[admission.Record](ctx, b, topology.Admissions)
	if err != nil {
		return nil, fmt.Errorf("opening the ledger %s: %w", topology.Admissions, err)
	}
	return assemble(cfg, b, records, queue.NewOutbox(b, topology.Runs), opts...)
}

func assemble(cfg Config, b *bus.Bus, records admission.Ledger, out outbox, opts ...Option) (*Service, error) {
	o := optionsOf(opts)
	cat, err := catalog.Load(cfg.Translator.Catalog)
	if err != nil {
		return nil, err
	}
	api, err := kernelci.New(kernelci.Options{
		BaseURI: cfg.KernelCI.APIBaseURI, Token: cfg.KernelCI.APIToken.Reveal(), Transport: o.transport, UserAgent: userAgent,
		// A claim is no news: its event would make every poller look again.
		NoEvent: true,
	})
	if err != nil {
		return nil, fmt.Errorf("kernelci-api: %w", err)
	}
	return &Service{
		cfg: cfg,
		inbox: queue.NewInbox(b, queue.InboxConfig{
			Service: "translator", Stream: topology.Jobs, Consumer: topology.Translator,
			MaxDeliveries: maxDeliveries, BackoffMin: backoffMin, BackoffMax: backoffMax,
		}),
		slots: queue.FixedSlots(cfg.Translator.Concurrency),
		out:   out,
		desk: admission.NewDesk(api, records, admission.Settings{
			Claim: admission.Mode(cfg.Translator.Claim), HaveToken: cfg.KernelCI.APIToken != "",
			States: cfg.Translator.States, Runtime: cfg.KernelCI.RuntimeName, Lab: cfg.KernelCI.KCIDBOrigin, RetryClaim: backoffMax,
		}),
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
	s.desk.Announce(ctx)
}

// nodeID is a MongoDB ObjectId. Anything else would be a 400 from the API, and
// has no business in its URLs.
var nodeID = regexp.MustCompile(`^[0-9a-f]{24}$`)

// handle does the translator's verb on one offer.
func (s *Service) handle(ctx context.Context, d *queue.Delivery) error {
	offer, ok := d.Message.(*pullabv1.JobOffered)
	if !ok {
		return queue.Drop(fmt.Errorf("a %s is not a job offer: only the poller may publish to the jobs stream", d.Type))
	}
	origin := offer.GetOrigin()
	id := origin.GetNodeId()
	if !nodeID.MatchString(id) {
		return queue.Drop(fmt.Errorf("the offer names the node %.60q, which is no kernelci-api node id (24 hex digits)", id))
	}
	ctx = zerolog.Ctx(ctx).With().Str("node", id).Logger().WithContext(ctx)
	c, err := s.desk.Admit(ctx, origin, func(n *kernelci.Node) string {
		return planner.RunID(s.fileArch(origin, n), n.ID, time.Now())
	})
	if c == nil {
		return err
	}
	return s.plan(ctx, origin, d.Published, c)
}

// fileArch is known before the definition is read: the catalog's for the
// platform, or what the node says.
func (s *Service) fileArch(origin *pullabv1.Origin, node *kernelci.Node) string {
	// A platform that is not in the catalog has the zero arch.
	p, _ := s.catalog.Lookup(origin.GetPlatform())
	return planner.FileArch(p.Arch, node.Data.Arch)
}
