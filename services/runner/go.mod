module github.com/pullab/pullab/services/runner

go 1.26.0

require (
	github.com/pullab/pullab/pkg v0.0.0
	github.com/pullab/pullab/proto v0.0.0
)

require (
	github.com/mattn/go-colorable v0.1.14 // indirect
	github.com/mattn/go-isatty v0.0.24 // indirect
	github.com/rs/zerolog v1.35.1 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace (
	github.com/pullab/pullab/pkg => ../../pkg
	github.com/pullab/pullab/proto => ../../proto
)
