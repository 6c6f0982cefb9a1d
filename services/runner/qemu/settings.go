package qemu

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// Settings is the configuration section qemu.
type Settings struct {
	Accelerator  string        `key:"accelerator" env:"PULLAB_QEMU_ACCELERATOR" default:"auto" help:"auto, kvm or tcg; auto uses KVM only if a tiny program boots under it within probe_timeout"`
	ProbeTimeout time.Duration `key:"probe_timeout" default:"3s" help:"how long the KVM probe may take before KVM counts as broken"`
	BinaryX86    string        `key:"binary_x86_64" env:"PULLAB_QEMU_X86_64" default:"qemu-system-x86_64" help:"QEMU for x86_64, a path or a name in PATH"`
	BinaryArm64  string        `key:"binary_arm64" env:"PULLAB_QEMU_ARM64" default:"qemu-system-aarch64" help:"QEMU for arm64, a path or a name in PATH"`
	DataDir      string        `key:"data_dir" env:"PULLAB_QEMU_DATA_DIR" default:"pullab-data/qemu" help:"directory for machines and downloads; runners of one host may share it"`
	GuestDir     string        `key:"guest_dir" env:"PULLAB_QEMU_GUEST_DIR" default:"/usr/lib/pullab" help:"directory that holds pullab-guest-amd64 and pullab-guest-arm64"`
	MemoryMiB    int           `key:"memory_mib" default:"1024" help:"memory of a machine whose catalog entry names none, in MiB; more is taken when the ramdisk and modules need it"`
	CPUs         int           `key:"cpus" default:"2" help:"virtual CPUs of a machine whose catalog entry names none"`
	DiskGiB      int           `key:"disk_gib" default:"10" help:"size of the disk made from a rootfs where the catalog names none, in GiB; unused blocks take no space"`
	BootTimeout  time.Duration `key:"boot_timeout" default:"100s" help:"from the start of the machine until the kernel under test must have reached user space, under KVM"`
	TCGFactor    float64       `key:"tcg_factor" default:"3" help:"boot_timeout and the tests' timeouts are multiplied by this without KVM"`
	Cmdline      string        `key:"cmdline" default:"panic=-1" help:"kernel command line for every job; panic=-1 makes a panic end the machine at once"`
	CacheGiB     int           `key:"cache_gib" default:"40" help:"downloads not in use that are kept, in GiB; as much again for disk images made from them"`
	DownloadGiB  int           `key:"download_gib" default:"16" help:"largest file that is downloaded, in GiB"`
	AllowFile    bool          `key:"allow_file" default:"false" help:"accept file:// URLs; only for definitions that an operator runs by hand"`
}

// Validate checks what can be checked without looking at the host.
func (s Settings) Validate() error {
	var errs []error
	complain := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	switch s.Accelerator {
	case "auto", "kvm", "tcg":
	default:
		complain(false, "qemu.accelerator is %q; it must be auto, kvm or tcg", s.Accelerator)
	}
	complain(s.DataDir != "", "qemu.data_dir is empty; name a directory that survives a restart")
	complain(s.GuestDir != "", "qemu.guest_dir is empty; name the directory of pullab-guest-amd64 and pullab-guest-arm64")
	complain(s.MemoryMiB >= 128, "qemu.memory_mib is %d; a kernel needs at least 128", s.MemoryMiB)
	complain(s.CPUs >= 1, "qemu.cpus is %d; a machine needs one", s.CPUs)
	complain(s.DiskGiB >= 1, "qemu.disk_gib is %d; a disk needs at least 1", s.DiskGiB)
	complain(s.BootTimeout > 0, "qemu.boot_timeout is %s; no kernel boots in that time", s.BootTimeout)
	complain(s.ProbeTimeout > 0, "qemu.probe_timeout is %s; the probe needs a moment", s.ProbeTimeout)
	complain(s.TCGFactor >= 1, "qemu.tcg_factor is %g; emulation is not faster than KVM", s.TCGFactor)
	complain(s.CacheGiB >= 1, "qemu.cache_gib is %d; give at least 1", s.CacheGiB)
	complain(s.DownloadGiB >= 1, "qemu.download_gib is %d; give at least 1", s.DownloadGiB)
	complain(!strings.ContainsAny(s.Cmdline, "\n\x00"), "qemu.cmdline holds a line break")
	return errors.Join(errs...)
}

// factor stretches times for emulation.
func (s Settings) factor(accelerator string) float64 {
	if accelerator == "kvm" {
		return 1
	}
	return s.TCGFactor
}

func (s Settings) bootTimeout(accelerator string) time.Duration {
	return time.Duration(float64(s.BootTimeout) * s.factor(accelerator))
}

func (s Settings) binary(arch string) string {
	if arch == "arm64" {
		return s.BinaryArm64
	}
	return s.BinaryX86
}

func (s Settings) guest(arch string) string {
	return filepath.Join(s.GuestDir, "pullab-guest-"+goarch(arch))
}

// goarch is Go's name for KernelCI's.
func goarch(arch string) string {
	if arch == "x86_64" {
		return "amd64"
	}
	return arch
}
