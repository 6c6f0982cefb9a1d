package pullab

import (
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/pullab/pullab/pkg/app"
	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/services/pullab/lab"
	"github.com/pullab/pullab/services/submitter"
)

// ConfigCommand looks at a configuration without running anything.
type ConfigCommand struct {
	Check ConfigCheck `cmd:"" help:"Say what is wrong with the configuration, and exit with 2 if anything is."`
	Show  ConfigShow  `cmd:"" help:"Print every key, its value, and where the value came from. Secrets are masked."`
	Docs  ConfigDocs  `cmd:"" help:"Print the documentation of every key, as docs/configuration.md has it."`
}

// ConfigCheck is `pullab config check`.
type ConfigCheck struct{}

// Run loads everything, as the services would.
func (*ConfigCheck) Run(ctx context.Context, env *app.Env) error {
	var cfg lab.Config
	if err := env.Load(ctx, &cfg); err != nil {
		return err
	}
	if err := submitter.Check(cfg.Submitter, submitter.Environment(env)); err != nil {
		return &app.UsageError{Err: err}
	}
	fmt.Fprintln(env.Stdout, "configuration is good")
	return nil
}

// ConfigShow is `pullab config show`.
type ConfigShow struct{}

// Run prints a table.
func (*ConfigShow) Run(_ context.Context, env *app.Env) error {
	var cfg lab.Config
	rep, err := config.Load(&cfg, env.Source())
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KEY\tVALUE\tFROM")
	for _, v := range rep.Values {
		fmt.Fprintf(w, "%s.%s\t%s\t%s\n", v.Section, v.Key, v.Text, v.From)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, warning := range rep.Warnings {
		fmt.Fprintln(env.Stderr, "warning:", warning)
	}
	if err != nil {
		return &app.UsageError{Err: err}
	}
	return nil
}

// ConfigDocs is `pullab config docs`.
type ConfigDocs struct{}

const docsHead = `# Configuration

Made by ` + "`make docs`" + ` from the configuration structs; do not edit.

One file, JSON or YAML, serves all services: ` + "`--config FILE`" + `, else ` + "`PULLAB_BASE_CONFIG`" + `, else ` + "`./pullab.yaml`" + ` if it is
there. Each service reads the sections it needs. A later line wins over an earlier one:

1. the default
2. the file
3. the environment; of several variables the first that is set and not empty
4. ` + "`--set section.key=value`" + `

A key that no service knows is refused, with the nearest known one named. A secret can be given as a file:
` + "`KCIDB_JWT_FILE=/run/secrets/jwt`" + `. KCIDB's address and token are the exception to "the first that is set": they come as a
pair, from ` + "`KCIDB_SUBMIT_URL` with `KCIDB_JWT`, else `KCIDB_REST`, else `UNIFIED_TOKEN`" + `, else the file.

` + "`pullab config check`" + ` tells what is wrong; ` + "`pullab config show`" + ` tells what is in force and from where.
`

// Run prints Markdown.
func (*ConfigDocs) Run(_ context.Context, env *app.Env) error {
	_, err := fmt.Fprint(env.Stdout, docsHead, config.Markdown(&lab.Config{}))
	return err
}
