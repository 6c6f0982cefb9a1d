package pullab

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"github.com/pullab/pullab/pkg/app"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/pullab/progress"
	"github.com/pullab/pullab/services/pullab/table"
	"github.com/pullab/pullab/services/runner"
	"github.com/pullab/pullab/services/translator"
)

// Run is `pullab run`.
type Run struct {
	Definition string `required:"" placeholder:"FILE|URL" help:"A PULL_LABS job definition (JSON)."`
	Platform   string `help:"Platform to run as, from the catalog. Default: the definition's."`
	DataDir    string `placeholder:"DIR" help:"Where logs, caches and machines lie. Default: pullab-data."`
}

// Run plans the definition and runs it here. Exit code 0 means that it passed.
func (r *Run) Run(ctx context.Context, env *app.Env) error {
	dir, err := useDataDir(env, r.DataDir)
	if err != nil {
		return err
	}
	// The operator names the definition, so it may name files of this machine.
	env.Set = append(env.Set, "qemu.allow_file=true")
	var cfg struct {
		Translator translator.Config
		Runner     runner.Config
	}
	if err := env.Load(ctx, &cfg); err != nil {
		return err
	}
	plan, err := translator.PlanLocal(ctx, cfg.Translator, translator.Local{Location: r.Definition, Platform: r.Platform})
	if err != nil {
		return err
	}
	result, err := runShown(ctx, env, cfg.Runner, plan)
	if err != nil {
		return err
	}
	return r.print(env, dir, result)
}

func runShown(ctx context.Context, env *app.Env, cfg runner.Config, plan *pullabv1.RunPlanned) (*pullabv1.RunFinished, error) {
	show := progress.New(env.Stderr, env.Terminal)
	shown, done := context.WithCancel(ctx)
	var display sync.WaitGroup
	display.Go(func() { show.Run(shown) })
	defer display.Wait()
	defer done()
	return runner.RunOne(ctx, cfg, plan, show.Show)
}

func (r *Run) print(env *app.Env, dir string, f *pullabv1.RunFinished) error {
	logs := filepath.Join(dir, "logs", f.GetRunId())
	var lines []table.Line
	for _, row := range f.GetRows() {
		lines = append(lines, table.Line{
			Path: row.GetPath(), Status: strings.TrimPrefix(row.GetStatus().String(), "STATUS_"),
			Took: row.GetDuration().AsDuration(), Log: filepath.Join(logs, "console.log"),
		})
	}
	if err := table.Print(env.Stdout, lines); err != nil {
		return err
	}
	fmt.Fprintln(env.Stdout, "\nfiles:")
	table.Files(env.Stdout, logs)
	v := f.GetVerdict()
	result := strings.ToLower(strings.TrimPrefix(v.GetResult().String(), "RESULT_"))
	fmt.Fprintf(env.Stdout, "result: %s %s\n", result, strings.TrimSpace(v.GetErrorCode()+" "+v.GetErrorMsg()))
	if v.GetResult() != pullabv1.Result_RESULT_PASS {
		return app.ExitError(1)
	}
	return nil
}
