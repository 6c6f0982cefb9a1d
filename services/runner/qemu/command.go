package qemu

import (
	"fmt"
	"strconv"
	"strings"
)

// hardware is everything that QEMU's command line depends on.
type hardware struct {
	binary, arch, accelerator string
	options                   PlanOptions
	cpus, memoryMiB           int
	kernel, initrd, dtb       string
	// disk is the root file system's image, empty without one; driver how it is
	// attached and serial how the guest finds it.
	disk, driver, serial string
	console, channel     string
	cmdline              string
}

// port is the device on which the guest reports. A second 16550 exists on every
// PC; on arm's virt machine it is one on PCI, whose driver (8250_pci) comes
// with 8250 itself, while virtio devices are modules on some kernels.
func port(arch string) string {
	if arch == "arm64" {
		return "ttyS0"
	}
	return "ttyS1"
}

// accel lets emulated CPUs take turns in one thread. With a thread each, a busy
// host starves one of them for seconds, the guest calibrates its timers by the
// starved one, and a healthy kernel stalls ("rcu_preempt kthread starved"): the
// lab's failure in the kernel's words.
func (h hardware) accel() string {
	if h.accelerator == "tcg" {
		return "tcg,thread=single"
	}
	return h.accelerator
}

// machineType is -machine's value.
func (h hardware) machineType() string {
	switch {
	case h.options.Machine != "":
		return h.options.Machine
	case h.arch == "arm64":
		return "virt"
	}
	return "q35"
}

func (h hardware) cpu() string {
	switch {
	case h.options.CPU != "":
		return h.options.CPU
	case h.accelerator == "kvm":
		return "host"
	case h.arch == "arm64":
		// Pointer authentication in QEMU's own cipher: the architected one makes
		// emulation several times slower.
		return "max,pauth-impdef=on"
	}
	return "max"
}

// args is the command, ready to be run by hand.
func (h hardware) args() []string {
	machine := h.machineType()
	if h.arch == "arm64" && h.accelerator == "kvm" && h.options.Machine == "" {
		machine += ",gic-version=host"
	}
	args := []string{
		h.binary, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none",
		"-machine", machine, "-accel", h.accel(), "-cpu", h.cpu(),
		"-smp", strconv.Itoa(h.cpus), "-m", strconv.Itoa(h.memoryMiB),
		"-chardev", "file,id=console,path=" + comma(h.console), "-serial", "chardev:console",
		"-chardev", "file,id=channel,path=" + comma(h.channel),
	}
	if h.arch == "arm64" {
		args = append(args, "-device", "pci-serial,chardev=channel")
	} else {
		args = append(args, "-serial", "chardev:channel")
	}
	args = append(args, "-device", "virtio-rng-pci")
	if h.disk != "" {
		device := "virtio-blk-pci"
		if h.driver == "nvme" {
			device = "nvme"
		}
		// The image is shared by all machines of the root file system; what is
		// written goes to a file that QEMU removes as soon as it is open.
		args = append(args, "-drive", "if=none,id=root,format=raw,snapshot=on,file="+comma(h.disk),
			"-device", fmt.Sprintf("%s,drive=root,serial=%s", device, h.serial))
	}
	if h.dtb != "" {
		args = append(args, "-dtb", h.dtb)
	}
	return append(args, "-kernel", h.kernel, "-initrd", h.initrd, "-append", h.append())
}

// append is the kernel's command line. An early console shows what a kernel
// says that dies before its drivers.
func (h hardware) append() string {
	words := "console=ttyS0,115200 earlyprintk=serial,ttyS0,115200"
	if h.arch == "arm64" {
		words = "console=ttyAMA0,115200 earlycon"
	}
	return strings.Join(strings.Fields(words+" rdinit=/pullab-guest "+h.cmdline+" "+h.options.Cmdline), " ")
}

// comma escapes a path for QEMU's option syntax.
func comma(path string) string { return strings.ReplaceAll(path, ",", ",,") }

// shellLine is the command as a line for a shell.
func shellLine(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = a
		if strings.ContainsFunc(a, func(r rune) bool {
			return !strings.ContainsRune("+,-./:=@_", r) && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
		}) || a == "" {
			quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}
