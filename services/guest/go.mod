module github.com/pullab/pullab/services/guest

go 1.26.0

require (
	github.com/klauspost/compress v1.20.4
	github.com/pullab/pullab/pkg v0.0.0
	github.com/ulikunitz/xz v0.5.17
	golang.org/x/sys v0.49.0
)

replace (
	github.com/pullab/pullab/pkg => ../../pkg
	github.com/pullab/pullab/proto => ../../proto
)
