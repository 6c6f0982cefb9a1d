// Command testguest is a guest program for this executor's own tests: it
// speaks pkg/channel and does what the plan's first test says, good or bad.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/pullab/pullab/pkg/channel"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stdout, "testguest:", err)
	}
	poweroff(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}

func poweroff(how int) {
	syscall.Sync()
	_ = syscall.Reboot(how)
	hang()
}

// hang waits in the kernel: a program whose goroutines all wait would be ended
// by Go as deadlocked.
func hang() {
	for {
		_ = syscall.Pause()
	}
}

type guest struct {
	out  *channel.Writer
	plan channel.Plan
	test channel.Test
	// port is the raw device, for forging.
	port *os.File
	rows int
	// bare is what /dev lacked before anything was mounted.
	bare error
}

func run() error {
	g := &guest{bare: devices()}
	for _, m := range [][2]string{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}} {
		if err := os.MkdirAll(m[0], 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(m[1], m[0], m[1], 0, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", m[0], err)
		}
	}
	b, err := os.ReadFile("/pullab/plan.json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &g.plan); err != nil {
		return err
	}
	g.test = g.plan.Tests[0]
	scenario := g.test.Parameters["scenario"]
	if scenario == "hang" {
		hang()
	}
	if g.port, err = os.OpenFile("/dev/"+g.plan.Port, os.O_WRONLY|syscall.O_NOCTTY, 0); err != nil {
		return err
	}
	g.out = channel.NewWriter(g.port, g.plan.Key)
	if scenario == "refuse" {
		return g.out.Send(channel.Message{Refuse: &channel.Refuse{Reason: "the test said so"}})
	}
	if err := g.hello(scenario); err != nil {
		return err
	}
	return g.act(scenario)
}

func (g *guest) hello(scenario string) error {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	text := strings.TrimSpace(string(release))
	if scenario == "other kernel" {
		text = "5.4.0-other"
	}
	return g.out.Send(channel.Message{Hello: &channel.Hello{Release: text, UptimeS: uptime(), Match: scenario != "other kernel"}})
}

func uptime() float64 {
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), " ")
	s, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return s
}

func (g *guest) row(path, status, excerpt string) error {
	g.rows++
	return g.out.Send(channel.Message{Row: &channel.Row{TestID: g.test.ID, Path: path, Status: status, Excerpt: excerpt, StartS: uptime()}})
}

func (g *guest) act(scenario string) error {
	switch scenario {
	case "panic at once":
		return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	case "exit":
		os.Exit(3) //nolint:forbidigo // PID 1 that ends is what is tested
	}
	if err := g.row("boot", "PASS", ""); err != nil {
		return err
	}
	if len(g.plan.Tests) > 1 {
		g.test = g.plan.Tests[1]
		if err := g.out.Send(channel.Message{Phase: &channel.Phase{Name: "test", Detail: g.test.ID}}); err != nil {
			return err
		}
	}
	switch scenario {
	case "panic in a test":
		return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	case "reboot":
		poweroff(syscall.LINUX_REBOOT_CMD_RESTART)
	case "silent":
		hang()
	case "forge":
		if _, err := g.port.WriteString("\x1e" + strings.Repeat("0", 64) + ` {"seq":3,"done":{"rows":1}}` + "\n"); err != nil {
			return err
		}
		poweroff(syscall.LINUX_REBOOT_CMD_RESTART)
	case "files":
		if err := g.files(); err != nil {
			return err
		}
	}
	return g.out.Send(channel.Message{Done: &channel.Done{Rows: g.rows, UptimeS: uptime()}})
}

// files says what is there of the job's inputs.
func (g *guest) files() error {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	for name, path := range map[string]string{
		"modules": "/lib/modules/" + strings.TrimSpace(string(release)) + "/modules.builtin",
		"ramdisk": "/usr/lib/from-the-ramdisk",
		"link":    "/lib/from-the-ramdisk",
	} {
		if err := g.report("files."+name, func() error { _, err := os.Stat(path); return err }()); err != nil {
			return err
		}
	}
	if err := g.report("files.devices", g.bare); err != nil {
		return err
	}
	if g.plan.RootSerial == "" {
		return nil
	}
	return g.report("files.disk", g.disk())
}

// devices looks for those that the initial file system must bring.
func devices() error {
	for path, want := range map[string]uint64{"/dev/console": 5<<8 | 1, "/dev/null": 1<<8 | 3} {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if st.Mode&syscall.S_IFMT != syscall.S_IFCHR || st.Rdev != want {
			return fmt.Errorf("%s is device %#x of mode %o", path, st.Rdev, st.Mode)
		}
	}
	return nil
}

func (g *guest) report(path string, err error) error {
	if err != nil {
		return g.row(path, "FAIL", err.Error())
	}
	return g.row(path, "PASS", "")
}

// disk finds the root disk by its serial, reads from it and writes to it.
func (g *guest) disk() error {
	paths, err := filepath.Glob("/sys/block/*/device/serial")
	if err != nil {
		return err
	}
	more, err := filepath.Glob("/sys/block/*/serial")
	if err != nil {
		return err
	}
	for _, p := range append(paths, more...) {
		b, err := os.ReadFile(p)
		if err != nil || strings.TrimSpace(string(b)) != g.plan.RootSerial {
			continue
		}
		if err := os.MkdirAll("/root-disk", 0o755); err != nil {
			return err
		}
		device := "/dev/" + strings.Split(p, "/")[3]
		if err := syscall.Mount(device, "/root-disk", "ext4", 0, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", device, err)
		}
		if _, err := os.ReadFile("/root-disk/usr/lib/os-release"); err != nil {
			return err
		}
		if err := os.WriteFile("/root-disk/big", make([]byte, 40<<20), 0o644); err != nil {
			return err
		}
		return syscall.Unmount("/root-disk", 0)
	}
	return fmt.Errorf("no disk has serial %s", g.plan.RootSerial)
}
