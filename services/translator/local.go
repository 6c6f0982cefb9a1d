package translator

import (
	"context"
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/protobuf/types/known/timestamppb"

	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/translator/internal/catalog"
	"github.com/pullab/pullab/services/translator/internal/jobdef"
	"github.com/pullab/pullab/services/translator/internal/planner"
)

// Local is a definition that an operator runs by hand, without any API.
type Local struct {
	// Location is a file, a file:// URL, or an http(s) URL.
	Location string
	// Platform to run as, instead of the definition's; it must be in the
	// catalog. Empty takes the definition's.
	Platform string
	// Build is what the rows hang on; nil when nobody knows, and build_id is
	// then <kcidb origin>:local-<hex>.
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
	data, err := fetcher.Fetch(ctx, l.Location)
	if err != nil {
		return nil, fmt.Errorf("fetching the job definition: %w", err)
	}
	def, err := jobdef.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("reading the job definition: %w", err)
	}
	if len(def.Unknown) > 0 {
		zerolog.Ctx(ctx).Info().Strs("parts", def.Unknown).Msg(unusedParts)
	}
	if l.Platform != "" {
		def.Platform = l.Platform
	}
	settings := cfg.planner()
	_, settings.AllowFile = jobdef.LocalPath(l.Location)
	plan, err := planner.Plan(localJob(cfg, l, def, cat), def, cat, settings)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", translationFailed, err)
	}
	return plan, nil
}

func localJob(cfg Config, l Local, def *jobdef.Definition, cat *catalog.Catalog) planner.Job {
	now := time.Now()
	node := "local-" + randomHex()
	build := l.Build
	if build == nil {
		build = &pullabv1.Build{}
	}
	if build.GetBuildId() == "" {
		build.BuildId = cfg.KernelCI.KCIDBOrigin + ":" + node
	}
	p, _ := cat.Lookup(def.Platform)
	arch := planner.FileArch(p.Arch, def.Arch)
	name, location := localNames(l.Location)
	return planner.Job{
		Origin: &pullabv1.Origin{
			Runtime: cfg.KernelCI.RuntimeName, Platform: def.Platform, NodeId: node, NodeName: name,
			NodePath: []string{name}, JobDefinitionUrl: location,
			NodeCreated: timestamppb.New(now), OfferedAt: timestamppb.New(now),
		},
		RunID: planner.RunID(arch, node, now), Arch: arch, Build: build, Now: now,
	}
}

// localNames gives the job's name, from the definition's file name, and the URL
// of the definition.
func localNames(location string) (name, definition string) {
	definition = location
	if file, ok := jobdef.LocalPath(location); ok {
		location = filepath.ToSlash(file)
		if abs, err := filepath.Abs(file); err == nil {
			definition = (&url.URL{Scheme: "file", Path: filepath.ToSlash(abs)}).String()
		}
	} else if u, err := url.Parse(location); err == nil {
		location = u.Path
	}
	base := path.Base(location)
	return strings.TrimSuffix(base, path.Ext(base)), definition
}
