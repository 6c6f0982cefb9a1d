// Package app is the shell around a service: flags, configuration, logger,
// signals, exit code. It alone makes zerolog loggers; everybody else takes
// zerolog.Ctx(ctx).
package app

import (
	"context"
	"errors"
	"io"

	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/config"
)

// Globals are flags that every command has.
type Globals struct {
	Config    string   `short:"c" env:"PULLAB_BASE_CONFIG" placeholder:"FILE" help:"Configuration file, JSON or YAML. Default: ./pullab.yaml if there is one."`
	Set       []string `placeholder:"SECTION.KEY=VALUE" sep:"none" help:"Set one configuration key; may be repeated. Wins over the environment and the file."`
	LogLevel  string   `default:"info" env:"PULLAB_LOG_LEVEL" help:"debug, info, warn or error."`
	LogFormat string   `default:"auto" enum:"auto,json,console" env:"PULLAB_LOG_FORMAT" help:"json for machines, console for people, auto by whether stderr is a terminal."`
}

// Env is what a command gets from its surroundings.
type Env struct {
	Globals
	Stdout, Stderr io.Writer
	LookupEnv      func(string) (string, bool)
}

// Load fills the command's configuration struct and logs the warnings.
func (e *Env) Load(ctx context.Context, dst any) error { return errors.ErrUnsupported }

// Bus connects to NATS and applies the topology.
func (e *Env) Bus(ctx context.Context, c config.NATS, name string) (*bus.Bus, error) {
	return nil, errors.ErrUnsupported
}

// Runner is a command: a kong struct with flags of its own.
type Runner interface {
	Run(ctx context.Context, env *Env) error
}

// Main parses the command line into cmd, runs it until it returns or SIGINT or
// SIGTERM comes (a second one ends the process at once), and exits: 0 when it
// worked, 1 when it did not, 2 for a wrong command line or configuration.
func Main(name, description string, cmd Runner) {}
