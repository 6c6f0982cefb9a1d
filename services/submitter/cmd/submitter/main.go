// Command submitter reports finished runs to KCIDB and kernelci-api.
package main

import (
	"github.com/pullab/pullab/pkg/app"
	"github.com/pullab/pullab/services/submitter"
)

func main() {
	app.Main("submitter", "Report finished runs: rows to KCIDB, finished nodes to kernelci-api.", &submitter.Command{})
}
