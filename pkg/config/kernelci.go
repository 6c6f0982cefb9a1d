package config

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

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
	KCIDBOrigin     string   `key:"kcidb_origin" env:"KCIDB_ORIGIN" default:"pullab_cloud_aws" help:"Origin of the rows: lower-case letters, digits and underscores. It also names this lab in its claims: labs that share a runtime must differ in it."`
	KCIDBJWT        Secret   `key:"kcidb_jwt" env:"KCIDB_JWT" help:"Bearer token for the submit URL."`
	KCIDBRest       Secret   `key:"kcidb_rest" env:"KCIDB_REST" help:"https://<token>@host[/path]: submit URL and token in one, as kci-dev has it."`
}

// MissingPrefix begins the guide's message about a key that has no value; the
// key follows. Operators search for it word for word.
const MissingPrefix = "Missing required configuration:"

// originPattern is KCIDB's (kernelci-wire.md section 4).
var originPattern = regexp.MustCompile(`^[a-z0-9_]+$`)

// Validate checks what every service needs to hold.
func (k KernelCI) Validate() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf("kernelci."+format, args...)) }
	missing := func(key string) { errs = append(errs, fmt.Errorf("%s kernelci.%s", MissingPrefix, key)) }
	for _, u := range []struct{ key, value string }{{"api_base_uri", k.APIBaseURI}, {"kcidb_submit_url", k.KCIDBSubmitURL}} {
		if u.value == "" {
			missing(u.key)
		} else if err := checkURL(u.value); err != nil {
			complain("%s: %w", u.key, err)
		}
	}
	if k.RuntimeName == "" {
		missing("runtime_name")
	}
	if k.PollIntervalSec < 1 {
		complain("poll_interval_sec is %d: it must be at least 1 second", k.PollIntervalSec)
	}
	if !originPattern.MatchString(k.KCIDBOrigin) {
		complain("kcidb_origin %q is not a legal KCIDB origin (lower-case letters, digits, underscores): try %q", k.KCIDBOrigin, legalOrigin(k.KCIDBOrigin))
	}
	return errors.Join(errs...)
}

func checkURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		// url.Error repeats the text, which may carry a password.
		return errors.New("is not a URL: write it as https://host[:port]/path")
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return fmt.Errorf("%q is not an http or https URL", u.Redacted())
	case u.User != nil:
		return errors.New("must not carry credentials: give the token by its own key")
	}
	return nil
}

func legalOrigin(s string) string {
	t := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '_':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '_'
	}, s)
	if t == "" {
		return "my_lab"
	}
	return t
}

// NATS is the connection to the broker.
type NATS struct {
	URL       string `key:"url" env:"NATS_URL" default:"nats://127.0.0.1:4222" help:"NATS servers, comma separated."`
	CredsFile string `key:"creds_file" env:"NATS_CREDS" help:"Credentials file (.creds); empty connects without one."`
	Replicas  int    `key:"replicas" env:"PULLAB_NATS_REPLICAS" default:"1" help:"Replicas of every stream and bucket: 1, or 3 on a cluster of three."`
	Topology  string `key:"topology" env:"PULLAB_NATS_TOPOLOGY" default:"apply" help:"At start: apply creates and updates streams and buckets, verify only compares and refuses to start on a difference."`
}

// Validate checks the choices.
func (n NATS) Validate() error {
	if n.Topology != "apply" && n.Topology != "verify" {
		return fmt.Errorf("nats.topology is %q: write apply or verify", n.Topology)
	}
	if n.Replicas != 1 && n.Replicas != 3 && n.Replicas != 5 {
		return fmt.Errorf("nats.replicas is %d: JetStream wants 1, 3 or 5", n.Replicas)
	}
	return nil
}
