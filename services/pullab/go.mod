module github.com/pullab/pullab/services/pullab

go 1.26

require (
	github.com/pullab/pullab/pkg v0.0.0
	github.com/pullab/pullab/proto v0.0.0
	github.com/pullab/pullab/services/guest v0.0.0
	github.com/pullab/pullab/services/poller v0.0.0
	github.com/pullab/pullab/services/runner v0.0.0
	github.com/pullab/pullab/services/standin v0.0.0
	github.com/pullab/pullab/services/submitter v0.0.0
	github.com/pullab/pullab/services/translator v0.0.0
)

replace (
	github.com/pullab/pullab/pkg => ../../pkg
	github.com/pullab/pullab/proto => ../../proto
	github.com/pullab/pullab/services/guest => ../guest
	github.com/pullab/pullab/services/poller => ../poller
	github.com/pullab/pullab/services/runner => ../runner
	github.com/pullab/pullab/services/standin => ../standin
	github.com/pullab/pullab/services/submitter => ../submitter
	github.com/pullab/pullab/services/translator => ../translator
)
