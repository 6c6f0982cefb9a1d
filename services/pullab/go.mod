module github.com/pullab/pullab/services/pullab

go 1.26.0

require (
	github.com/cavaliergopher/cpio v1.0.1
	github.com/nats-io/nats.go v1.55.0
	github.com/pullab/pullab/pkg v0.0.0
	github.com/pullab/pullab/proto v0.0.0
	github.com/pullab/pullab/services/poller v0.0.0
	github.com/pullab/pullab/services/runner v0.0.0
	github.com/pullab/pullab/services/standin v0.0.0
	github.com/pullab/pullab/services/submitter v0.0.0
	github.com/pullab/pullab/services/translator v0.0.0
	github.com/rs/zerolog v1.35.1
	golang.org/x/sync v0.24.0
)

require (
	github.com/Microsoft/hcsshim v0.14.1 // indirect
	github.com/alecthomas/kong v1.17.0 // indirect
	github.com/antithesishq/antithesis-sdk-go v0.8.0-default-no-op // indirect
	github.com/containerd/cgroups/v3 v3.1.3 // indirect
	github.com/golang/groupcache v0.0.0-20210331224755-41bb18bfe9da // indirect
	github.com/google/go-tpm v0.9.8 // indirect
	github.com/klauspost/compress v1.20.4 // indirect
	github.com/mattn/go-colorable v0.1.14 // indirect
	github.com/mattn/go-isatty v0.0.24 // indirect
	github.com/minio/highwayhash v1.0.4 // indirect
	github.com/nats-io/jwt/v2 v2.8.2 // indirect
	github.com/nats-io/nats-server/v2 v2.15.2 // indirect
	github.com/nats-io/nkeys v0.4.16 // indirect
	github.com/nats-io/nuid v1.0.1 // indirect
	github.com/pkg/errors v0.9.1 // indirect
	github.com/santhosh-tekuri/jsonschema/v6 v6.0.3 // indirect
	github.com/sirupsen/logrus v1.10.2 // indirect
	github.com/ulikunitz/xz v0.5.17 // indirect
	go.opencensus.io v0.24.0 // indirect
	go.yaml.in/yaml/v2 v2.4.4 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	golang.org/x/time v0.16.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
	sigs.k8s.io/yaml v1.6.0 // indirect
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
