package submitter

import (
	"context"
	"strings"

	"github.com/pullab/pullab/pkg/app"
)

// Command is the submitter as a program and as a subcommand.
type Command struct {
	Once bool `help:"Report what is finished now, wait until it is accepted, then exit."`
}

// Run loads the configuration, connects, and reports.
func (c *Command) Run(ctx context.Context, env *app.Env) error {
	var cfg Config
	if err := env.Load(ctx, &cfg); err != nil {
		return err
	}
	b, err := env.Bus(ctx, cfg.NATS, name)
	if err != nil {
		return err
	}
	defer b.Close()
	s, err := New(ctx, cfg, b, WithEnvironment(Environment(env)))
	if err != nil {
		return err
	}
	if c.Once {
		return s.Once(ctx)
	}
	return s.Run(ctx)
}

// flags are the keys of the KCIDB credentials that --set may give, and the
// variables that they stand above.
var flags = map[string]string{
	"kernelci.kcidb_jwt": "KCIDB_JWT", "kernelci.kcidb_rest": "KCIDB_REST", "kernelci.kcidb_submit_url": "KCIDB_SUBMIT_URL",
}

// Environment is env's, with --set on the KCIDB credentials in the place of the
// variable of the same meaning, so that a flag wins over every variable. Give it
// to WithEnvironment.
func Environment(env *app.Env) func(string) (string, bool) {
	set := map[string]string{}
	for _, a := range env.Set {
		key, v, _ := strings.Cut(a, "=")
		if variable := flags[key]; variable != "" {
			set[variable] = v
		}
	}
	return func(n string) (string, bool) {
		if v, ok := set[n]; ok {
			return v, true
		}
		if _, ok := set[strings.TrimSuffix(n, "_FILE")]; ok || env.LookupEnv == nil {
			return "", false
		}
		return env.LookupEnv(n)
	}
}
