package standin

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/app"
	"github.com/pullab/pullab/services/standin/debkernel"
	"github.com/pullab/pullab/services/standin/fault"
)

// tickEvery is the period of the pipeline's timeout service (kernelci-wire.md
// 2.4), with which retries go too.
const tickEvery = 60 * time.Second

// Command is the stand-ins' command line.
type Command struct {
	Serve       Serve       `cmd:"" default:"withargs" help:"Run stand-ins for kernelci-api, the artifact storage and KCIDB (the default)."`
	FetchKernel FetchKernel `cmd:"" name:"fetch-kernel" help:"Put a kernel for demo jobs into a directory."`
}

// Serve runs a World until it is told to stop.
type Serve struct {
	Listen      string        `placeholder:"ADDRESS" help:"Address to listen on. Default: 127.0.0.1, or every address when --host names another machine."`
	Host        string        `placeholder:"NAME" help:"Name or address of this machine in URLs, for clients elsewhere (in containers: the service's name)."`
	APIPort     int           `name:"api-port" default:"8088" help:"Port of kernelci-api; 0 takes any free one."`
	StoragePort int           `default:"8089" help:"Port of the artifact storage."`
	KCIDBPort   int           `name:"kcidb-port" default:"8090" help:"Port of kcidb-restd-rs. Rows that were accepted: /rows (not in the original)."`
	Dir         string        `placeholder:"DIR" help:"Keep nodes, uploads, submissions and secrets here across restarts. Default: in memory."`
	Runtime     string        `default:"pull-labs-demo" help:"Runtime of the lab: its token may edit this runtime's nodes, and demo jobs are offered to it."`
	Origin      string        `default:"pullab_demo" help:"Origin claim of the KCIDB token."`
	IngestDelay time.Duration `default:"1s" help:"How long a submission stays ready before the schema is looked at."`
	TokenDir    string        `placeholder:"DIR" help:"Write the tokens into files here: kernelci_api_token, kcidb_jwt, storage_token."`
	OfferDemo   bool          `help:"Offer one boot job with a real kernel at start."`
	Kernel      string        `placeholder:"FILE|URL" help:"Kernel image of the demo job. Default: the distribution's cloud kernel package, or one of /boot/vmlinuz*."`
	KernelDir   string        `placeholder:"DIR" help:"Where kernels are kept, as fetch-kernel leaves them. Default: pullab/kernel in the user's cache directory."`
	Arch        string        `placeholder:"ARCH" help:"Architecture of the demo job, x86_64 or arm64. Default: this machine's."`
	Faults      string        `placeholder:"FILE" help:"Rules (YAML or JSON) for faults to inject; see below."`
}

// Help teaches.
func (Serve) Help() string {
	return `Everything is as strict as the original: a lab that works here works with KernelCI's servers. Copy the export lines
that it prints into the lab's shell and start the lab there: the job is then taken from /events, its kernel is downloaded
from the storage, and the rows end at /rows.

A faults file has rules for api, storage and kcidb. The first rule that strikes a request is the only one:

  seed: 1
  api:
    - {path: /latest/events, status: 503, retry_after_s: 5, times: 2}
    - {method: PATCH, lose: true, times: 1}        # done, but the answer is lost
  storage:
    - {path: /kbuild, truncate: 1000000, times: 1} # the connection breaks after 1 MB
    - {path: /pull_labs_jobs, body: "<html>", probability: 0.1}
  kcidb:
    - {path: /submit, latency_ms: 2000}
    - {path: /status, drop: true, skip: 3, times: 1}`
}

// Run serves until ctx ends.
func (s *Serve) Run(ctx context.Context, env *app.Env) error {
	if len(env.Set) > 0 {
		return &app.UsageError{Err: fmt.Errorf("--set %s: the stand-ins have flags only, no configuration file", env.Set[0])}
	}
	o := Options{
		Dir: s.Dir, Runtime: s.Runtime, Origin: s.Origin, IngestDelay: s.IngestDelay, Listen: s.listen(), Host: s.Host,
		APIPort: s.APIPort, StoragePort: s.StoragePort, KCIDBPort: s.KCIDBPort,
	}
	if s.Faults != "" {
		var err error
		if o.Faults, err = fault.Load(s.Faults); err != nil {
			return &app.UsageError{Err: err}
		}
	}
	w, err := Start(ctx, o)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := s.writeTokens(w); err != nil {
		return err
	}
	fmt.Fprintf(env.Stdout, "export KERNELCI_API_BASE_URI=%s\nexport KERNELCI_API_TOKEN=%s\nexport KERNELCI_RUNTIME_NAME=%s\n"+
		"export KCIDB_SUBMIT_URL=%s\nexport KCIDB_JWT=%s\nexport KCIDB_ORIGIN=%s\n"+
		"export PULLAB_LOGS_STORAGE_URL=%s\nexport PULLAB_LOGS_STORAGE_TOKEN=%s\n# accepted rows: %s\n",
		w.APIURL(), w.APIToken(), w.Runtime(), w.SubmitURL(), w.KCIDBToken(), w.Origin(), w.StorageURL(), w.StorageToken(), w.RowsURL())
	if s.OfferDemo {
		id, err := s.offer(ctx, w)
		if err != nil {
			return err
		}
		fmt.Fprintf(env.Stdout, "# offered: %s/node/%s\n", w.APIURL(), id)
	}
	return w.tick(ctx)
}

// listen is loopback unless other machines are to come.
func (s *Serve) listen() string {
	if s.Listen != "" || s.Host == "" || s.Host == "localhost" {
		return s.Listen
	}
	if ip := net.ParseIP(s.Host); ip != nil && ip.IsLoopback() {
		return s.Host
	}
	return "0.0.0.0"
}

func (s *Serve) writeTokens(w *World) error {
	if s.TokenDir == "" {
		return nil
	}
	if err := os.MkdirAll(s.TokenDir, 0o755); err != nil {
		return fmt.Errorf("--token-dir: %w", err)
	}
	for name, token := range map[string]string{
		"kernelci_api_token": w.APIToken(), "kcidb_jwt": w.KCIDBToken(), "storage_token": w.StorageToken(),
	} {
		file := filepath.Join(s.TokenDir, name)
		if err := os.WriteFile(file+".new", []byte(token+"\n"), 0o600); err != nil {
			return fmt.Errorf("--token-dir: %w", err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			return fmt.Errorf("--token-dir: %w", err)
		}
	}
	return nil
}

func (s *Serve) offer(ctx context.Context, w *World) (string, error) {
	k, err := findKernel(ctx, s.Kernel, s.KernelDir, s.Arch)
	if err != nil {
		return "", err
	}
	return w.OfferJob(ctx, DemoJob(k))
}

// DemoJob is the boot job that demonstrates a kernel.
func DemoJob(k debkernel.Kernel) Job {
	return Job{Arch: k.Arch, Kernel: k.Image, Modules: k.Modules, Describe: k.Release}
}

// findKernel logs every step.
func findKernel(ctx context.Context, source, dir, arch string) (debkernel.Kernel, error) {
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return debkernel.Kernel{}, fmt.Errorf("--kernel-dir is needed: %w", err)
		}
		dir = filepath.Join(cache, "pullab", "kernel")
	}
	return debkernel.Find(ctx, debkernel.Options{
		Source: source, Dir: dir, Arch: arch,
		Progress: func(line string) { zerolog.Ctx(ctx).Info().Msg(line) },
	})
}

// tick is the pipeline's periodic work: timeouts and retries, until ctx ends.
func (w *World) tick(ctx context.Context) error {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if _, err := w.Maestro.TickTimeouts(); err != nil {
			return err
		}
		ids, err := w.TickRetries(ctx)
		if err != nil {
			return err
		}
		for _, id := range ids {
			zerolog.Ctx(ctx).Info().Str("node", id).Msg("offered again, as KernelCI's retry service does")
		}
	}
}

// FetchKernel fills a kernel directory.
type FetchKernel struct {
	Dir    string `required:"" placeholder:"DIR" help:"Where to put vmlinuz, modules.tar.gz and kernel.json."`
	Arch   string `placeholder:"ARCH" help:"x86_64 or arm64. Default: this machine's."`
	Kernel string `placeholder:"FILE|URL" help:"Take this kernel instead of the distribution's package."`
}

// Run fetches unless it is there.
func (f *FetchKernel) Run(ctx context.Context, env *app.Env) error {
	k, err := findKernel(ctx, f.Kernel, f.Dir, f.Arch)
	if err != nil {
		return err
	}
	if k, err = debkernel.Store(k, f.Dir); err != nil {
		return err
	}
	fmt.Fprintf(env.Stdout, "%s: kernel %s (%s)\n", f.Dir, k.Release, k.From)
	return nil
}
