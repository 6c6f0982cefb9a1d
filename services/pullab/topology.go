package pullab

import (
	"context"
	"fmt"

	"github.com/pullab/pullab/pkg/app"
	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/pkg/topology"
)

// TopologyCommand compares and mends the streams, consumers and buckets.
type TopologyCommand struct {
	Plan   TopologyPlan   `cmd:"" help:"Print what apply would create or change."`
	Apply  TopologyApply  `cmd:"" help:"Create what is missing and change what differs. Deletes nothing."`
	Verify TopologyVerify `cmd:"" help:"Exit with 1 and the differences when the broker's assets are not pullab's."`
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

// TopologyPlan is `pullab topology plan`.
type TopologyPlan struct{}

// Run prints one line per difference.
func (*TopologyPlan) Run(ctx context.Context, env *app.Env) error {
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

// TopologyApply is `pullab topology apply`.
type TopologyApply struct{}

// Run makes it so.
func (*TopologyApply) Run(ctx context.Context, env *app.Env) error {
	return withBus(ctx, env, func(b *bus.Bus, o topology.Options) error { return topology.Apply(ctx, b, o) })
}

// TopologyVerify is `pullab topology verify`.
type TopologyVerify struct{}

// Run compares.
func (*TopologyVerify) Run(ctx context.Context, env *app.Env) error {
	return withBus(ctx, env, func(b *bus.Bus, o topology.Options) error { return topology.Verify(ctx, b, o) })
}
