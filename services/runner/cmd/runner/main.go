// Command runner boots planned kernels on machines and publishes what happened.
package main

import (
	"github.com/pullab/pullab/pkg/app"
	"github.com/pullab/pullab/services/runner"
)

func main() {
	app.Main("runner", "Run planned jobs on machines and publish their results.", &runner.Command{})
}
