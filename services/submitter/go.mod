module github.com/pullab/pullab/services/submitter

go 1.26

require (
	github.com/pullab/pullab/pkg v0.0.0
	github.com/pullab/pullab/proto v0.0.0
)

replace (
	github.com/pullab/pullab/pkg => ../../pkg
	github.com/pullab/pullab/proto => ../../proto
)
