// Command translator admits offered jobs and plans them.
package main

import (
	"github.com/pullab/pullab/pkg/app"
	"github.com/pullab/pullab/services/translator"
)

func main() {
	app.Main("translator", "Admit offered jobs and turn their definitions into plans for the runner.", &translator.Command{})
}
