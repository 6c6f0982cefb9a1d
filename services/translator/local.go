package translator

import (
	"context"
	"fmt"

	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/translator/internal/catalog"
	"github.com/pullab/pullab/services/translator/internal/jobdef"
	"github.com/pullab/pullab/services/translator/internal/local"
)

// Local is a definition that an operator runs by hand, without any API.
type Local struct {
	// Location is a file, a file:// URL, or an http(s) URL.
	Location string
	// Platform to run as, instead of the definition's; it must be in the
	// catalog. Empty takes the definition's.
	Platform string
	// Build is what the rows hang on; where it has no build_id, that is
	// <kcidb origin>:local-<hex>. May be nil.
	Build *pullabv1.Build
}

// PlanLocal plans one definition. The plan's node is local-<hex>; it has no
// claim and nobody waits for it. Artifacts may be file:// URLs when the definition
// itself is a file. A definition that cannot be run is an error, not a refusal:
// the operator reads it.
func PlanLocal(ctx context.Context, cfg Config, l Local, opts ...Option) (*pullabv1.RunPlanned, error) {
	cat, err := catalog.Load(cfg.Translator.Catalog)
	if err != nil {
		return nil, err
	}
	fetcher := jobdef.NewFetcher(jobdef.Options{
		Transport: optionsOf(opts).transport, Timeout: cfg.Translator.FetchTimeout, UserAgent: userAgent, AllowFile: true,
	})
	plan, err := local.Plan(ctx, fetcher, cat, cfg.planner(), local.Request{
		Location: l.Location, Runtime: cfg.KernelCI.RuntimeName, Platform: l.Platform, Build: l.Build,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", translationFailed, err)
	}
	return plan, nil
}
