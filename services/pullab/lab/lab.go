// Package lab is all four services in one process, over one broker. They still
// speak by messages only.
package lab

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/services/poller"
	"github.com/pullab/pullab/services/runner"
	"github.com/pullab/pullab/services/submitter"
	"github.com/pullab/pullab/services/translator"
)

// Config is the whole lab's: what each service reads, from one file.
type Config struct {
	Poller     poller.Config
	Translator translator.Config
	Runner     runner.Config
	Submitter  submitter.Config
}

// Lab is the services, built.
type Lab struct {
	stages []stage
}

// stage is a service as the lab drives it.
type stage struct {
	name string
	run  func(context.Context) error
	once func(context.Context) error
}

// Options are for tests and benchmarks.
type Options struct {
	Poller     []poller.Option
	Translator []translator.Option
	Runner     []runner.Option
	Submitter  []submitter.Option
}

// New builds the services over a broker that has pullab's topology.
func New(ctx context.Context, cfg Config, b *bus.Bus, o Options) (*Lab, error) {
	p, err := poller.New(ctx, cfg.Poller, b, o.Poller...)
	if err != nil {
		return nil, fmt.Errorf("poller: %w", err)
	}
	t, err := translator.New(ctx, cfg.Translator, b, o.Translator...)
	if err != nil {
		return nil, fmt.Errorf("translator: %w", err)
	}
	r, err := runner.New(ctx, cfg.Runner, b, o.Runner...)
	if err != nil {
		return nil, fmt.Errorf("runner: %w", err)
	}
	s, err := submitter.New(ctx, cfg.Submitter, b, o.Submitter...)
	if err != nil {
		return nil, fmt.Errorf("submitter: %w", err)
	}
	return &Lab{stages: []stage{
		{"poller", p.Run, p.Once},
		{"translator", t.Run, t.Once},
		{"runner", r.Run, r.Once},
		{"submitter", s.Run, s.Once},
	}}, nil
}

// Run runs every service until ctx ends, or until one of them fails: then the
// others are stopped, since a lab with three services loses nothing by waiting
// for a restart with four.
func (l *Lab) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range l.stages {
		g.Go(func() error {
			if err := s.run(ctx); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// Once polls once and takes what that offers, and what was left from before, all
// the way to the end: stage by stage, each until its queue is empty.
func (l *Lab) Once(ctx context.Context) error {
	for _, s := range l.stages {
		if err := s.once(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}
