// Command poller offers a lab's jobs of kernelci-api to the rest of pullab.
package main

import (
	"github.com/pullab/pullab/pkg/app"
	"github.com/pullab/pullab/services/poller"
)

func main() {
	app.Main("poller", "Poll kernelci-api for this lab's jobs and offer them on the bus.", &poller.Command{})
}
