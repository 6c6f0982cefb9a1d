package qemu

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/executor"
	"github.com/pullab/pullab/pkg/executor/executortest"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/runner/qemu/internal/proc"
)

func settings(t testing.TB) Settings {
	return Settings{
		Accelerator: "tcg", ProbeTimeout: 4 * time.Second, BinaryX86: "qemu-system-x86_64", BinaryArm64: "qemu-system-aarch64",
		DataDir: t.TempDir(), GuestDir: needGuests(t), MemoryMiB: 512, CPUs: 1, DiskGiB: 1, BootTimeout: 60 * time.Second,
		TCGFactor: 1, Cmdline: "panic=-1", CacheGiB: 4, DownloadGiB: 1, AllowFile: true,
	}
}

func open(t testing.TB, s Settings) *Executor {
	t.Helper()
	e, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func fileURL(path string) *pullabv1.RemoteFile { return &pullabv1.RemoteFile{Url: "file://" + path} }

func bootPlan(k kernel, arch, scenario string) *pullabv1.RunPlanned {
	return &pullabv1.RunPlanned{
		RunId: "run_pulllab-" + arch + "-local-1_20260101_000000", Arch: arch, Executor: Name, Boot: &pullabv1.Boot{Kernel: fileURL(k.image)},
		Machine: &pullabv1.Machine{Cpus: 1, MemoryMib: 256},
		Tests: []*pullabv1.TestPlan{
			{Id: "boot-test-1", Type: "boot", Path: "boot", Timeout: durationpb.New(time.Minute), Parameters: map[string]string{"scenario": scenario}},
			{Id: "ltp-smoke", Type: "ltp", Path: "ltp", Timeout: durationpb.New(time.Minute)},
			{Id: "ltp-fs", Type: "ltp", Path: "ltp.fs", Timeout: durationpb.New(time.Minute)},
		},
	}
}

func runOf(t testing.TB, plan *pullabv1.RunPlanned) executor.Run {
	return executor.Run{Plan: plan, Attempt: 1, Deadline: time.Now().Add(90 * time.Second), Dir: t.TempDir()}
}

func quiet(pullabv1.RunPhase, string) {}

// start starts a machine and sees to its end.
func start(t testing.TB, e *Executor, run executor.Run) executor.Handle {
	t.Helper()
	h, err := e.Start(t.Context(), run, quiet)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() {
		if err := e.Stop(context.WithoutCancel(t.Context()), h); err != nil {
			t.Errorf("Stop: %v", err)
		}
		if t.Failed() {
			for _, name := range []string{"console.log", "qemu.log"} {
				b, _ := os.ReadFile(filepath.Join(run.Dir, name))
				t.Logf("%s: ...%s", name, b[max(0, len(b)-3000):])
			}
		}
	})
	return h
}

func outcome(t testing.TB, e *Executor, run executor.Run) (executor.Outcome, error) {
	t.Helper()
	return e.Await(t.Context(), run, start(t, e, run), quiet)
}

func rows(o executor.Outcome) map[string]*pullabv1.TestRow {
	all := map[string]*pullabv1.TestRow{}
	for _, r := range o.Rows {
		all[r.GetPath()] = r
	}
	return all
}

const (
	pass = pullabv1.Status_STATUS_PASS
	fail = pullabv1.Status_STATUS_FAIL
	miss = pullabv1.Status_STATUS_MISS
)

func TestBoots(t *testing.T) {
	t.Parallel()
	for _, arch := range []string{"x86_64", "arm64"} {
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			k := needKernel(t, arch)
			plan := bootPlan(k, arch, "files")
			plan.Boot.Modules = fileURL(modulesArchive(t, k, k.release))
			o, err := outcome(t, open(t, settings(t)), runOf(t, plan))
			if err != nil {
				t.Fatal(err)
			}
			got := rows(o)
			boot := got["boot"]
			if o.Kernel != executor.KernelBooted || o.Release != k.release || boot.GetStatus() != pass {
				t.Fatalf("kernel %d %q, release %q, boot %v", o.Kernel, o.KernelReason, o.Release, boot)
			}
			for _, path := range []string{"files.modules", "files.devices"} {
				if got[path].GetStatus() != pass {
					t.Errorf("%s: %v", path, got[path])
				}
			}
			if boot.GetMisc()["time_to_userspace_s"] == "" || boot.GetDuration().AsDuration() <= 0 || o.Facts["accelerator"] != "tcg" || o.Facts["qemu_version"] == "" {
				t.Errorf("facts %v, boot %v", o.Facts, boot)
			}
		})
	}
}

// shippedGuest builds services/guest and gives its directory.
func shippedGuest(t *testing.T, arch string) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", Settings{GuestDir: dir}.guest(arch), "./cmd/pullab-guest")
	cmd.Dir = filepath.Join("..", "..", "guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+goarch(arch), "GOFLAGS=", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building services/guest: %v\n%s", err, out)
	}
	return dir
}

// The guest program that is shipped, on both arches.
func TestRealGuest(t *testing.T) {
	t.Parallel()
	for _, arch := range []string{"x86_64", "arm64"} {
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			k := needKernel(t, arch)
			s := settings(t)
			s.GuestDir = shippedGuest(t, arch)
			plan := bootPlan(k, arch, "")
			plan.Tests = plan.Tests[:1]
			plan.Tests[0].Parameters = nil
			plan.Boot.Modules = fileURL(modulesArchive(t, k, k.release))
			o, err := outcome(t, open(t, s), runOf(t, plan))
			if err != nil {
				t.Fatal(err)
			}
			got := rows(o)
			if o.Kernel != executor.KernelBooted || o.Release != k.release || got["boot"].GetStatus() != pass {
				t.Errorf("kernel %d, release %q, rows %v", o.Kernel, o.Release, o.Rows)
			}
			for _, level := range []string{"emerg", "alert", "crit"} {
				if got["baseline.dmesg."+level] == nil {
					t.Errorf("no row baseline.dmesg.%s", level)
				}
			}
		})
	}
}

// The kernel dies in different ways and at different times.
func TestKernelFails(t *testing.T) {
	t.Parallel()
	k := needKernel(t, "x86_64")
	const panicked = "Kernel panic - not syncing: "
	tests := []struct {
		scenario, cmdline string
		bootTimeout       time.Duration
		kernel            executor.KernelFate
		want              map[string]pullabv1.Status
		blamed, excerpt   string
	}{
		{scenario: "no init", cmdline: "rdinit=/nonexistent", kernel: executor.KernelFailed,
			want: map[string]pullabv1.Status{"boot": fail, "ltp": miss, "ltp.fs": miss}, blamed: "boot", excerpt: panicked + "VFS: Unable to mount root fs"},
		{scenario: "hang", bootTimeout: 12 * time.Second, kernel: executor.KernelHung,
			want: map[string]pullabv1.Status{"boot": fail, "ltp": miss, "ltp.fs": miss}, blamed: "boot", excerpt: "Run /pullab-guest as init process"},
		{scenario: "panic at once", kernel: executor.KernelFailed,
			want: map[string]pullabv1.Status{"boot": fail, "ltp": miss, "ltp.fs": miss}, blamed: "boot", excerpt: panicked + "sysrq triggered crash"},
		{scenario: "exit", kernel: executor.KernelFailed,
			want: map[string]pullabv1.Status{"boot": fail, "ltp": miss, "ltp.fs": miss}, blamed: "boot", excerpt: "Attempted to kill init"},
		{scenario: "panic in a test", kernel: executor.KernelBooted,
			want: map[string]pullabv1.Status{"boot": pass, "ltp": fail, "ltp.fs": miss}, blamed: "ltp", excerpt: panicked + "sysrq triggered crash"},
		{scenario: "reboot", kernel: executor.KernelBooted,
			want: map[string]pullabv1.Status{"boot": pass, "ltp": fail, "ltp.fs": miss}, blamed: "ltp", excerpt: "reboot: Restarting system"},
	}
	for _, tt := range tests {
		t.Run(tt.scenario, func(t *testing.T) {
			t.Parallel()
			s := settings(t)
			if tt.bootTimeout != 0 {
				s.BootTimeout = tt.bootTimeout
			}
			plan := bootPlan(k, "x86_64", tt.scenario)
			plan.Boot.ExtraCmdline = tt.cmdline
			o, err := outcome(t, open(t, s), runOf(t, plan))
			if err != nil {
				t.Fatal(err)
			}
			got := rows(o)
			for path, status := range tt.want {
				if got[path].GetStatus() != status {
					t.Errorf("%s is %v, want %v", path, got[path], status)
				}
			}
			if o.Kernel != tt.kernel || len(o.Rows) != len(tt.want) {
				t.Errorf("kernel %d (%s), rows %v", o.Kernel, o.KernelReason, o.Rows)
			}
			if x := got[tt.blamed].GetLogExcerpt(); !strings.Contains(x, tt.excerpt) {
				t.Errorf("the excerpt does not show %q: ...%s", tt.excerpt, x[max(0, len(x)-300):])
			}
		})
	}
}

// What is the lab's failure or the definition's, not the kernel's.
func TestLabFails(t *testing.T) {
	t.Parallel()
	k := needKernel(t, "x86_64")
	html := filepath.Join(t.TempDir(), "bzImage")
	if err := os.WriteFile(html, bytes.Repeat([]byte("<html>"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, scenario string
		change         func(*testing.T, *Settings, *pullabv1.RunPlanned)
		reason, says   string
		permanent      bool
	}{
		{name: "modules of another kernel", reason: "launch", permanent: true, says: "not of one build",
			change: func(t *testing.T, _ *Settings, p *pullabv1.RunPlanned) {
				p.Boot.Modules = fileURL(modulesArchive(t, k, "5.4.0-other"))
			}},
		{name: "another kernel runs", scenario: "other kernel", reason: "launch", permanent: true, says: "calls itself 5.4.0-other"},
		{name: "guest refuses", scenario: "refuse", reason: "guest", says: "the test said so"},
		{name: "kernel is not there", reason: "download", permanent: true, says: "no such file",
			change: func(_ *testing.T, _ *Settings, p *pullabv1.RunPlanned) { p.Boot.Kernel.Url += ".gone" }},
		{name: "kernel is a page", reason: "launch", permanent: true, says: "not a Linux kernel",
			change: func(_ *testing.T, _ *Settings, p *pullabv1.RunPlanned) { p.Boot.Kernel = fileURL(html) }},
		{name: "kernel of another arch", reason: "launch", permanent: true, says: "built for x86_64",
			change: func(_ *testing.T, _ *Settings, p *pullabv1.RunPlanned) { p.Arch = "arm64" }},
		{name: "arch without a machine", reason: "launch", permanent: true, says: `arch "arm"`,
			change: func(_ *testing.T, _ *Settings, p *pullabv1.RunPlanned) { p.Arch = "arm" }},
		{name: "unknown option", reason: "launch", permanent: true, says: `"colour" is unknown`,
			change: func(_ *testing.T, _ *Settings, p *pullabv1.RunPlanned) {
				p.Machine.Options = map[string]string{"colour": "red"}
			}},
		{name: "QEMU refuses", reason: "launch", says: "unsupported machine type",
			change: func(_ *testing.T, _ *Settings, p *pullabv1.RunPlanned) {
				p.Machine.Options = map[string]string{"machine": "nomachine"}
			}},
		{name: "no QEMU", reason: "launch", says: "Install QEMU",
			change: func(_ *testing.T, s *Settings, _ *pullabv1.RunPlanned) { s.BinaryX86 = "/nonexistent/qemu" }},
		{name: "no guest program", reason: "launch", says: "qemu.guest_dir",
			change: func(t *testing.T, s *Settings, _ *pullabv1.RunPlanned) { s.GuestDir = t.TempDir() }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, plan := settings(t), bootPlan(k, "x86_64", tt.scenario)
			if tt.change != nil {
				tt.change(t, &s, plan)
			}
			e, run := open(t, s), runOf(t, plan)
			h, err := e.Start(t.Context(), run, quiet)
			if err == nil {
				t.Cleanup(func() { _ = e.Stop(context.WithoutCancel(t.Context()), h) })
				_, err = e.Await(t.Context(), run, h, quiet)
			}
			lab, ok := errors.AsType[*executor.LabError](err)
			if !ok || lab.Reason != tt.reason || lab.Permanent != tt.permanent || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v (%+v), want %s, permanent %v, %q", err, lab, tt.reason, tt.permanent, tt.says)
			}
		})
	}
}

// The job's ramdisk has /lib as a symbolic link, and any compression.
func TestRamdisk(t *testing.T) {
	t.Parallel()
	k := needKernel(t, "x86_64")
	var plain bytes.Buffer
	w := cpio.NewWriter(&plain)
	for _, h := range []struct {
		name, body string
		mode       cpio.FileMode
	}{
		{"usr", "", cpio.TypeDir | 0o755}, {"usr/lib", "", cpio.TypeDir | 0o755},
		{"lib", "usr/lib", cpio.TypeSymlink | 0o777}, {"usr/lib/from-the-ramdisk", "x", cpio.TypeReg | 0o644},
	} {
		if err := w.WriteHeader(&cpio.Header{Name: h.name, Mode: h.mode, Size: int64(len(h.body)), Links: 1}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, h.body)
	}
	w.Close()
	for name, compress := range map[string]func(io.Writer) (io.WriteCloser, error){
		"plain": nil,
		"gzip":  func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
		"xz":    func(w io.Writer) (io.WriteCloser, error) { return xz.WriterConfig{CheckSum: xz.CRC32}.NewWriter(w) },
		"zstd":  func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			content := plain.Bytes()
			if compress != nil {
				var b bytes.Buffer
				z, err := compress(&b)
				if err != nil {
					t.Fatal(err)
				}
				z.Write(content)
				z.Close()
				content = b.Bytes()
			}
			path := filepath.Join(t.TempDir(), "rootfs.cpio")
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			plan := bootPlan(k, "x86_64", "files")
			plan.Boot.Ramdisk = fileURL(path)
			plan.Boot.Modules = fileURL(modulesArchive(t, k, k.release))
			o, err := outcome(t, open(t, settings(t)), runOf(t, plan))
			if err != nil {
				t.Fatal(err)
			}
			got := rows(o)
			for _, path := range []string{"files.ramdisk", "files.link", "files.modules"} {
				if got[path].GetStatus() != pass {
					t.Errorf("%s: %v", path, got[path])
				}
			}
		})
	}
}

// A disk made from a rootfs archive is found, read and written, and the next
// machine gets it fresh.
func TestRootDisk(t *testing.T) {
	t.Parallel()
	k := needKernel(t, "x86_64")
	path := filepath.Join(t.TempDir(), "full.rootfs.tar.xz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z, err := xz.NewWriter(f)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	w.WriteHeader(&tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755})
	w.WriteHeader(&tar.Header{Name: "./usr/lib/os-release", Typeflag: tar.TypeReg, Mode: 0o644, Size: 6})
	io.WriteString(w, "ID=job")
	if err := errors.Join(w.Close(), z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	plan := bootPlan(k, "x86_64", "files")
	plan.Boot.Rootfs = fileURL(path)
	plan.Boot.Modules = fileURL(modulesArchive(t, k, k.release))
	e := open(t, settings(t))
	for attempt := range 2 {
		run := runOf(t, plan)
		run.Attempt = attempt + 1
		o, err := outcome(t, e, run)
		if err != nil {
			t.Fatal(err)
		}
		if r := rows(o)["files.disk"]; r.GetStatus() != pass {
			t.Fatalf("attempt %d: %v", run.Attempt, r)
		}
	}
}

// tarball writes an archive of regular files, and of symbolic links where the
// body begins with "-> ".
func tarball(t *testing.T, name string, files map[string]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	for name, body := range files {
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(body))}
		if to, ok := strings.CutPrefix(body, "-> "); ok {
			h.Typeflag, h.Linkname, h.Size, body = tar.TypeSymlink, to, 0, ""
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, body)
	}
	if err := errors.Join(w.Close(), z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// A job's kselftests run with the shipped guest in the job's root file system,
// on both arches and on both kinds of disk.
func TestKselftest(t *testing.T) {
	t.Parallel()
	for arch, disk := range map[string]string{"x86_64": "virtio", "arm64": "nvme"} {
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			k := needKernel(t, arch)
			busybox, err := os.ReadFile(needBusybox(t, arch))
			if err != nil {
				t.Fatal(err)
			}
			plan := bootPlan(k, arch, "")
			plan.Machine.Options = map[string]string{"disk": disk}
			plan.Boot.Modules = fileURL(modulesArchive(t, k, k.release))
			plan.Boot.Rootfs = fileURL(tarball(t, "rootfs.tar.gz", map[string]string{
				"./bin/busybox": string(busybox), "./bin/sh": "-> busybox", "./opt/kselftests/run_kselftest.sh": "#!/bin/sh\nexit 9\n",
			}))
			plan.Boot.Kselftest = fileURL(tarball(t, "kselftest.tar.gz", map[string]string{
				"./run_kselftest.sh":     "#!/bin/sh\ncd ${0%/*}\n. ./kselftest/runner.sh\n",
				"./kselftest/runner.sh":  "echo TAP version 13\necho 1..2\n. ./$2/tests.sh\n",
				"./good/tests.sh":        "echo ok 1 selftests: good: one\necho ok 2 selftests: good: two\n",
				"./bad/tests.sh":         "echo ok 1 selftests: bad: one\necho not ok 2 selftests: bad: two '# exit=1'\n",
				"./kselftest-list.txt":   "good:one\n",
				"./kselftest/prefix.pl":  "",
				"./kselftest/ktap_all.h": "",
			}))
			plan.Tests = []*pullabv1.TestPlan{
				{Id: "kselftest-good", Type: "kselftest-good", Path: "kselftest.good", Timeout: durationpb.New(time.Minute)},
				{Id: "kselftest-bad", Type: "kselftest-bad", Path: "kselftest.bad", Timeout: durationpb.New(time.Minute)},
			}
			s := settings(t)
			s.GuestDir = shippedGuest(t, arch)
			o, err := outcome(t, open(t, s), runOf(t, plan))
			if err != nil {
				t.Fatal(err)
			}
			got := rows(o)
			if o.Kernel != executor.KernelBooted || got["kselftest.good"].GetStatus() != pass || got["kselftest.bad"].GetStatus() != fail ||
				!strings.Contains(got["kselftest.bad"].GetLogExcerpt(), "not ok 2 selftests: bad: two") {
				t.Errorf("kernel %d, rows %v", o.Kernel, o.Rows)
			}
		})
	}
}

// The archive of the tests is the definition's; it is only looked at by tests
// that need it.
func TestKselftestRefused(t *testing.T) {
	t.Parallel()
	k := needKernel(t, "x86_64")
	plan := bootPlan(k, "x86_64", "files")
	plan.Boot.Rootfs = fileURL(tarball(t, "rootfs.tar.gz", map[string]string{"usr/lib/os-release": "ID=job"}))
	plan.Boot.Kselftest = fileURL(tarball(t, "kselftest.tar.gz", map[string]string{"other": ""}))
	plan.Boot.Modules = fileURL(modulesArchive(t, k, k.release))
	e := open(t, settings(t))
	if o, err := outcome(t, e, runOf(t, plan)); err != nil || rows(o)["files.disk"].GetStatus() != pass {
		t.Errorf("without a kselftest: %v, %v", o.Rows, err)
	}
	plan.RunId += "-2"
	plan.Tests[1].Type = "kselftest-arm64"
	_, err := e.Start(t.Context(), runOf(t, plan), quiet)
	lab, ok := errors.AsType[*executor.LabError](err)
	if !ok || !lab.Permanent || !strings.Contains(err.Error(), "artifacts.kselftest cannot be used") {
		t.Errorf("got %v", err)
	}
}

// A test that opens the port itself cannot end the run as passed.
func TestForgedDone(t *testing.T) {
	t.Parallel()
	k := needKernel(t, "x86_64")
	run := runOf(t, bootPlan(k, "x86_64", "forge"))
	o, err := outcome(t, open(t, settings(t)), run)
	if err != nil {
		t.Fatal(err)
	}
	if got := rows(o); got["ltp"].GetStatus() != fail || got["boot"].GetStatus() != pass || o.Facts["channel_forged_lines"] != "1" {
		t.Errorf("rows %v, facts %v", o.Rows, o.Facts)
	}
}

// Somebody kills QEMU: nothing is known about the kernel.
func TestKilledFromOutside(t *testing.T) {
	t.Parallel()
	k := needKernel(t, "x86_64")
	for _, signal := range []string{"-TERM", "-KILL"} {
		t.Run(signal, func(t *testing.T) {
			t.Parallel()
			e, run := open(t, settings(t)), runOf(t, bootPlan(k, "x86_64", "silent"))
			h := start(t, e, run)
			pid := qemuOf(t, e, h)
			if err := exec.CommandContext(t.Context(), "kill", signal, pid).Run(); err != nil {
				t.Fatal(err)
			}
			o, err := e.Await(t.Context(), run, h, quiet)
			if lab, ok := errors.AsType[*executor.LabError](err); !ok || lab.Reason != "lost" {
				t.Errorf("got %+v, %v", o, err)
			}
		})
	}
}

// qemuOf waits for a machine's QEMU and gives its process id.
func qemuOf(t *testing.T, e *Executor, h executor.Handle) string {
	t.Helper()
	if _, err := exec.LookPath("pgrep"); err != nil {
		t.Skip("NOT RUN: pgrep is not installed (package procps)")
	}
	p, ok := proc.Find(e.dir(h.ID))
	if !ok {
		t.Fatal("no process")
	}
	for range 1000 {
		out, err := exec.CommandContext(t.Context(), "pgrep", "-s", strconv.Itoa(p.PID()), "qemu-system").Output()
		if err == nil {
			return strings.TrimSpace(string(out))
		}
		if err := backoff.Sleep(t.Context(), 10*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("QEMU never ran")
	return ""
}

// order is what TestRunnerCrash gives to its other process.
type order struct {
	Settings Settings
	Plan     []byte
	Deadline time.Time
	Dir      string
}

// crashAfterStart is the other process: a runner that dies right after Start,
// before anybody could write its handle down.
func crashAfterStart(text string) error {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	plan := &pullabv1.RunPlanned{}
	if err := protojson.Unmarshal(o.Plan, plan); err != nil {
		return err
	}
	e, err := New(o.Settings)
	if err != nil {
		return err
	}
	run := executor.Run{Plan: plan, Attempt: 1, Deadline: o.Deadline, Dir: o.Dir}
	if _, err := e.Start(context.Background(), run, quiet); err != nil {
		return err
	}
	return syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

// A runner is killed after it launched. Another one finds the machine, the same
// one, and its outcome; and with nobody left, the deadline ends it.
func TestRunnerCrash(t *testing.T) {
	t.Parallel()
	k := needKernel(t, "x86_64")
	for name, scenario := range map[string]string{"adopted": "boot", "alone": "hang"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, run := settings(t), runOf(t, bootPlan(k, "x86_64", scenario))
			if scenario == "hang" {
				run.Deadline = time.Now().Add(5 * time.Second)
			}
			plan, err := protojson.Marshal(run.Plan)
			if err != nil {
				t.Fatal(err)
			}
			text, err := json.Marshal(order{Settings: s, Plan: plan, Deadline: run.Deadline, Dir: run.Dir})
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), crashOrder+"="+string(text))
			out, err := cmd.CombinedOutput()
			if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
				t.Fatalf("the first runner ended with %v: %s", err, out)
			}
			e := open(t, s)
			before, err := e.List(t.Context())
			if err != nil || len(before) != 1 || !before[0].Ours || !before[0].Deadline.Equal(run.Deadline) {
				t.Fatalf("machines %+v, %v", before, err)
			}
			if scenario == "hang" {
				for len(before) > 0 && time.Since(run.Deadline) < 20*time.Second {
					if before, err = e.List(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				if late := time.Since(run.Deadline); late > 10*time.Second {
					t.Errorf("the machine outlived its deadline by %s", late)
				}
				return
			}
			h := start(t, e, run)
			if h.ID != before[0].Handle.ID {
				t.Errorf("adopted %s, launched %s", h.ID, before[0].Handle.ID)
			}
			o, err := e.Await(t.Context(), run, h, quiet)
			if err != nil || rows(o)["boot"].GetStatus() != pass {
				t.Errorf("%+v, %v", o, err)
			}
		})
	}
}

func TestSuite(t *testing.T) {
	t.Parallel()
	k := needKernel(t, "x86_64")
	executortest.Suite(t, func(t *testing.T) executortest.Harness {
		t.Parallel()
		s := settings(t)
		return executortest.Harness{
			New: func(t testing.TB) executor.Executor { return open(t, s) },
			Plan: func(_ testing.TB, sc executortest.Scenario) *pullabv1.RunPlanned {
				name := map[executortest.Scenario]string{
					executortest.Boots: "boot", executortest.Panics: "panic at once", executortest.Hangs: "hang", executortest.Breaks: "refuse",
				}[sc]
				return bootPlan(k, "x86_64", name)
			},
			Takes: 60 * time.Second,
		}
	})
}

// The probe's program must end QEMU as expected wherever QEMU works at all;
// and a KVM that hangs must not be chosen.
func TestProbe(t *testing.T) {
	t.Parallel()
	needKernel(t, "x86_64")
	s := settings(t)
	for _, arch := range []string{"x86_64", "arm64"} {
		if err := probe(t.Context(), s.binary(arch), arch, "tcg", 30*time.Second); err != nil {
			t.Errorf("the %s probe does not run even under tcg: %v", arch, err)
		}
	}
	err := probe(t.Context(), s.binary("x86_64"), "x86_64", "kvm", 4*time.Second)
	s.Accelerator = "auto"
	memo := filepath.Join(t.TempDir(), "memo")
	got, chosen := (&accelerators{memo: memo}).choose(t.Context(), s, "x86_64")
	if errors.Is(err, errHung) {
		// The next process does not wait for the hanging probe again.
		if next := (&accelerators{memo: memo}); !next.hungBefore() {
			t.Error("that KVM hangs was not kept")
		}
	}
	want := "kvm"
	if err != nil {
		want = "tcg"
	}
	if got != want || chosen != nil {
		t.Errorf("auto chose %s (%v), the probe said %v", got, chosen, err)
	}
	t.Logf("KVM probe on this host: %v", err)
}
