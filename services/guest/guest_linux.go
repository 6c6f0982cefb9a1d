package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/pullab/pullab/pkg/channel"
	"github.com/pullab/pullab/services/guest/internal/machine"
	"github.com/pullab/pullab/services/guest/internal/module"
	"github.com/pullab/pullab/services/guest/internal/suite"
)

// Where things lie in the initramfs.
const (
	planPath   = "/pullab/plan.json"
	modulesDir = "/lib/modules"
	rootDir    = "/root-new"
)

const (
	// deviceWait is how long a port or disk may take to appear.
	deviceWait = 30 * time.Second
	// overrun is how long after the plan's deadline the machine is powered off
	// without asking whoever hangs. The executor comes a little later.
	overrun = 5 * time.Second
)

// deadlineError is the cause of the context that ends all tests.
type deadlineError struct{ seconds int }

func (e *deadlineError) Error() string {
	return fmt.Sprintf("the run's deadline, %d s after the start of the machine, has come", e.seconds)
}

// guest is one run.
type guest struct {
	console io.Writer
	plan    channel.Plan
	kernel  machine.Kernel
	modules *module.Tree
	port    *machine.Port
	out     *channel.Writer
	reaper  *machine.Reaper
	rows    int
	// upAt is the uptime when hello was said: how long the boot took.
	upAt time.Duration
	// root and noRoot: the job's root file system once it is mounted, or why
	// there is none.
	root   *machine.Root
	noRoot string
}

// boot runs the plan and powers off.
func boot(ctx context.Context, console io.Writer) int {
	g := &guest{console: console, reaper: machine.NewReaper()}
	// All signals: a test that sends one to PID 1 must not end it, and children
	// must not inherit that they are ignored.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals)
	go g.guarded(func() { g.reaper.Run(signals) })
	if err := g.caught(ctx); err != nil {
		g.refuse(err)
	}
	if g.port != nil {
		if err := g.port.Drain(); err != nil {
			g.say("waiting for the report port to drain: %v", err)
		}
	}
	g.say("power off")
	g.say("the kernel did not power off: %v", machine.PowerOff())
	return 1
}

// caught makes a panic of ours an error: PID 1 that dies is a kernel panic, and
// the kernel would be blamed.
func (g *guest) caught(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the guest program failed: %v\n%s", p, debug.Stack())
		}
	}()
	return g.run(ctx)
}

// guarded is for goroutines.
func (g *guest) guarded(f func()) {
	defer func() {
		if p := recover(); p != nil {
			g.say("the guest program failed: %v\n%s", p, debug.Stack())
		}
	}()
	f()
}

func (g *guest) say(format string, args ...any) {
	fmt.Fprintf(g.console, "pullab-guest: "+format+"\n", args...)
}

// run goes through the steps; an error is the lab's.
func (g *guest) run(ctx context.Context) error {
	if err := machine.Mount("/"); err != nil {
		return err
	}
	if err := g.readPlan(); err != nil {
		return err
	}
	left := time.Duration(g.plan.DeadlineS)*time.Second - machine.Uptime()
	ctx, cancel := context.WithTimeoutCause(ctx, left, &deadlineError{g.plan.DeadlineS})
	defer cancel()
	time.AfterFunc(max(0, left)+overrun, func() {
		g.guarded(func() {
			g.say("deadline: power off now")
			g.say("the kernel did not power off: %v", machine.PowerOff())
		})
	})
	if err := g.prepare(); err != nil {
		return err
	}
	if err := g.openPort(ctx); err != nil {
		return err
	}
	match, err := g.hello()
	if err != nil {
		return err
	}
	if !match {
		return fmt.Errorf("the running kernel is %s, the one under test is %s", g.kernel.Release, strings.Join(g.plan.Releases, " or "))
	}
	if err := g.phase("modules", ""); err != nil {
		return err
	}
	g.loadDrivers()
	if err := g.tests(ctx); err != nil {
		return err
	}
	if err := g.phase("finish", ""); err != nil {
		return err
	}
	return g.out.Send(channel.Message{Done: &channel.Done{Rows: g.rows, UptimeS: machine.Uptime().Seconds()}})
}

func (g *guest) readPlan() error {
	b, err := os.ReadFile(planPath)
	if err != nil {
		return fmt.Errorf("there is no plan to run: %w", err)
	}
	if err := errors.Join(os.Remove(planPath), os.RemoveAll(filepath.Dir(planPath))); err != nil {
		return fmt.Errorf("the plan, which holds the key, cannot be removed: %w", err)
	}
	g.plan, err = channel.DecodePlan(b)
	return err
}

// prepare asks the kernel who it is and readies what later steps rely on.
func (g *guest) prepare() (err error) {
	if g.kernel, err = machine.Running(); err != nil {
		return err
	}
	if g.modules, err = module.Open(filepath.Join(modulesDir, g.kernel.Release)); err != nil {
		return err
	}
	if g.modules.Len() > 0 {
		// Kernels without request_module have no such file.
		if err := os.WriteFile("/proc/sys/kernel/modprobe", []byte("/pullab-guest"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			g.say("the kernel will not ask for modules: %v", err)
		}
	}
	if err := machine.Loopback(); err != nil {
		g.say("the interface lo stays down: %v", err)
	}
	return nil
}

// openPort opens the report port. It may not be there before its driver is
// loaded, or be there without a device behind it (a ttyS node of the 8250 core,
// which fails when it is opened).
func (g *guest) openPort(ctx context.Context) error {
	open := func() (*machine.Port, error) {
		node, err := machine.FindPort(g.plan.Port)
		if err != nil {
			return nil, err
		}
		return machine.OpenPort(node)
	}
	port, err := open()
	if err != nil {
		g.loadDrivers()
		port, err = machine.Await(ctx, deviceWait, open)
	}
	if err != nil {
		return fmt.Errorf("there is no report port %s: %w", g.plan.Port, err)
	}
	g.port, g.out = port, channel.NewWriter(port, g.plan.Key)
	return nil
}

// hello says who runs; false when it is not the kernel under test.
func (g *guest) hello() (bool, error) {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return false, err
	}
	g.upAt = machine.Uptime()
	match := len(g.plan.Releases) == 0 || slices.Contains(g.plan.Releases, g.kernel.Release)
	return match, g.out.Send(channel.Message{Hello: &channel.Hello{
		Release: g.kernel.Release, Version: g.kernel.Version, Machine: g.kernel.Machine,
		UptimeS: g.upAt.Seconds(), Cmdline: strings.TrimSpace(string(cmdline)), Match: match,
	}})
}

func (g *guest) phase(name, detail string) error {
	return g.out.Send(channel.Message{Phase: &channel.Phase{Name: name, Detail: detail}})
}

// refuse tells that the run ends by the lab's fault.
func (g *guest) refuse(cause error) {
	g.say("%v", cause)
	if g.out == nil {
		return
	}
	const longest = 8 << 10
	reason := cause.Error()
	reason = strings.ToValidUTF8(reason[:min(longest, len(reason))], "")
	if err := g.out.Send(channel.Message{Refuse: &channel.Refuse{Reason: reason}}); err != nil {
		g.say("%v", err)
	}
}

// loadDrivers loads what the devices here need. A driver that does not load is
// told on the console and missed where it is needed.
func (g *guest) loadDrivers() {
	loaded, err := g.modules.Devices()
	if len(loaded) > 0 {
		g.say("loaded %s", strings.Join(loaded, " "))
	}
	if err != nil {
		g.say("%v", err)
	}
}

// tests runs the plan's tests in order and sends their rows.
func (g *guest) tests(ctx context.Context) error {
	passed := map[string]bool{}
	for _, t := range g.plan.Tests {
		if err := g.phase("test", t.ID); err != nil {
			return err
		}
		rows := g.test(ctx, t, passed)
		passed[t.ID] = suite.Passed(rows)
		for _, row := range rows {
			g.say("%s %s %s", row.Status, row.Path, row.Reason)
			if err := g.out.Send(channel.Message{Row: &row}); err != nil {
				return err
			}
			g.rows++
		}
	}
	return nil
}

func (g *guest) test(ctx context.Context, t channel.Test, passed map[string]bool) []channel.Row {
	for _, d := range t.Depends {
		if !passed[d] {
			row := suite.Miss(t, machine.Uptime(), fmt.Sprintf("it depends on the test %s, which did not pass", d))
			row.Status = "SKIP"
			return []channel.Row{row}
		}
	}
	if ctx.Err() != nil {
		return []channel.Row{suite.Miss(t, machine.Uptime(), "not run: "+context.Cause(ctx).Error())}
	}
	if t.Type == suite.Boot && len(t.PreCommands)+len(t.PostCommands) == 0 {
		return g.bootRows(t)
	}
	if !g.mountRoot(ctx) {
		return []channel.Row{suite.Miss(t, machine.Uptime(), g.noRoot)}
	}
	r := &suite.Runner{Jail: g.root, Console: g.console, Uptime: machine.Uptime, CPUs: runtime.NumCPU()}
	if t.Type == suite.Boot {
		return r.Around(ctx, t, func(context.Context) []channel.Row { return g.bootRows(t) })
	}
	return r.Run(ctx, t)
}

// mountRoot mounts the job's root file system when the first test needs it.
func (g *guest) mountRoot(ctx context.Context) bool {
	if g.root != nil || g.noRoot != "" {
		return g.root != nil
	}
	if g.plan.RootSerial == "" {
		g.noRoot = "the test needs a root file system and the job has none"
		return false
	}
	node, err := machine.Await(ctx, deviceWait, func() (string, error) {
		node, err := machine.FindDisk(g.plan.RootSerial)
		if err != nil {
			g.loadDrivers()
		}
		return node, err
	})
	if err == nil {
		g.root, err = machine.MountRoot(node, rootDir, g.kernel.Release, g.reaper)
	}
	if err != nil {
		g.noRoot = fmt.Sprintf("the job's root file system is not to be had on this kernel: %v", err)
	}
	return err == nil
}

// modprobe loads a module for the kernel.
func modprobe(name string, stderr io.Writer) int {
	kernel, err := machine.Running()
	if err == nil {
		var tree *module.Tree
		if tree, err = module.Open(filepath.Join(modulesDir, kernel.Release)); err == nil {
			err = tree.Load(name)
		}
	}
	if err != nil {
		fmt.Fprintf(stderr, "pullab-guest: %v\n", err)
		return 1
	}
	return 0
}
