// Package topology declares every stream, consumer and bucket of pullab as
// code: their names, subjects and limits, with the arithmetic beside each
// number. Plan tells what differs from the broker, Apply makes it so, Verify
// fails with the difference printed.
package topology

import "github.com/pullab/pullab/pkg/wire"

// Streams.
const (
	Jobs       = "PULLAB_JOBS"
	Runs       = "PULLAB_RUNS"
	Results    = "PULLAB_RESULTS"
	Progress   = "PULLAB_PROGRESS"
	Dead       = "PULLAB_DEAD"
	Advisories = "PULLAB_ADVISORIES"
)

// Consumers. The runner's are named by RunnerConsumer.
const (
	Translator     = "translator"
	SubmitterKCIDB = "submitter-kcidb"
	SubmitterNode  = "submitter-node"
)

// Buckets, each owned by one service alone.
const (
	Cursor     = "pullab_cursor"
	Offers     = "pullab_offers"
	Admissions = "pullab_admissions"
	RunLedger  = "pullab_runs"
	Receipts   = "pullab_receipts"
	// ResultRows is the object store for rows too large for a message.
	ResultRows = "pullab_results"
)

// None is the executor of a plan that is a refusal: there is nothing to boot,
// the runner only passes the reason on.
const None = "none"

// Executors that a plan may name. Each has a consumer per arch, so that no
// subject is left without a reader.
var Executors = []string{"command", "qemu"}

// Arches that a machine may have, in KernelCI's spelling.
var Arches = []string{"arm64", "x86_64"}

// JobSubject is where the poller offers a job.
func JobSubject(runtime, platform, node string) string {
	return "pullab.jobs." + wire.Token(runtime) + "." + wire.Token(platform) + "." + wire.Token(node)
}

// RunSubject is where the translator puts a plan.
func RunSubject(executor, arch, node string) string {
	return "pullab.runs." + wire.Token(executor) + "." + wire.Token(arch) + "." + wire.Token(node)
}

// ResultSubject is where the runner puts a result.
func ResultSubject(runtime, node string) string {
	return "pullab.results." + wire.Token(runtime) + "." + wire.Token(node)
}

// ProgressSubject is where the runner tells of phases.
func ProgressSubject(node string) string { return "pullab.progress." + wire.Token(node) }

// DeadSubject is where a service puts what it gave up on.
func DeadSubject(service, node string) string {
	return "pullab.dead." + wire.Token(service) + "." + wire.Token(node)
}

// RunnerConsumer names the consumer for plans of one executor and arch;
// refusals of every arch share one, runner-none.
func RunnerConsumer(executor, arch string) string {
	if executor == None {
		return "runner-none"
	}
	return "runner-" + executor + "-" + arch
}
