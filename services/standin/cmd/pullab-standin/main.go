// Command pullab-standin is the outside world of a lab for development.
package main

import (
	"github.com/pullab/pullab/pkg/app"
	"github.com/pullab/pullab/services/standin"
)

func main() {
	app.Main("pullab-standin", "Stand-ins for kernelci-api, KernelCI's artifact storage and KCIDB, as strict as the originals.", &standin.Command{})
}
