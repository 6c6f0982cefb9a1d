package runner

import (
	"context"

	"github.com/pullab/pullab/pkg/app"
)

// Command is the runner as a program and as a subcommand.
type Command struct {
	Once bool `help:"Run what is queued now, then exit."`
}

// Run loads the configuration, connects, and runs plans.
func (c *Command) Run(ctx context.Context, env *app.Env) error {
	var cfg Config
	if err := env.Load(ctx, &cfg); err != nil {
		return err
	}
	b, err := env.Bus(ctx, cfg.NATS, "runner")
	if err != nil {
		return err
	}
	defer b.Close()
	s, err := New(ctx, cfg, b)
	if err != nil {
		return err
	}
	if c.Once {
		return s.Once(ctx)
	}
	return s.Run(ctx)
}
