// Package local plans a definition that an operator runs by hand, without any
// API: a made-up job node, and nobody who waits for the result.
package local

import (
	"context"
	"crypto/rand"
	"encoding/hex"
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

// Request is what to plan.
type Request struct {
	// Location is a file, a file:// URL, or an http(s) URL.
	Location string
	// Runtime to report under.
	Runtime string
	// Platform replaces the definition's, when it is not empty.
	Platform string
	// Build may be nil.
	Build *pullabv1.Build
}

// Plan reads the definition and plans it. Artifacts may be file:// URLs when the
// definition itself is a file.
func Plan(ctx context.Context, f *jobdef.Fetcher, cat *catalog.Catalog, s planner.Settings, r Request) (*pullabv1.RunPlanned, error) {
	def, err := f.Read(ctx, r.Location)
	if err != nil {
		return nil, err
	}
	if len(def.Unknown) > 0 {
		zerolog.Ctx(ctx).Info().Strs("parts", def.Unknown).Msg(jobdef.UnusedParts)
	}
	if r.Platform != "" {
		def.Platform = r.Platform
	}
	_, s.AllowFile = jobdef.LocalPath(r.Location)
	return planner.Plan(job(r, def, cat, s.KCIDBOrigin), def, cat, s)
}

func job(r Request, def *jobdef.Definition, cat *catalog.Catalog, origin string) planner.Job {
	now := time.Now()
	node := nodeID()
	build := r.Build
	if build == nil {
		build = &pullabv1.Build{}
	}
	if build.GetBuildId() == "" {
		build.BuildId = origin + ":" + node
	}
	// A platform that is not in the catalog has the zero arch.
	p, _ := cat.Lookup(def.Platform)
	arch := planner.FileArch(p.Arch, def.Arch)
	name, location := names(r.Location)
	return planner.Job{
		Origin: &pullabv1.Origin{
			Runtime: r.Runtime, Platform: def.Platform, NodeId: node, NodeName: name, NodePath: []string{name},
			JobDefinitionUrl: location, NodeCreated: timestamppb.New(now), OfferedAt: timestamppb.New(now),
		},
		RunID: planner.RunID(arch, node, now), Arch: arch, Build: build, Now: now,
	}
}

func nodeID() string {
	b := make([]byte, 12)
	// crypto/rand.Read never fails: it ends the process instead.
	_, _ = rand.Read(b)
	return "local-" + hex.EncodeToString(b)
}

// names gives the job's name, from the definition's file name, and the URL of
// the definition.
func names(location string) (name, definition string) {
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
