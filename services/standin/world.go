package standin

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pullab/pullab/services/standin/fault"
	"github.com/pullab/pullab/services/standin/internal/inproc"
	"github.com/pullab/pullab/services/standin/internal/scheduler"
	"github.com/pullab/pullab/services/standin/internal/secret"
	"github.com/pullab/pullab/services/standin/kcidb"
	"github.com/pullab/pullab/services/standin/maestro"
	"github.com/pullab/pullab/services/standin/storage"
)

// Options of a World; the zero value is a lab pull-labs-demo in memory.
type Options struct {
	// Dir keeps nodes, uploads, the KCIDB spool (Dir/kcidb) and the tokens'
	// secrets across restarts; "" keeps all in memory.
	Dir string
	// Runtime is the lab's runtime; its token may edit this runtime's nodes.
	// "" is pull-labs-demo.
	Runtime string
	// Origin is the claim of the KCIDB token; "" is pullab_demo.
	Origin string
	// Seed makes ids and page orders repeatable; 0 does not.
	Seed uint64
	// IngestDelay is how long a submission stays ready.
	IngestDelay time.Duration
	// NoPatch and Order are options of the maestro package.
	NoPatch bool
	Order   maestro.Order
	// Faults at start; Faults of the World changes them later.
	Faults fault.Config

	// Listen is the address that Start listens on; "" is 127.0.0.1.
	Listen string
	// Host is the name in URLs; "" is Listen.
	Host string
	// Ports of Start; 0 takes any free one.
	APIPort, StoragePort, KCIDBPort int
}

// DefaultRuntime is the runtime of demo jobs.
const DefaultRuntime = "pull-labs-demo"

// tokenLife is how long the KCIDB token is good for.
const tokenLife = 10 * 365 * 24 * time.Hour

// World is the three stand-ins.
type World struct {
	Maestro *maestro.Server
	Storage *storage.Server
	KCIDB   *kcidb.Server
	// Faults in front of each.
	APIFaults, StorageFaults, KCIDBFaults *fault.Injector

	opts    Options
	secrets secret.Set
	// hosts are the addresses in URLs, of API, storage and KCIDB.
	hosts [3]string
	sched *scheduler.Scheduler
	close func()
}

// New makes a World without sockets or goroutines.
func New(o Options) (*World, error) {
	return build(o, [3]string{"api.standin.test", "storage.standin.test", "kcidb.standin.test"}, false)
}

func build(o Options, hosts [3]string, compress bool) (*World, error) {
	if o.Runtime == "" {
		o.Runtime = DefaultRuntime
	}
	if o.Origin == "" {
		o.Origin = "pullab_demo"
	}
	sec, err := secret.Load(o.Dir)
	if err != nil {
		return nil, err
	}
	w := &World{opts: o, hosts: hosts, secrets: sec, close: func() {}}
	w.Maestro, err = maestro.New(maestro.Options{
		Users: map[string]maestro.User{w.APIToken(): {Username: o.Runtime, Groups: []string{"runtime:" + o.Runtime + ":node-editor"}}},
		Seed:  o.Seed, NoPatch: o.NoPatch, Order: o.Order, Compress: compress, Dir: below(o.Dir, "maestro"),
	})
	if err != nil {
		return nil, err
	}
	w.Storage, err = storage.New(storage.Options{Tokens: map[string]string{sec.Storage: o.Runtime}, Dir: below(o.Dir, "storage")})
	if err != nil {
		return nil, err
	}
	w.KCIDB, err = kcidb.New(kcidb.Options{Secret: sec.KCIDB, Dir: below(o.Dir, "kcidb"), Delay: o.IngestDelay})
	if err != nil {
		return nil, err
	}
	w.sched = &scheduler.Scheduler{
		Maestro: w.Maestro, Storage: w.Storage, StorageURL: w.StorageURL(), CallbackURL: "http://" + hosts[0] + "/callback", Runtime: o.Runtime,
	}
	if err := w.sched.CloseStale(); err != nil {
		return nil, err
	}
	w.APIFaults = fault.New(w.apiHandler(), o.Faults.Seed)
	w.StorageFaults = fault.New(w.Storage, o.Faults.Seed)
	w.KCIDBFaults = fault.New(w.KCIDB, o.Faults.Seed)
	w.SetFaults(o.Faults)
	return w, nil
}

func below(dir, name string) string {
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, name)
}

// SetFaults replaces the faults of all three.
func (w *World) SetFaults(c fault.Config) {
	w.APIFaults.Set(c.API...)
	w.StorageFaults.Set(c.Storage...)
	w.KCIDBFaults.Set(c.KCIDB...)
}

// apiHandler is the API, with the callback service that definitions point at
// beside it, and /healthz for whoever starts the stand-ins.
func (w *World) apiHandler() http.Handler {
	callback := http.StripPrefix("/callback", maestro.Callback{Tokens: map[string]bool{w.secrets.API: true}})
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/healthz":
			rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
			fmt.Fprint(rw, "OK")
		case strings.HasPrefix(r.URL.Path, "/callback/"):
			callback.ServeHTTP(rw, r)
		default:
			w.Maestro.ServeHTTP(rw, r)
		}
	})
}

// Transport reaches the World by its URLs without sockets.
func (w *World) Transport() http.RoundTripper {
	return inproc.Transport{w.hosts[0]: w.APIFaults, w.hosts[1]: w.StorageFaults, w.hosts[2]: w.KCIDBFaults}
}

// APIURL is kernelci-api's base, with /latest.
func (w *World) APIURL() string { return "http://" + w.hosts[0] + "/latest" }

// StorageURL is the artifact storage's base.
func (w *World) StorageURL() string { return "http://" + w.hosts[1] }

// SubmitURL is kcidb-restd-rs's /submit.
func (w *World) SubmitURL() string { return "http://" + w.hosts[2] + "/submit" }

// RowsURL shows the rows in the database; not in the original.
func (w *World) RowsURL() string { return "http://" + w.hosts[2] + "/rows" }

// APIToken is the lab's token for kernelci-api. It may edit nodes of the lab's
// runtime and no others. Its claims are the original's.
func (w *World) APIToken() string {
	return kcidb.MintUnified(w.secrets.API, w.opts.Origin, time.Unix(1<<32, 0))
}

// KCIDBToken is the lab's token for KCIDB, good for ten years from now.
func (w *World) KCIDBToken() string {
	return kcidb.Mint(w.secrets.KCIDB, w.opts.Origin, time.Now().Add(tokenLife))
}

// StorageToken may upload to the storage.
func (w *World) StorageToken() string { return w.secrets.Storage }

// Origin is the claim of KCIDBToken.
func (w *World) Origin() string { return w.opts.Origin }

// Runtime is the lab's runtime.
func (w *World) Runtime() string { return w.opts.Runtime }

// Rows are the test rows that KCIDB holds for a job.
func (w *World) Rows(nodeID string) []kcidb.Row { return w.KCIDB.NodeRows(nodeID) }

// Node as kernelci-api has it.
func (w *World) Node(nodeID string) (maestro.Node, bool) { return w.Maestro.Node(nodeID) }

// Job is one job to offer; zero fields are those of the demo's boot job.
type Job = scheduler.Job

// Test is an element of a job's tests.
type Test = scheduler.Test

// OfferJob makes a job available as the KernelCI scheduler does, and gives its
// node's id. The job's files must stay where they are.
func (w *World) OfferJob(ctx context.Context, j Job) (string, error) {
	if err := context.Cause(ctx); err != nil {
		return "", err
	}
	return w.sched.Offer(j)
}

// TickRetries offers again what the retry service would (kernelci-wire.md 2.5);
// it gives the new ids.
func (w *World) TickRetries(context.Context) ([]string, error) { return w.sched.Retry() }

// Close stops listening and waits for every request. A World of New has nothing
// to stop.
func (w *World) Close() { w.close() }

// Start makes a World that listens until Close or the end of ctx.
func Start(ctx context.Context, o Options) (*World, error) {
	if o.Listen == "" {
		o.Listen = "127.0.0.1"
	}
	if o.Host == "" {
		o.Host = o.Listen
	}
	var lns [3]net.Listener
	var hosts [3]string
	for i, port := range []int{o.APIPort, o.StoragePort, o.KCIDBPort} {
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(o.Listen, strconv.Itoa(port)))
		if err != nil {
			closeAll(lns[:i])
			return nil, fmt.Errorf("stand-ins: %w. Give a free port, or 0 for any", err)
		}
		lns[i] = ln
		_, actual, err := net.SplitHostPort(ln.Addr().String())
		if err != nil {
			closeAll(lns[:i+1])
			return nil, err
		}
		hosts[i] = net.JoinHostPort(o.Host, actual)
	}
	w, err := build(o, hosts, true)
	if err != nil {
		closeAll(lns[:])
		return nil, err
	}
	w.serve(ctx, lns)
	return w, nil
}

func closeAll(lns []net.Listener) {
	for _, ln := range lns {
		_ = ln.Close()
	}
}

func (w *World) serve(ctx context.Context, lns [3]net.Listener) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { w.KCIDB.Run(ctx) })
	for i, h := range []http.Handler{w.APIFaults, w.StorageFaults, w.KCIDBFaults} {
		srv := &http.Server{
			Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0),
			BaseContext: func(net.Listener) context.Context { return ctx },
		}
		wg.Go(func() { srv.Serve(lns[i]) }) //nolint:errcheck // always ErrServerClosed after Close
		wg.Go(func() { <-ctx.Done(); _ = srv.Close() })
	}
	w.close = func() { cancel(); wg.Wait() }
}
