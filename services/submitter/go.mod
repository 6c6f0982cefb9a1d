module github.com/pullab/pullab/services/submitter

go 1.26.0

require (
	github.com/pullab/pullab/pkg v0.0.0
	github.com/pullab/pullab/proto v0.0.0
	github.com/santhosh-tekuri/jsonschema/v6 v6.0.3
	golang.org/x/text v0.14.0
	google.golang.org/protobuf v1.36.12
)

require (
	go.yaml.in/yaml/v2 v2.4.2 // indirect
	sigs.k8s.io/yaml v1.6.0 // indirect
)

replace (
	github.com/pullab/pullab/pkg => ../../pkg
	github.com/pullab/pullab/proto => ../../proto
)
