package qemu

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pullab/pullab/pkg/channel"
	"github.com/pullab/pullab/pkg/executor"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/runner/fetch"
	"github.com/pullab/pullab/services/runner/qemu/internal/derived"
	"github.com/pullab/pullab/services/runner/qemu/internal/initramfs"
	"github.com/pullab/pullab/services/runner/qemu/internal/kimage"
	"github.com/pullab/pullab/services/runner/qemu/internal/rootdisk"
)

// rootSerial is how the guest finds the root disk.
const rootSerial = "pullab-root"

// preparation turns a plan into a machine's directory and command line.
type preparation struct {
	e        *Executor
	run      executor.Run
	dir      string
	progress executor.Progress

	hw       hardware
	image    kimage.Info
	modules  initramfs.Modules
	releases []string
	// sizes for the memory: of archives that are compressed, and of what is not.
	packed, plain int64
	key           string
}

func (p *preparation) do(ctx context.Context) (state, []string, error) {
	steps := []func(context.Context) error{p.shape, p.kernel, p.rootDisk, p.initrd}
	for _, step := range steps {
		if ctx.Err() != nil {
			return state{}, nil, context.Cause(ctx)
		}
		if err := step(ctx); err != nil {
			return state{}, nil, err
		}
	}
	version, err := p.e.versions.of(ctx, p.hw.binary)
	if err != nil {
		return state{}, nil, err
	}
	return p.state(version), p.hw.args(), nil
}

// shape decides on the machine, as far as no input is needed.
func (p *preparation) shape(ctx context.Context) error {
	plan, s := p.run.Plan, p.e.settings
	arch := plan.GetArch()
	if arch != "x86_64" && arch != "arm64" {
		return labError("launch", true, fmt.Errorf("the qemu executor has no machine of arch %q", arch),
			"Map the platform to another executor in the catalog.")
	}
	options, err := Options(plan)
	if err != nil {
		return labError("launch", true, err, "Correct the catalog or the job.")
	}
	if _, err := os.Stat(s.guest(arch)); err != nil {
		return labError("launch", false, fmt.Errorf("the guest program is missing: %w", err), "Set qemu.guest_dir to the directory that holds it.")
	}
	accelerator, err := p.e.accel.choose(ctx, s, arch)
	if err != nil {
		return err
	}
	runDir, err := filepath.Abs(p.run.Dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	p.hw = hardware{
		binary: s.binary(arch), arch: arch, accelerator: accelerator, options: options,
		cpus:      orDefault(int(plan.GetMachine().GetCpus()), s.CPUs),
		memoryMiB: orDefault(int(plan.GetMachine().GetMemoryMib()), s.MemoryMiB),
		console:   filepath.Join(runDir, logName("console.log", p.run.Attempt)),
		channel:   filepath.Join(runDir, logName("channel.log", p.run.Attempt)),
		cmdline:   s.Cmdline,
	}
	// What a preparation that was given up left must not be read as this one's.
	for _, f := range []string{p.hw.console, p.hw.channel} {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func orDefault(v, def int) int {
	if v <= 0 {
		return def
	}
	return v
}

// logName keeps the logs of a later attempt beside those of the first.
func logName(name string, attempt int) string {
	if attempt <= 1 {
		return name
	}
	base, ext, _ := strings.Cut(name, ".")
	return base + "-" + strconv.Itoa(attempt) + "." + ext
}

// fetch downloads one input; path is empty when the plan has none.
func (p *preparation) fetch(ctx context.Context, what string, f *pullabv1.RemoteFile) (path string, release func(), err error) {
	if f.GetUrl() == "" {
		return "", func() {}, nil
	}
	p.progress(pullabv1.RunPhase_RUN_PHASE_FETCHING, what)
	var mu sync.Mutex
	last := time.Now()
	path, release, err = p.e.fetcher.Get(ctx, fetch.File{URL: f.GetUrl(), SHA256: f.GetSha256(), Progress: func(done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(last) < time.Second {
			return
		}
		last = time.Now()
		p.progress(pullabv1.RunPhase_RUN_PHASE_FETCHING, fmt.Sprintf("%s: %s", what, amount(done, total)))
	}})
	return path, release, err
}

func amount(done, total int64) string {
	if total < 0 {
		return fmt.Sprintf("%d MB", done/1_000_000)
	}
	return fmt.Sprintf("%d of %d MB", done/1_000_000, total/1_000_000)
}

// kernel fetches it and looks at it before anything is booted.
func (p *preparation) kernel(ctx context.Context) error {
	boot := p.run.Plan.GetBoot()
	if boot.GetKernel().GetUrl() == "" {
		return labError("launch", true, errors.New("the plan names no kernel"), "A qemu job needs artifacts.kernel.")
	}
	path, release, err := p.fetch(ctx, "kernel", boot.GetKernel())
	if err != nil {
		return err
	}
	defer release()
	if p.image, err = identify(path); err != nil {
		return labError("launch", true, err, "Look at what artifacts.kernel leads to.")
	}
	if p.image.Arch != "" && p.image.Arch != p.hw.arch {
		return labError("launch", true, fmt.Errorf("the kernel is built for %s, the job says %s", p.image.Arch, p.hw.arch), "Correct the job.")
	}
	if p.image.Release != "" {
		p.releases = []string{p.image.Release}
	}
	if p.hw.kernel, err = p.place(path, "kernel"); err != nil {
		return err
	}
	dtb, done, err := p.fetch(ctx, "device tree", boot.GetDtb())
	if err != nil {
		return err
	}
	defer done()
	// Only a board needs one; QEMU makes that of its own machine itself.
	if dtb != "" && p.hw.arch == "arm64" && p.hw.options.Machine != "" {
		p.hw.dtb, err = p.place(dtb, "dtb")
	}
	return err
}

func identify(path string) (kimage.Info, error) {
	f, err := os.Open(path)
	if err != nil {
		return kimage.Info{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return kimage.Info{}, err
	}
	return kimage.Identify(f, info.Size())
}

// place puts a shared file into the machine's directory, by a link where the
// file system allows it, so that it stays whatever becomes of the cache.
func (p *preparation) place(path, name string) (string, error) {
	to := filepath.Join(p.dir, name)
	if os.Link(path, to) == nil {
		return to, nil
	}
	from, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer from.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(out, from)
	return to, errors.Join(err, out.Close())
}

// rootDisk makes the disk image, or takes the one made before.
func (p *preparation) rootDisk(ctx context.Context) error {
	path, release, err := p.fetch(ctx, "root file system", p.run.Plan.GetBoot().GetRootfs())
	if err != nil || path == "" {
		return err
	}
	defer release()
	from := rootdisk.Archives{Root: path}
	if p.wantsKselftest() {
		if from.Kselftest, release, err = p.fetch(ctx, "kselftest", p.run.Plan.GetBoot().GetKselftest()); err != nil {
			return err
		}
		defer release()
	}
	size := int64(orDefault(int(p.run.Plan.GetMachine().GetDiskGib()), p.e.settings.DiskGiB)) << 30
	key, err := diskKey(from, size)
	if err != nil {
		return err
	}
	img, _, done, err := derived.Get(ctx, p.e.derived, key, func(f *os.File) (struct{}, error) {
		p.progress(pullabv1.RunPhase_RUN_PHASE_FETCHING, "making a disk from the root file system")
		return struct{}{}, rootdisk.Convert(ctx, f, from, size)
	})
	switch {
	case errors.Is(err, rootdisk.ErrTooSmall):
		return labError("launch", true, err, "Give the platform a larger disk_gib in the catalog.")
	case errors.Is(err, rootdisk.ErrKselftest):
		return unreadable(ctx, "kselftest", err)
	case err != nil:
		return unreadable(ctx, "rootfs", err)
	}
	defer done()
	p.hw.serial = rootSerial
	p.hw.disk, err = p.place(img, "root.img")
	return err
}

// wantsKselftest says whether a test needs the kernel's own tests. Nearly all
// definitions name their archive, which is of one build; without it the disk
// made from the root file system serves every build.
func (p *preparation) wantsKselftest() bool {
	return slices.ContainsFunc(p.run.Plan.GetTests(), func(t *pullabv1.TestPlan) bool {
		return strings.HasPrefix(t.GetType(), "kselftest-")
	})
}

// diskKey names a disk by the content of what it is made from.
func diskKey(from rootdisk.Archives, size int64) (string, error) {
	root, err := derived.Identity(from.Root)
	if err != nil || from.Kselftest == "" {
		return fmt.Sprintf("rootdisk 1 %s %d", root, size), err
	}
	tests, err := derived.Identity(from.Kselftest)
	return fmt.Sprintf("rootdisk 1 %s %d kselftest %s", root, size, tests), err
}

// unreadable is for an archive that is here and cannot be used.
func unreadable(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe
	}
	return labError("launch", true, fmt.Errorf("artifacts.%s cannot be used: %w", what, err), "Look at what artifacts."+what+" leads to.")
}

// initrd builds the initial file system, and decides what depends on the
// modules: releases, the disk's driver, the memory.
func (p *preparation) initrd(ctx context.Context) error {
	boot := p.run.Plan.GetBoot()
	var parts initramfs.Parts
	for _, r := range []struct {
		what string
		file *pullabv1.RemoteFile
	}{{"ramdisk", boot.GetRamdisk()}, {"initrd", boot.GetInitrd()}} {
		path, release, err := p.fetch(ctx, r.what, r.file)
		if err != nil {
			return err
		}
		defer release()
		if path != "" {
			parts.Ramdisks = append(parts.Ramdisks, path)
			p.packed += size(path)
		}
	}
	tree, done, err := p.moduleTree(ctx)
	if err != nil {
		return err
	}
	defer done()
	parts.Modules, parts.Guest = tree, p.e.settings.guest(p.hw.arch)
	p.plain = p.modules.Bytes + size(parts.Guest)
	p.hw.memoryMiB = max(p.hw.memoryMiB, memoryFor(p.packed, p.plain))
	p.hw.driver = diskDriver(p.hw.options.Disk, p.modules)
	plan, err := p.plan()
	if err != nil {
		return err
	}
	if parts.Plan, err = channel.EncodePlan(plan); err != nil {
		return err
	}
	p.hw.initrd = filepath.Join(p.dir, "initrd")
	out, err := os.OpenFile(p.hw.initrd, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(initramfs.Build(out, parts), out.Close())
}

func size(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// moduleTree fetches and converts the modules archive.
func (p *preparation) moduleTree(ctx context.Context) (string, func(), error) {
	path, release, err := p.fetch(ctx, "modules", p.run.Plan.GetBoot().GetModules())
	if err != nil || path == "" {
		return "", func() {}, err
	}
	defer release()
	id, err := derived.Identity(path)
	if err != nil {
		return "", nil, err
	}
	tree, meta, done, err := derived.Get(ctx, p.e.derived, "modules 1 "+id, func(f *os.File) (initramfs.Modules, error) {
		p.progress(pullabv1.RunPhase_RUN_PHASE_FETCHING, "unpacking the modules")
		return initramfs.ConvertModules(ctx, f, path)
	})
	if err != nil {
		return "", nil, unreadable(ctx, "modules", err)
	}
	p.modules = meta
	if p.image.Release != "" && !slices.Contains(meta.Releases, p.image.Release) {
		done()
		return "", nil, labError("launch", true,
			fmt.Errorf("the kernel image calls itself %s, the modules archive is of %s", p.image.Release, strings.Join(meta.Releases, ", ")),
			"The job's kernel and modules are not of one build.")
	}
	if p.image.Release == "" {
		p.releases = meta.Releases
	}
	return tree, done, nil
}

// unpackRatio is what a compressed ramdisk is taken to grow by.
const unpackRatio = 4

// memoryFor is how many MiB a machine needs for its initial file system: the
// archives lie in memory while they are unpacked, and the file system may take
// half of it (Documentation/filesystems/ramfs-rootfs-initramfs.rst).
func memoryFor(packed, plain int64) int {
	unpacked := packed*unpackRatio + plain
	need := max(2*unpacked, packed+plain+unpacked) + 256<<20
	const step = 64 << 20
	return int((need + step - 1) / step * step >> 20)
}

// diskDriver is the device whose driver the kernel has built in, else has as a
// module; virtio when nothing is known.
func diskDriver(wish string, m initramfs.Modules) string {
	if wish != "" {
		return wish
	}
	builtin := func(name string) bool { return slices.Contains(m.Builtin, name) }
	switch {
	case builtin("virtio_blk") && builtin("virtio_pci"):
		return "virtio"
	case builtin("nvme"):
		return "nvme"
	case slices.Contains(m.Loadable, "virtio_blk") || builtin("virtio_blk"):
		return "virtio"
	case slices.Contains(m.Loadable, "nvme"):
		return "nvme"
	}
	return "virtio"
}

// margin is how long before the deadline the guest powers off by itself.
const margin = 15 * time.Second

func (p *preparation) plan() (channel.Plan, error) {
	left := time.Until(p.run.Deadline)
	if left <= 0 {
		return channel.Plan{}, errLate
	}
	plan := channel.Plan{
		RunID: p.run.Plan.GetRunId(), Attempt: p.run.Attempt, Key: rand.Text(), Port: port(p.hw.arch),
		Releases: p.releases, RootSerial: p.hw.serial,
		DeadlineS: max(1, int((left - min(margin, left/4)).Seconds())),
	}
	if p.hw.disk == "" {
		plan.RootSerial = ""
	}
	factor := p.e.settings.factor(p.hw.accelerator)
	for _, t := range p.run.Plan.GetTests() {
		plan.Tests = append(plan.Tests, channel.Test{
			ID: t.GetId(), Type: t.GetType(), Path: t.GetPath(), TimeoutS: int(t.GetTimeout().AsDuration().Seconds() * factor),
			Parameters: t.GetParameters(), PreCommands: t.GetPreCommands(), PostCommands: t.GetPostCommands(), Depends: t.GetDepends(),
		})
	}
	p.key = plan.Key
	return plan, nil
}

func (p *preparation) state(version string) state {
	s := p.e.settings
	return state{
		RunID: p.run.Plan.GetRunId(), Attempt: p.run.Attempt, Deadline: p.run.Deadline, Host: p.e.host,
		RunDir: filepath.Dir(p.hw.console), Console: filepath.Base(p.hw.console), Channel: filepath.Base(p.hw.channel),
		Log: logName("qemu.log", p.run.Attempt), Key: p.key, Releases: p.releases,
		BootTimeout: s.bootTimeout(p.hw.accelerator), Grace: time.Duration(float64(10*time.Second) * s.factor(p.hw.accelerator)),
		Facts: map[string]string{
			"accelerator": p.hw.accelerator, "machine": p.hw.machineType(), "qemu_version": version,
			"cpus": strconv.Itoa(p.hw.cpus), "memory_mib": strconv.Itoa(p.hw.memoryMiB),
		},
	}
}
