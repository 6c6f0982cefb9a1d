package qemu

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/runner/qemu/internal/initramfs"
)

var update = flag.Bool("update", false, "rewrite testdata")

func TestCommandLine(t *testing.T) {
	t.Parallel()
	base := hardware{
		cpus: 2, memoryMiB: 1024, kernel: "/m/kernel", initrd: "/m/initrd", console: "/logs/a,b/console.log", channel: "/logs/a,b/channel.log", cmdline: "panic=-1",
	}
	for name, change := range map[string]func(*hardware){
		"x86_64-tcg": func(h *hardware) { h.binary, h.arch, h.accelerator = "qemu-system-x86_64", "x86_64", "tcg" },
		"x86_64-kvm-disk": func(h *hardware) {
			h.binary, h.arch, h.accelerator = "qemu-system-x86_64", "x86_64", "kvm"
			h.disk, h.driver, h.serial = "/m/root.img", "virtio", rootSerial
		},
		"arm64-tcg-nvme": func(h *hardware) {
			h.binary, h.arch, h.accelerator = "qemu-system-aarch64", "arm64", "tcg"
			h.disk, h.driver, h.serial = "/m/root.img", "nvme", rootSerial
		},
		"arm64-kvm": func(h *hardware) { h.binary, h.arch, h.accelerator = "qemu-system-aarch64", "arm64", "kvm" },
		"x86_64-by-choice": func(h *hardware) {
			h.binary, h.arch, h.accelerator = "qemu-system-x86_64", "x86_64", "tcg"
			h.options = PlanOptions{Machine: "pc", CPU: "Nehalem", Cmdline: "panic=0  'x'"}
		},
	} {
		h := base
		change(&h)
		got := strings.ReplaceAll(shellLine(h.args()), " -", " \\\n  -") + "\n"
		file := filepath.Join("testdata", name+".cmd")
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil || got != string(want) {
			t.Errorf("%s: %v\n%s", name, err, got)
		}
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	plan := &pullabv1.RunPlanned{
		Machine: &pullabv1.Machine{Options: map[string]string{"cpu": "max", "cmdline": "a=1", "disk": "nvme", "machine": "pc"}},
		Boot:    &pullabv1.Boot{ExtraCmdline: "b=2"},
	}
	if o, err := Options(plan); err != nil || o != (PlanOptions{Machine: "pc", CPU: "max", Disk: "nvme", Cmdline: "a=1 b=2"}) {
		t.Errorf("%+v, %v", o, err)
	}
	for _, bad := range []*pullabv1.RunPlanned{
		{Machine: &pullabv1.Machine{Options: map[string]string{"colour": "red"}}},
		{Machine: &pullabv1.Machine{Options: map[string]string{"disk": "floppy"}}},
		{Boot: &pullabv1.Boot{ExtraCmdline: "a\nb"}},
	} {
		if o, err := Options(bad); err == nil {
			t.Errorf("%v gave %+v", bad, o)
		}
	}
}

func TestSettingsValidate(t *testing.T) {
	t.Parallel()
	good := Settings{
		Accelerator: "auto", ProbeTimeout: 1, DataDir: "d", GuestDir: "g", MemoryMiB: 512, CPUs: 1, DiskGiB: 1, BootTimeout: 1,
		TCGFactor: 1, CacheGiB: 1, DownloadGiB: 1,
	}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	err := Settings{Accelerator: "hvf", Cmdline: "a\nb"}.Validate()
	for _, key := range []string{"accelerator", "probe_timeout", "data_dir", "guest_dir", "memory_mib", "cpus", "disk_gib", "boot_timeout", "tcg_factor", "cmdline", "cache_gib", "download_gib"} {
		if err == nil || !strings.Contains(err.Error(), "qemu."+key+" ") {
			t.Errorf("%s is not complained of in: %v", key, err)
		}
	}
}

func TestDiskDriver(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		wish string
		m    initramfs.Modules
		want string
	}{
		{"nvme", initramfs.Modules{}, "nvme"},
		{"", initramfs.Modules{}, "virtio"},
		{"", initramfs.Modules{Builtin: []string{"virtio_blk", "virtio_pci", "nvme"}}, "virtio"},
		{"", initramfs.Modules{Builtin: []string{"nvme"}, Loadable: []string{"virtio_blk", "virtio_pci"}}, "nvme"},
		{"", initramfs.Modules{Builtin: []string{"virtio_blk"}, Loadable: []string{"virtio_pci", "nvme"}}, "virtio"},
		{"", initramfs.Modules{Loadable: []string{"nvme"}}, "nvme"},
	} {
		if got := diskDriver(tt.wish, tt.m); got != tt.want {
			t.Errorf("%q, %+v: %s", tt.wish, tt.m, got)
		}
	}
}

func TestMemoryFor(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		packed, plain int64
		want          int
	}{{0, 4 << 20, 320}, {50 << 20, 4 << 20, 704}, {0, 300 << 20, 896}} {
		if got := memoryFor(tt.packed, tt.plain); got != tt.want {
			t.Errorf("%d packed, %d plain: %d MiB, want %d", tt.packed, tt.plain, got, tt.want)
		}
	}
}
