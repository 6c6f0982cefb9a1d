package poller

import (
	"context"

	"github.com/pullab/pullab/pkg/app"
)

// Command is the poller as a program and as a subcommand.
type Command struct {
	Once bool `help:"Poll and sweep once, offer what is there, then exit."`
}

// Run loads the configuration, connects, and polls.
func (c *Command) Run(ctx context.Context, env *app.Env) error {
	var cfg Config
	if err := env.Load(ctx, &cfg); err != nil {
		return err
	}
	b, err := env.Bus(ctx, cfg.NATS, "poller")
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
