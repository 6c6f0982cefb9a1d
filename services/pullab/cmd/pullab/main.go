// Command pullab is a KernelCI pull lab in one binary.
package main

import (
	"github.com/pullab/pullab/pkg/app"
	"github.com/pullab/pullab/services/pullab"
)

func main() {
	app.Main("pullab", "A KernelCI pull lab: asks kernelci-api for jobs, boots the kernel under test, runs the tests, reports.", &pullab.CLI{})
}
