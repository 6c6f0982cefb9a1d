package translator

import (
	"context"

	"github.com/pullab/pullab/pkg/app"
)

// Command is the translator as a program and as a subcommand.
type Command struct {
	Once bool `help:"Translate what is offered now, then exit."`
}

// Run loads the configuration, connects, and translates.
func (c *Command) Run(ctx context.Context, env *app.Env) error {
	var cfg Config
	if err := env.Load(ctx, &cfg); err != nil {
		return err
	}
	b, err := env.Bus(ctx, cfg.NATS, "translator")
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
