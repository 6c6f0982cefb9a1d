// Command pullab-guest runs inside the machine under test, as its PID 1.
package main

import (
	"os"

	"github.com/pullab/pullab/services/guest"
)

func main() {
	//nolint:forbidigo // pkg/app, which ends the other programs, does not ride in an initramfs
	os.Exit(guest.Main(os.Getpid(), os.Args[1:], os.Stdout, os.Stderr))
}
