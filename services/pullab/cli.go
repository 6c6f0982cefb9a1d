// Package pullab is the operator's one binary: every service as a subcommand,
// all of them in one process with a broker of their own, and the tools.
package pullab

import (
	"github.com/pullab/pullab/services/poller"
	"github.com/pullab/pullab/services/pullab/streams"
	"github.com/pullab/pullab/services/runner"
	"github.com/pullab/pullab/services/standin"
	"github.com/pullab/pullab/services/submitter"
	"github.com/pullab/pullab/services/translator"
)

// CLI is the command line.
type CLI struct {
	Up  Up  `cmd:"" help:"Run the whole lab in this process, with an embedded broker."`
	Run Run `cmd:"" help:"Run one job definition here, without any API and without reporting it."`

	Config   ConfigCommand   `cmd:"" help:"Check, show or document the configuration."`
	Topology streams.Command `cmd:"" help:"Plan, apply or verify the broker's streams, consumers and buckets."`

	Poller     poller.Command     `cmd:"" group:"Services, each on its own:" help:"Offer the jobs that kernelci-api has for this lab."`
	Translator translator.Command `cmd:"" group:"Services, each on its own:" help:"Admit offered jobs and plan their runs."`
	Runner     runner.Command     `cmd:"" group:"Services, each on its own:" help:"Run planned runs on machines."`
	Submitter  submitter.Command  `cmd:"" group:"Services, each on its own:" help:"Report results to KCIDB and kernelci-api."`
	Standin    standin.Command    `cmd:"" group:"Development:" help:"Stand-ins for kernelci-api, the artifact storage and KCIDB."`
}
