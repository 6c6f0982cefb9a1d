package config

// KernelCI is the `kernelci` block of the predecessor's configuration, key for
// key, so that an existing file keeps working. Poller, translator and submitter
// share it.
type KernelCI struct {
	APIBaseURI      string   `key:"api_base_uri" env:"KERNELCI_API_BASE_URI" default:"https://staging.kernelci.org:9000/latest" help:"Base URL of kernelci-api."`
	APIToken        Secret   `key:"api_token" env:"KERNELCI_API_TOKEN,UNIFIED_TOKEN" help:"Bearer token for kernelci-api. Reading works without one; claiming and finishing nodes do not."`
	RuntimeName     string   `key:"runtime_name" env:"KERNELCI_RUNTIME_NAME" default:"pull-labs-aws-ec2" help:"Runtime whose jobs this lab takes: node.data.runtime."`
	Platforms       []string `key:"platforms" env:"KERNELCI_PLATFORMS" help:"Platforms (node.data.platform) to take; empty takes every platform."`
	PollIntervalSec int      `key:"poll_interval_sec" env:"PULLAB_POLL_INTERVAL_SEC" default:"30" help:"Seconds between polls when there is nothing to do."`
	CursorFile      string   `key:"cursor_file" env:"PULLAB_CURSOR_FILE" help:"The predecessor's cursor file. Read once, to seed an empty pullab_cursor bucket; the cursor then lives there."`
	KCIDBSubmitURL  string   `key:"kcidb_submit_url" env:"KCIDB_SUBMIT_URL" default:"https://db.kernelci.org/submit" help:"kcidb-restd-rs submit URL."`
	KCIDBOrigin     string   `key:"kcidb_origin" env:"KCIDB_ORIGIN" default:"pullab_cloud_aws" help:"Origin of the rows: lower-case letters, digits and underscores."`
	KCIDBJWT        Secret   `key:"kcidb_jwt" env:"KCIDB_JWT" help:"Bearer token for the submit URL."`
	KCIDBRest       Secret   `key:"kcidb_rest" env:"KCIDB_REST" help:"https://<token>@host[/path]: submit URL and token in one, as kci-dev has it."`
}

// NATS is the connection to the broker.
type NATS struct {
	URL       string `key:"url" env:"NATS_URL" default:"nats://127.0.0.1:4222" help:"NATS servers, comma separated."`
	CredsFile string `key:"creds_file" env:"NATS_CREDS" help:"Credentials file (.creds); empty connects without one."`
	Replicas  int    `key:"replicas" default:"1" help:"Replicas of every stream and bucket: 1, or 3 on a cluster of three."`
}
