package pullab_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/broker"
	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/pkg/executor"
	"github.com/pullab/pullab/pkg/executor/executortest"
	"github.com/pullab/pullab/pkg/topology"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/poller"
	"github.com/pullab/pullab/services/pullab"
	"github.com/pullab/pullab/services/pullab/guestbin"
	"github.com/pullab/pullab/services/pullab/lab"
	"github.com/pullab/pullab/services/runner"
	"github.com/pullab/pullab/services/standin"
	"github.com/pullab/pullab/services/submitter"
	"github.com/pullab/pullab/services/translator"
)

// jobsInBench is a few seconds of work, so that start and end weigh little.
const jobsInBench = 3000

// bench is a whole lab in one process, with a null executor and stand-ins that
// are called without sockets.
type bench struct {
	world *standin.World
	bus   *bus.Bus
	lab   *lab.Lab
	fake  *executortest.Fake
}

func newBench(b *testing.B, sync bool, slots int, takes time.Duration) *bench {
	b.Helper()
	ctx := zerolog.Nop().WithContext(b.Context())
	world, err := standin.New(standin.Options{})
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	server, err := broker.Start(context.WithoutCancel(ctx), broker.Options{Dir: dir, SyncAlways: sync})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(server.Stop)
	c, err := server.Connect(ctx, "bench")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	if err := topology.Apply(ctx, c, topology.Options{Replicas: 1}); err != nil {
		b.Fatal(err)
	}
	var cfg lab.Config
	set := append(pullab.DemoSettings(world), "runner.data_dir="+dir, "runner.arches=x86_64",
		fmt.Sprintf("runner.slots=qemu=%d", slots), "logs.storage_url=", "kernelci.poll_interval_sec=30", "translator.concurrency=64", "submitter.node_slots=64")
	if _, err := config.Load(&cfg, config.Source{Set: set}); err != nil {
		b.Fatal(err)
	}
	fake := executortest.NewFake(b, "qemu")
	fake.Script = func(executor.Run) executortest.Script {
		s := executortest.Passing()
		s.Takes = takes
		return s
	}
	rt := world.Transport()
	lab, err := lab.New(ctx, cfg, c, lab.Options{
		Poller:     []poller.Option{poller.WithTransport(rt)},
		Translator: []translator.Option{translator.WithTransport(rt)},
		Runner:     []runner.Option{runner.WithTransport(rt), runner.WithExecutors(map[string]executor.Executor{"qemu": fake.Executor()})},
		Submitter:  []submitter.Option{submitter.WithTransport(rt)},
	})
	if err != nil {
		b.Fatal(err)
	}
	return &bench{world, c, lab, fake}
}

func (x *bench) offer(b *testing.B, n int) []string {
	b.Helper()
	ids := make([]string, n)
	for i := range ids {
		var err error
		if ids[i], err = x.world.OfferJob(b.Context(), standin.Job{Platform: "qemu-x86_64", Kernel: "http://storage.standin.test/bzImage"}); err != nil {
			b.Fatal(err)
		}
	}
	return ids
}

// run starts the lab; the returned function stops it.
func (x *bench) run(b *testing.B) (stop func()) {
	b.Helper()
	ctx, cancel := context.WithCancel(zerolog.Nop().WithContext(b.Context()))
	done := make(chan error, 1)
	go func() { done <- x.lab.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
}

// until looks every 10 ms.
func until(b *testing.B, limit time.Duration, what string, ok func() bool) {
	b.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			b.Fatalf("%s did not happen within %s", what, limit)
		case <-tick.C:
		}
	}
}

func (x *bench) finished(ids []string) bool {
	for _, id := range slices.Backward(ids) {
		if n, ok := x.world.Node(id); !ok || n.State != "done" {
			return false
		}
	}
	return len(x.world.KCIDB.Rows()) >= len(ids)
}

// writes is how many messages all streams have ever stored: every one was
// acknowledged by the broker, and with sync_interval always, is on disk.
func writes(b *testing.B, c *bus.Bus) uint64 {
	b.Helper()
	var n uint64
	list := c.JS.ListStreams(b.Context())
	for s := range list.Info() {
		n += s.State.LastSeq
	}
	if err := list.Err(); err != nil {
		b.Fatal(err)
	}
	return n
}

// rawWrites is the same broker's own rate: as many publishers as the lab has
// handlers, messages of a plan's size, each waiting for its acknowledgement.
func rawWrites(b *testing.B, c *bus.Bus) float64 {
	b.Helper()
	ctx := b.Context()
	_, err := c.JS.CreateStream(ctx, jetstream.StreamConfig{Name: "RAW", Subjects: []string{"raw.*"}})
	if err != nil {
		b.Fatal(err)
	}
	const publishers, each = 64, 250
	payload := bytes.Repeat([]byte("x"), 1500)
	var wg sync.WaitGroup
	start := time.Now()
	for p := range publishers {
		wg.Go(func() {
			for i := range each {
				if _, err := c.JS.Publish(ctx, "raw."+strconv.Itoa(p*each+i), payload); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return publishers * each / time.Since(start).Seconds()
}

// BenchmarkLab is jobs per second through all four services.
func BenchmarkLab(b *testing.B) {
	for _, mode := range []struct {
		name string
		sync bool
	}{{"durable", true}, {"default", false}} {
		b.Run(mode.name, func(b *testing.B) {
			for range b.N {
				x := newBench(b, mode.sync, 64, 0)
				ids := x.offer(b, jobsInBench)
				before := writes(b, x.bus)
				start := time.Now()
				stop := x.run(b)
				until(b, 5*time.Minute, "the end of all jobs", func() bool { return x.finished(ids) })
				rate := jobsInBench / time.Since(start).Seconds()
				stop()
				perJob := float64(writes(b, x.bus)-before) / jobsInBench
				raw := rawWrites(b, x.bus)
				b.ReportMetric(rate, "jobs/s")
				b.ReportMetric(perJob, "writes/job")
				b.ReportMetric(raw, "raw-writes/s")
				b.ReportMetric(100*rate*perJob/raw, "%of-raw")
			}
		})
	}
}

// BenchmarkInFlight is the process's memory with 1,000 runs in flight: services,
// broker and stand-ins together.
func BenchmarkInFlight(b *testing.B) {
	const inFlight = 1000
	for range b.N {
		x := newBench(b, true, inFlight, time.Hour)
		x.offer(b, inFlight)
		stop := x.run(b)
		until(b, 5*time.Minute, "1,000 runs in flight", func() bool { return x.fake.Live() == inFlight })
		runtime.GC()
		b.ReportMetric(residentMiB(b), "MiB-resident")
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "MiB-heap")
		stop()
	}
}

// residentMiB is VmRSS (proc(5)).
func residentMiB(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib / 1024
		}
	}
	b.Fatal("no VmRSS in /proc/self/status")
	return 0
}

// BenchmarkDemo is what the lab adds to a bare boot: from the offer to accepted
// rows, against the same QEMU command with the same kernel and initramfs, in
// turns.
func BenchmarkDemo(b *testing.B) {
	kernel := needKernel(b)
	const rounds = 3
	for range b.N {
		var labs, bares []time.Duration
		dir := b.TempDir()
		for i := range rounds {
			lab, command := demoOnce(b, filepath.Join(dir, strconv.Itoa(i)), filepath.Join(dir, "qemu"), kernel.Image, kernel.Modules)
			labs = append(labs, lab)
			bares = append(bares, bare(b, command))
		}
		slices.Sort(labs)
		slices.Sort(bares)
		b.ReportMetric(labs[rounds/2].Seconds(), "s-lab")
		b.ReportMetric(bares[rounds/2].Seconds(), "s-bare")
		b.ReportMetric((labs[rounds/2] - bares[rounds/2]).Seconds(), "s-added")
	}
}

// demoOnce gives the time of one job and the QEMU command to repeat its boot.
func demoOnce(b *testing.B, dir, qemuDir, image, modules string) (time.Duration, string) {
	b.Helper()
	ctx := zerolog.Nop().WithContext(b.Context())
	world, err := standin.Start(ctx, standin.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer world.Close()
	guests, err := guestbin.Unpack(filepath.Join(dir, "guest"))
	if err != nil {
		b.Fatal(err)
	}
	var cfg lab.Config
	set := append(pullab.DemoSettings(world), "runner.data_dir="+dir, "qemu.data_dir="+qemuDir, "qemu.guest_dir="+guests, "qemu.accelerator=tcg")
	if _, err := config.Load(&cfg, config.Source{Set: set}); err != nil {
		b.Fatal(err)
	}
	server, err := broker.Start(context.WithoutCancel(ctx), broker.Options{Dir: filepath.Join(dir, "jetstream"), SyncAlways: true})
	if err != nil {
		b.Fatal(err)
	}
	defer server.Stop()
	c, err := server.Connect(ctx, "bench")
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if err := topology.Apply(ctx, c, topology.Options{Replicas: 1}); err != nil {
		b.Fatal(err)
	}
	keep := keeper{from: qemuDir, to: dir}
	lab, err := lab.New(ctx, cfg, c, lab.Options{Runner: []runner.Option{runner.WithProgress(keep.note)}})
	if err != nil {
		b.Fatal(err)
	}
	id, err := world.OfferJob(ctx, standin.Job{Kernel: image, Modules: modules, Arch: "x86_64"})
	if err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	if err := lab.Once(ctx); err != nil {
		b.Fatal(err)
	}
	took := time.Since(start)
	if rows := world.Rows(id); len(rows) == 0 {
		b.Fatal("no rows were accepted")
	}
	return took, keep.command(b)
}

// keeper links what a machine booted, before the executor removes it.
type keeper struct{ from, to string }

func (k *keeper) note(p *pullabv1.RunProgress) {
	if p.GetPhase() != pullabv1.RunPhase_RUN_PHASE_BOOTING {
		return
	}
	for _, name := range []string{"kernel", "initrd"} {
		found, err := filepath.Glob(filepath.Join(k.from, "machines", p.GetRunId()+"-*", name))
		if err != nil || len(found) != 1 {
			continue
		}
		if real, err := filepath.EvalSymlinks(found[0]); err == nil {
			_ = os.Link(real, filepath.Join(k.to, name)) // a missing file fails the bare boot
		}
	}
}

// command is the run's own, with the kept files in place of the machine's.
func (k *keeper) command(b *testing.B) string {
	b.Helper()
	logs, err := filepath.Glob(filepath.Join(k.to, "logs", "run_*", "qemu.log"))
	if err != nil || len(logs) != 1 {
		b.Fatalf("want one qemu.log, have %v %v", logs, err)
	}
	text, err := os.ReadFile(logs[0])
	if err != nil {
		b.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	machine, err := filepath.Glob(filepath.Join(k.from, "machines", "*"))
	if err != nil || len(machine) > 0 {
		b.Fatalf("machines are left: %v %v", machine, err)
	}
	words := strings.Fields(first)
	for i, w := range words {
		if name := filepath.Base(w); (name == "kernel" || name == "initrd") && strings.HasPrefix(w, k.from) {
			words[i] = filepath.Join(k.to, name)
		}
	}
	return strings.Join(words, " ")
}

func bare(b *testing.B, command string) time.Duration {
	b.Helper()
	start := time.Now()
	cmd := exec.CommandContext(b.Context(), "timeout", "120", "sh", "-c", command)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%s: %v: %s", command, err, out)
	}
	return time.Since(start)
}
