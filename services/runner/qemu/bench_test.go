package qemu

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pullab/pullab/services/runner/qemu/internal/proc"
)

// BenchmarkBoot is what the executor adds to a boot, against the same QEMU
// command run by hand, in turns: s-first is Start with nothing cached, s-start
// with everything cached, s-after the time from QEMU's exit to the outcome,
// s-run the time from Start to the outcome, s-bare the command's, s-added the
// difference.
func BenchmarkBoot(b *testing.B) {
	k := needKernel(b, "x86_64")
	plan := bootPlan(k, "x86_64", "boot")
	plan.Boot.Modules = fileURL(allModules(b, k))
	s := settings(b)
	e := open(b, s)
	const rounds = 5
	for range b.N {
		var starts, afters, runs, bares []time.Duration
		first := time.Duration(0)
		for i := range rounds + 1 {
			run := runOf(b, plan)
			run.Attempt = i + 1
			began := time.Now()
			h, err := e.Start(b.Context(), run, quiet)
			if err != nil {
				b.Fatal(err)
			}
			started := time.Since(began)
			command := keep(b, e.dir(h.ID), filepath.Join(run.Dir, logName("qemu.log", run.Attempt)))
			if _, err := e.Await(b.Context(), run, h, quiet); err != nil {
				b.Fatal(err)
			}
			took := time.Since(began)
			exit, ok := proc.Status(e.dir(h.ID))
			if !ok {
				b.Fatal("no exit status")
			}
			after := time.Since(exit.At)
			if err := e.Stop(b.Context(), h); err != nil {
				b.Fatal(err)
			}
			if i == 0 {
				first = started
				continue
			}
			starts, afters, runs = append(starts, started), append(afters, after), append(runs, took)
			began = time.Now()
			if out, err := exec.CommandContext(b.Context(), "sh", "-c", command).CombinedOutput(); err != nil {
				b.Fatalf("%s: %v: %s", command, err, out)
			}
			bares = append(bares, time.Since(began))
		}
		median := func(d []time.Duration) float64 { slices.Sort(d); return d[len(d)/2].Seconds() }
		b.ReportMetric(first.Seconds(), "s-first")
		b.ReportMetric(median(starts), "s-start")
		b.ReportMetric(median(afters), "s-after")
		b.ReportMetric(median(runs), "s-run")
		b.ReportMetric(median(bares), "s-bare")
		b.ReportMetric(median(runs)-median(bares), "s-added")
	}
}

// keep links a machine's files, which Stop removes, and gives its command with
// them.
func keep(b *testing.B, machine, log string) string {
	b.Helper()
	dir := b.TempDir()
	for _, name := range []string{"kernel", "initrd"} {
		if err := os.Link(filepath.Join(machine, name), filepath.Join(dir, name)); err != nil {
			b.Fatal(err)
		}
	}
	text, err := os.ReadFile(log)
	if err != nil {
		b.Fatal(err)
	}
	command, _, _ := strings.Cut(string(text), "\n")
	return strings.ReplaceAll(command, machine, dir)
}

// allModules packs a kernel's whole module tree, as KernelCI does.
func allModules(b *testing.B, k kernel) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "modules.tar.gz")
	out, err := exec.CommandContext(b.Context(), "tar", "-C", k.tree, "-czf", path, "./lib/modules").CombinedOutput()
	if err != nil {
		b.Fatalf("tar: %v: %s", err, out)
	}
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Log("modules: " + strconv.FormatInt(info.Size()>>20, 10) + " MiB")
	return path
}
