//go:build !linux

package guest

import (
	"context"
	"fmt"
	"io"
)

func boot(context.Context, io.Writer) int { return 1 }

func modprobe(name string, stderr io.Writer) int {
	fmt.Fprintf(stderr, "pullab-guest: %s: only Linux loads modules\n", name)
	return 1
}
