// Package streams is the operator's command on the broker's streams, consumers
// and buckets.
package streams

import (
	"context"
	"fmt"

	"github.com/pullab/pullab/pkg/app"
	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/pkg/topology"
)

// Command compares and mends the streams, consumers and buckets.
type Command struct {
	Plan   Plan   `cmd:"" help:"Print what apply would create or change."`
	Apply  Apply  `cmd:"" help:"Create what is missing and change what differs. Deletes nothing."`
	Verify Verify `cmd:"" help:"Exit with 1 and the differences when the broker's assets are not pullab's."`
}

// busConfig is all that these commands read.
type busConfig struct {
	NATS config.NATS `section:"nats"`
}

func withBus(ctx context.Context, env *app.Env, do func(*bus.Bus, topology.Options) error) error {
	var cfg busConfig
	if err := env.Load(ctx, &cfg); err != nil {
		return err
	}
	b, err := bus.Connect(ctx, bus.Options{URL: cfg.NATS.URL, Name: "pullab-topology", CredsFile: cfg.NATS.CredsFile})
	if err != nil {
		return err
	}
	defer b.Close()
	return do(b, topology.Options{Replicas: cfg.NATS.Replicas})
}

// Plan is `pullab topology plan`.
type Plan struct{}

// Run prints one line per difference.
func (*Plan) Run(ctx context.Context, env *app.Env) error {
	return withBus(ctx, env, func(b *bus.Bus, o topology.Options) error {
		lines, err := topology.Plan(ctx, b, o)
		for _, l := range lines {
			fmt.Fprintln(env.Stdout, l)
		}
		if err == nil && len(lines) == 0 {
			fmt.Fprintln(env.Stdout, "nothing to do")
		}
		return err
	})
}

// Apply is `pullab topology apply`.
type Apply struct{}

// Run makes it so.
func (*Apply) Run(ctx context.Context, env *app.Env) error {
	return withBus(ctx, env, func(b *bus.Bus, o topology.Options) error { return topology.Apply(ctx, b, o) })
}

// Verify is `pullab topology verify`.
type Verify struct{}

// Run compares.
func (*Verify) Run(ctx context.Context, env *app.Env) error {
	return withBus(ctx, env, func(b *bus.Bus, o topology.Options) error { return topology.Verify(ctx, b, o) })
}
