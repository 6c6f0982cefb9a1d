package suite

import (
	"os/exec"
	"syscall"
)

// signal that ended a process.
func signal(exit *exec.ExitError) int {
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok {
		return int(ws.Signal())
	}
	return 0
}
