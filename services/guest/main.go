package guest

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime/debug"
)

const help = `pullab-guest is the program that pullab runs inside a machine under test.

It is not started by hand: as PID 1 of an initramfs it takes the plan from
/pullab/plan.json, removes it, checks the running kernel against it, runs its
tests, reports signed rows on the plan's port, and powers the machine off.
An executor puts it there:

  qemu    kernel command line rdinit=/pullab-guest, and an initramfs with
          /pullab-guest, /pullab/plan.json and lib/modules/<release>

To see it work:  pullab run --definition FILE|URL

  pullab-guest --version   print the version
`

// Main is the program; it gives the exit code. As PID 1 it does not come back
// unless the kernel refuses to power off.
func Main(pid int, args []string, stdout, stderr io.Writer) int {
	switch {
	case pid == 1:
		return boot(context.Background(), os.Stdout)
	case len(args) == 1 && args[0] == "--version":
		fmt.Fprintln(stdout, "pullab-guest", version())
		return 0
	case len(args) == 3 && args[0] == "-q" && args[1] == "--":
		// How the kernel calls modprobe (kernel/module/kmod.c).
		return modprobe(args[2], stderr)
	}
	fmt.Fprint(stderr, help)
	return 2
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
