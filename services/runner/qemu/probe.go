package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// probeX86 writes 0x31 to port 0xf4, where isa-debug-exit turns it into exit
// status 0x31*2+1:
//
//	mov al, 0x31; out 0xf4, al; cli; hlt; jmp $-1
var probeX86 = []byte{0xb0, 0x31, 0xe6, 0xf4, 0xfa, 0xf4, 0xeb, 0xfd}

// probeArm64 asks PSCI to switch off (SYSTEM_OFF, 0x84000008):
//
//	movz w0, #8; movk w0, #0x8400, lsl #16; hvc #0; b .
var probeArm64 = []byte{0x00, 0x01, 0x80, 0x52, 0x00, 0x80, 0xb0, 0x72, 0x02, 0x00, 0x00, 0xd4, 0x00, 0x00, 0x00, 0x14}

// accelerators remembers what works for as long as the executor lives, and a
// KVM that hung for as long as the host runs, at most a day: the probe's time
// limit is long beside a boot.
type accelerators struct {
	// memo is the file for it, empty for none.
	memo  string
	mu    sync.Mutex
	known map[string]string
}

// hung is what the memo says.
type hung struct {
	// BootID is the host's, new at each boot (random(4)).
	BootID string    `json:"boot_id"`
	At     time.Time `json:"at"`
}

// memoAge is how long a memo counts.
const memoAge = 24 * time.Hour

// choose gives kvm or tcg for a guest of arch.
func (a *accelerators) choose(ctx context.Context, s Settings, arch string) (string, error) {
	if s.Accelerator != "auto" {
		return s.Accelerator, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if got := a.known[arch]; got != "" {
		return got, nil
	}
	got := "tcg"
	if !a.hungBefore() {
		err := probe(ctx, s.binary(arch), arch, "kvm", s.ProbeTimeout)
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if err == nil {
			got = "kvm"
		} else {
			a.note(ctx, err)
			zerolog.Ctx(ctx).Info().Err(err).Str("arch", arch).Msg("KVM does not work here; kernels are emulated (tcg), which is slower")
		}
	}
	if a.known == nil {
		a.known = map[string]string{}
	}
	a.known[arch] = got
	return got, nil
}

// hungBefore says whether the memo spares us the wait.
func (a *accelerators) hungBefore() bool {
	b, err := os.ReadFile(a.memo)
	if err != nil {
		return false
	}
	var h hung
	return json.Unmarshal(b, &h) == nil && h.BootID != "" && h.BootID == bootID() && time.Since(h.At).Abs() < memoAge
}

// note keeps that KVM hung. Failures that show at once are not worth a memo.
func (a *accelerators) note(ctx context.Context, err error) {
	if a.memo == "" || !errors.Is(err, errHung) {
		return
	}
	if err := writeJSON(a.memo, hung{BootID: bootID(), At: time.Now()}); err != nil {
		zerolog.Ctx(ctx).Warn().Err(err).Msg("the KVM probe's result was not kept; it will be repeated")
	}
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// errProbe is a probe that ran and did not end as it must.
var errProbe = errors.New("the probe did not boot")

// errHung is a probe that did not end at all.
var errHung = errors.New("it hung")

// probe boots a program of a few bytes. /dev/kvm may exist and a guest under
// it hang for ever, so only a boot in time counts.
func probe(ctx context.Context, binary, arch, accelerator string, limit time.Duration) error {
	if accelerator == "kvm" {
		if goarch(arch) != runtime.GOARCH {
			return fmt.Errorf("a %s guest cannot use KVM on %s", arch, runtime.GOARCH)
		}
		f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		f.Close()
	}
	dir, err := os.MkdirTemp("", "pullab-probe-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	args, want, err := probeArgs(dir, arch, accelerator)
	if err != nil {
		return err
	}
	timed, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(timed, binary, append([]string{"-accel", accelerator}, args...)...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if timed.Err() != nil {
		return fmt.Errorf("%w within %s: %w", errProbe, limit, errHung)
	}
	if code := cmd.ProcessState.ExitCode(); code != want {
		return fmt.Errorf("%w: %w, %s", errProbe, errors.Join(err, fmt.Errorf("exit status %d, not %d", code, want)), strings.TrimSpace(string(out)))
	}
	return nil
}

// probeArgs writes the program and gives QEMU's arguments and the exit status
// of a program that ran.
func probeArgs(dir, arch, accelerator string) ([]string, int, error) {
	image := filepath.Join(dir, "probe")
	common := []string{"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none", "-m", "32"}
	if arch == "arm64" {
		cpu := "max"
		if accelerator == "kvm" {
			cpu = "host"
		}
		args := append(common, "-machine", "virt", "-cpu", cpu, "-kernel", image)
		return args, 0, os.WriteFile(image, probeArm64, 0o600)
	}
	sector := make([]byte, 512)
	copy(sector, probeX86)
	sector[510], sector[511] = 0x55, 0xaa
	args := append(common, "-machine", "pc", "-boot", "a",
		"-drive", "if=floppy,format=raw,readonly=on,file="+comma(image), "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04")
	return args, 0x31<<1 | 1, os.WriteFile(image, sector, 0o600)
}
