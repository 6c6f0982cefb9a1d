package pullab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/app"
	"github.com/pullab/pullab/pkg/broker"
	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/services/pullab/guestbin"
	"github.com/pullab/pullab/services/pullab/lab"
	"github.com/pullab/pullab/services/submitter"
)

// Up is `pullab up`.
type Up struct {
	Once    bool   `help:"Poll once, take everything that is there to its end, and exit."`
	Demo    bool   `help:"Start stand-ins for kernelci-api, storage and KCIDB, and offer them one boot job with a real kernel."`
	Kernel  string `placeholder:"FILE|URL" help:"Kernel image for the demo job. Default: the distribution's cloud kernel, fetched with its package manager, or the newest readable /boot/vmlinuz*."`
	DataDir string `placeholder:"DIR" help:"Where the broker's streams, logs, caches and machines lie. Everything that must outlive a restart is in here. Default: pullab-data."`
	Listen  string `placeholder:"HOST:PORT" help:"Let the nats CLI connect to the embedded broker here, for example 127.0.0.1:4222. Default: no port."`
}

// Run starts the broker and the four services.
func (u *Up) Run(ctx context.Context, env *app.Env) error {
	dir, err := useDataDir(env, u.DataDir)
	if err != nil {
		return err
	}
	if u.Demo {
		return u.demo(ctx, env, dir)
	}
	if u.Kernel != "" {
		return &app.UsageError{Err: fmt.Errorf("--kernel is for the demo job: add --demo")}
	}
	r, stop, err := u.start(ctx, env, dir)
	if err != nil {
		return err
	}
	defer stop()
	if u.Once {
		return r.Once(ctx)
	}
	return r.Run(ctx)
}

// start brings up broker and services; stop ends them. The broker does not end
// with ctx: services hand their messages back to it when ctx has ended.
func (u *Up) start(ctx context.Context, env *app.Env, dir string) (*running, func(), error) {
	var cfg lab.Config
	if err := env.Load(ctx, &cfg); err != nil {
		return nil, nil, err
	}
	outlive := context.WithoutCancel(ctx)
	server, err := broker.Start(outlive, broker.Options{Dir: filepath.Join(dir, "jetstream"), Listen: u.Listen, SyncAlways: true})
	if err != nil {
		return nil, nil, err
	}
	b, err := server.Connect(outlive, "pullab-up")
	if err != nil {
		server.Stop()
		return nil, nil, err
	}
	stop := func() { b.Close(); server.Stop() }
	if err := topology.Apply(ctx, b, topology.Options{Replicas: 1}); err != nil {
		stop()
		return nil, nil, err
	}
	services, err := lab.New(ctx, cfg, b, lab.Options{Submitter: []submitter.Option{submitter.WithEnvironment(submitter.Environment(env))}})
	if err != nil {
		stop()
		return nil, nil, err
	}
	if url := server.URL(); url != "" {
		zerolog.Ctx(ctx).Info().Str("url", url).Msg("The broker listens for the nats CLI")
	}
	return &running{Lab: services, bus: b}, stop, nil
}

// running is a lab and the bus it runs on, for those who watch.
type running struct {
	*lab.Lab
	bus *bus.Bus
}

// useDataDir makes the folder and lets every part of the configuration lie below
// it: as a default, or, when the flag was given, above file and environment. The
// guest programs that this binary carries are unpacked into it.
func useDataDir(env *app.Env, flag string) (string, error) {
	dir, err := filepath.Abs(cmp.Or(flag, "pullab-data"))
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("%w. Give a folder that can be written with --data-dir", err)
	}
	below := []string{"runner.data_dir=" + dir, "qemu.data_dir=" + filepath.Join(dir, "qemu")}
	if flag == "" {
		env.Defaults = append(env.Defaults, below...)
	} else {
		env.Set = append(below, env.Set...)
	}
	guests, err := guestbin.Unpack(filepath.Join(dir, "guest"))
	if errors.Is(err, guestbin.ErrMissing) {
		// A lab of the command executor needs none; qemu says what is missing.
		return dir, nil
	}
	env.Defaults = append(env.Defaults, "qemu.guest_dir="+guests)
	return dir, err
}
