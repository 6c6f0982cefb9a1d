// Package app is the shell around a service: flags, configuration, logger,
// signals, exit code. It alone makes zerolog loggers; everybody else takes
// zerolog.Ctx(ctx).
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
	"github.com/mattn/go-isatty"
	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/pkg/topology"
)

// Globals are flags that every command has.
type Globals struct {
	Config    string           `short:"c" env:"PULLAB_BASE_CONFIG" placeholder:"FILE" help:"Configuration file, JSON or YAML. Default: ./pullab.yaml if there is one."`
	Set       []string         `placeholder:"SECTION.KEY=VALUE" sep:"none" help:"Set one configuration key; may be repeated. Wins over the environment and the file."`
	LogLevel  string           `default:"info" env:"PULLAB_LOG_LEVEL" help:"debug, info, warn or error."`
	LogFormat string           `default:"auto" enum:"auto,json,console" env:"PULLAB_LOG_FORMAT" help:"json for machines, console for people, auto by whether stderr is a terminal."`
	Version   kong.VersionFlag `help:"Print the version and exit."`
}

// Env is what a command gets from its surroundings.
type Env struct {
	Globals
	// Defaults are what a command knows better than the configuration's own
	// defaults, as section.key=value.
	Defaults       []string
	Stdout, Stderr io.Writer
	LookupEnv      func(string) (string, bool)
	// Terminal is true when stderr is one: progress may move the cursor.
	Terminal bool
}

// Runner is a command: a kong struct with flags of its own, or one whose
// subcommands are.
type Runner interface {
	Run(ctx context.Context, env *Env) error
}

// UsageError is a wrong command line or configuration: exit code 2.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }

func (e *UsageError) Unwrap() error { return e.Err }

// ExitError asks for an exit code without a message: the command has already
// said what there is to say.
type ExitError int

func (e ExitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// Stopped is the cause of a context that a signal ended.
type Stopped struct{ Signal os.Signal }

func (e *Stopped) Error() string { return "stopped by " + e.Signal.String() }

// Main parses the command line into cmd, a pointer to a kong struct that is a
// Runner or has subcommands that are, runs it until it returns or SIGINT or
// SIGTERM comes (a second one ends the process at once), and exits: 0 when it
// worked, 1 when it did not, 2 for a wrong command line or configuration.
func Main(name, description string, cmd any) {
	env := &Env{
		Stdout: os.Stdout, Stderr: os.Stderr, LookupEnv: os.LookupEnv,
		Terminal: isatty.IsTerminal(os.Stderr.Fd()),
	}
	ctx, stop := untilSignal(context.Background())
	code := Run(ctx, env, name, description, cmd, os.Args[1:])
	stop()
	os.Exit(code)
}

// Run is Main without the process around it.
func Run(ctx context.Context, env *Env, name, description string, cmd any, args []string) int {
	exited := -1
	parser, err := kong.New(cmd, kong.Name(name), kong.Description(description), kong.Embed(&env.Globals),
		kong.Writers(env.Stdout, env.Stderr), kong.Exit(func(c int) { exited = c }),
		kong.Vars{"version": name + " " + Version()}, kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}))
	if err != nil {
		panic(err)
	}
	kctx, err := parser.Parse(args)
	if exited >= 0 {
		return exited
	}
	if err == nil {
		var log zerolog.Logger
		if log, err = env.logger(name); err == nil {
			ctx = log.WithContext(ctx)
			kctx.BindTo(ctx, (*context.Context)(nil))
			err = kctx.Run(env)
		}
	} else {
		err = &UsageError{err}
	}
	return env.exitCode(name, err)
}

func (e *Env) exitCode(name string, err error) int {
	var usage *UsageError
	var exit ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	case errors.As(err, &usage):
		fmt.Fprintf(e.Stderr, "%s: %v\n", name, err)
		return 2
	default:
		fmt.Fprintf(e.Stderr, "%s: %v\n", name, err)
		return 1
	}
}

// logger is the process's one logger. Levels are taken in any case, as the
// predecessor took DEBUG.
func (e *Env) logger(name string) (zerolog.Logger, error) {
	level, err := zerolog.ParseLevel(strings.ToLower(e.LogLevel))
	if err != nil || e.LogLevel == "" {
		return zerolog.Logger{}, &UsageError{fmt.Errorf("--log-level %q: write debug, info, warn or error", e.LogLevel)}
	}
	w := e.Stderr
	if e.LogFormat == "console" || e.LogFormat == "auto" && e.Terminal {
		w = zerolog.ConsoleWriter{Out: e.Stderr, NoColor: !e.Terminal, TimeFormat: "15:04:05"}
	}
	return zerolog.New(w).Level(level).With().Timestamp().Str("service", name).Logger(), nil
}

// DefaultConfig is read when no other file is named.
const DefaultConfig = "pullab.yaml"

// Load fills the command's configuration struct and logs the warnings.
func (e *Env) Load(ctx context.Context, dst any) error {
	rep, err := config.Load(dst, e.Source())
	for _, w := range rep.Warnings {
		zerolog.Ctx(ctx).Warn().Msg(w)
	}
	if err != nil {
		return &UsageError{err}
	}
	return nil
}

// Source is where this process's configuration comes from.
func (e *Env) Source() config.Source {
	file := e.Config
	if file == "" {
		if _, err := os.Stat(DefaultConfig); err == nil {
			file = DefaultConfig
		}
	}
	return config.Source{File: file, Env: e.LookupEnv, Set: e.Set, Defaults: e.Defaults}
}

// Bus connects to NATS under the name of a service, and applies the topology or
// verifies it, as nats.topology says.
func (e *Env) Bus(ctx context.Context, c config.NATS, name string) (*bus.Bus, error) {
	b, err := bus.Connect(ctx, bus.Options{URL: c.URL, Name: "pullab-" + name, CredsFile: c.CredsFile})
	if err != nil {
		return nil, err
	}
	check := topology.Apply
	if c.Topology == "verify" {
		check = topology.Verify
	}
	if err := check(ctx, b, topology.Options{Replicas: c.Replicas}); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// untilSignal ends with *Stopped at the first SIGINT or SIGTERM, and from then
// on lets the next one end the process.
func untilSignal(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case s := <-ch:
			signal.Stop(ch)
			cancel(&Stopped{s})
		case <-ctx.Done():
		}
	}()
	return ctx, func() { signal.Stop(ch); cancel(context.Canceled) }
}

// Version is what the build knows of itself: a release tag, or the commit.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value[:min(12, len(s.Value))]
		}
	}
	return "devel"
}
