package pullab

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/app"
	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/pullab/progress"
	"github.com/pullab/pullab/services/pullab/table"
	"github.com/pullab/pullab/services/standin"
	"github.com/pullab/pullab/services/standin/debkernel"
	"github.com/pullab/pullab/services/standin/kcidb"
)

// demo is the whole lab against stand-ins, with one job.
func (u *Up) demo(ctx context.Context, env *app.Env, dir string) error {
	if env.LogLevel == "info" {
		// The display tells a person what the log would; --log-level debug has both.
		ctx = zerolog.Ctx(ctx).Level(zerolog.WarnLevel).WithContext(ctx)
	}
	show := progress.New(env.Stderr, env.Terminal)
	kernel, err := debkernel.Find(ctx, debkernel.Options{
		Source: u.Kernel, Dir: filepath.Join(dir, "demo-kernel"),
		Progress: func(s string) { show.Note("%s", s) },
	})
	if err != nil {
		return err
	}
	world, err := standin.Start(ctx, standin.Options{Dir: filepath.Join(dir, "standin")})
	if err != nil {
		return err
	}
	defer world.Close()
	env.Set = append(env.Set, DemoSettings(world)...)
	r, stop, err := u.start(ctx, env, dir)
	if err != nil {
		return err
	}
	defer stop()
	node, err := world.OfferJob(ctx, standin.Job{Arch: kernel.Arch, Kernel: kernel.Image, Modules: kernel.Modules, Describe: kernel.Release})
	if err != nil {
		return err
	}
	show.Note("offered %s with kernel %s at %s", node, kernel.Release, world.APIURL())
	seen, err := u.runShown(ctx, r, show)
	if err != nil {
		return err
	}
	return report(env, world, node, filepath.Join(dir, "logs", seen.runID(node)))
}

// DemoSettings point the services at the stand-ins. They win over file and
// environment: a demo must never reach the real KernelCI.
func DemoSettings(w *standin.World) []string {
	return []string{
		"kernelci.api_base_uri=" + w.APIURL(), "kernelci.api_token=" + w.APIToken(), "kernelci.runtime_name=" + w.Runtime(),
		"kernelci.platforms=", "kernelci.cursor_file=", "kernelci.poll_interval_sec=1",
		"kernelci.kcidb_submit_url=" + w.SubmitURL(), "kernelci.kcidb_jwt=" + w.KCIDBToken(), "kernelci.kcidb_rest=",
		"kernelci.kcidb_origin=" + w.Origin(),
		"logs.storage_url=" + w.StorageURL(), "logs.storage_token=" + w.StorageToken(),
		"report.kcidb=true", "report.node=auto",
		"submitter.batch_age=200ms", "submitter.status_poll=200ms",
	}
}

// runIDs remembers which run a node had.
type runIDs struct {
	mu   sync.Mutex
	byID map[string]string
}

func (r *runIDs) note(p *pullabv1.RunProgress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byID[p.GetNodeId()] = p.GetRunId()
}

func (r *runIDs) runID(node string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byID[node]
}

// runShown runs the lab, once or until ctx ends, with progress on the screen.
func (u *Up) runShown(ctx context.Context, r *running, show *progress.Display) (*runIDs, error) {
	seen := &runIDs{byID: map[string]string{}}
	watching, done := context.WithCancel(ctx)
	var watchers sync.WaitGroup
	watchers.Go(func() { show.Run(watching) })
	watchers.Go(func() { watch(watching, r.bus, show, seen) })
	defer watchers.Wait()
	defer done()
	if u.Once {
		return seen, r.Once(ctx)
	}
	return seen, r.Run(ctx)
}

// watch shows phases as the runner tells them. That it cannot is no reason to
// stop a lab.
func watch(ctx context.Context, b *bus.Bus, show *progress.Display, seen *runIDs) {
	err := queue.Watch(ctx, b, topology.Progress, "pullab.progress.>", func(d *queue.Delivery) {
		if p, ok := d.Message.(*pullabv1.RunProgress); ok {
			seen.note(p)
			show.Show(p)
		}
	})
	if err != nil && ctx.Err() == nil {
		zerolog.Ctx(ctx).Warn().Err(err).Msg("progress cannot be shown")
	}
}

// report prints what KCIDB accepted. It fails unless there is a passing boot.
func report(env *app.Env, world *standin.World, node, logs string) error {
	rows := world.Rows(node)
	if len(rows) == 0 {
		return fmt.Errorf("the stand-in KCIDB accepted no rows of node %s: read the log above, and `%s`", node, logs)
	}
	fmt.Fprintln(env.Stdout)
	if err := table.Print(env.Stdout, linesOf(rows, filepath.Join(logs, "console.log"))); err != nil {
		return err
	}
	fmt.Fprintf(env.Stdout, "\nKCIDB accepted %d rows: %s\n", len(rows), world.RowsURL())
	if n, ok := world.Node(node); ok {
		fmt.Fprintf(env.Stdout, "kernelci-api: node %s is %s, %s\n", node, n.State, orNone(n.Result))
	}
	fmt.Fprintln(env.Stdout, "files:")
	table.Files(env.Stdout, logs)
	for _, r := range rows {
		if r.Text("path") == "boot" && r.Text("status") == "PASS" {
			return nil
		}
	}
	return errors.New("the kernel did not boot: see the rows and console.log above")
}

func orNone(s *string) string {
	if s == nil {
		return "no result"
	}
	return *s
}

// linesOf names the local log: the stand-in that log_url points to ends with us.
func linesOf(rows []kcidb.Row, log string) []table.Line {
	var ls []table.Line
	for _, r := range rows {
		l := table.Line{Path: r.Text("path"), Status: r.Text("status"), Log: log}
		if s, ok := r.Doc["duration"].(float64); ok {
			l.Took = time.Duration(s * float64(time.Second))
		}
		if strings.TrimSpace(l.Path) == "" {
			l.Path = "(root)"
		}
		ls = append(ls, l)
	}
	return ls
}
