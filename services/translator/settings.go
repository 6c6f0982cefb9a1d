package translator

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/services/translator/internal/admission"
	"github.com/pullab/pullab/services/translator/internal/planner"
)

// Config of the translator.
type Config struct {
	KernelCI   config.KernelCI `section:"kernelci"`
	NATS       config.NATS     `section:"nats"`
	Translator Settings        `section:"translator"`
}

// Settings are the translator's own section.
type Settings struct {
	Claim         string        `key:"claim" env:"PULLAB_CLAIM" default:"auto" help:"Whether a job is claimed by writing node.data.job_id before it is run. auto: claim, and where the token is missing or may not edit nodes go on without, with one warning; another lab of the same runtime may then run the job too. required: wait until the claim works. off: never."`
	States        []string      `key:"states" env:"PULLAB_TRANSLATOR_STATES" default:"available,prepared" help:"Node states in which a job may be taken. Must contain the state that the poller asks for."`
	BuildOrigin   string        `key:"build_origin" env:"PULLAB_BUILD_ORIGIN" default:"maestro" help:"KCIDB origin in build_id (<origin>:<kbuild node id>). maestro is what the dashboard joins tests to builds by; empty takes kernelci.kcidb_origin, as the predecessor did, and the rows then hang on builds that nobody submits."`
	Catalog       string        `key:"catalog" env:"PULLAB_CATALOG" help:"YAML file that says on what each platform runs. It replaces the built-in one, which has qemu-x86_64, qemu-arm64, aws-ec2-x86_64 and aws-ec2-arm64 on QEMU."`
	Concurrency   int           `key:"concurrency" env:"PULLAB_TRANSLATOR_CONCURRENCY" default:"32" help:"Jobs admitted at the same time. Each waits for kernelci-api and the definition's host most of the time."`
	BootMargin    time.Duration `key:"boot_margin" env:"PULLAB_BOOT_MARGIN" default:"10m" help:"Time for fetching, booting and collecting, added to the tests' own timeouts to give the run's."`
	MaxRuntime    time.Duration `key:"max_runtime" env:"PULLAB_MAX_RUNTIME" default:"6h" help:"No run may take longer, whatever its tests ask for. KernelCI closes a job 6 hours after it was made."`
	FetchTimeout  time.Duration `key:"fetch_timeout" env:"PULLAB_DEFINITION_TIMEOUT" default:"30s" help:"Time for fetching one job definition, redirects and body included."`
	FetchPatience time.Duration `key:"fetch_patience" env:"PULLAB_DEFINITION_PATIENCE" default:"30m" help:"For how long a job whose definition cannot be fetched is tried again, before it is reported as incomplete (Infrastructure)."`
}

var originPattern = regexp.MustCompile(`^[a-z0-9_]+$`)

// Validate checks the choices.
func (s Settings) Validate() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf("translator."+format, args...)) }
	if !slices.Contains([]admission.Mode{admission.Auto, admission.Required, admission.Off}, admission.Mode(s.Claim)) {
		complain("claim is %q: write auto, required or off", s.Claim)
	}
	if len(s.States) == 0 {
		complain("states is empty: no job could be taken; the usual one is available")
	}
	if s.BuildOrigin != "" && !originPattern.MatchString(s.BuildOrigin) {
		complain("build_origin %q is not a legal KCIDB origin (lower-case letters, digits, underscores)", s.BuildOrigin)
	}
	if s.Concurrency < 1 || s.Concurrency > maxConcurrency {
		complain("concurrency is %d: it must be between 1 and %d", s.Concurrency, maxConcurrency)
	}
	for _, d := range []struct {
		key   string
		value time.Duration
		least time.Duration
	}{
		{"boot_margin", s.BootMargin, 0}, {"max_runtime", s.MaxRuntime, time.Second},
		{"fetch_timeout", s.FetchTimeout, time.Millisecond}, {"fetch_patience", s.FetchPatience, 0},
	} {
		if d.value < d.least {
			complain("%s is %s: it must be at least %s", d.key, d.value, d.least)
		}
	}
	return errors.Join(errs...)
}

// maxConcurrency keeps within what the broker lets one consumer have
// unacknowledged.
const maxConcurrency = 512

// Validate checks what several sections say together.
func (c Config) Validate() error {
	if admission.Mode(c.Translator.Claim) == admission.Required && c.KernelCI.APIToken == "" {
		return errors.New("translator.claim is required, but there is no kernelci.api_token to claim with: give one (KERNELCI_API_TOKEN) or set translator.claim to auto")
	}
	return nil
}

func (c Config) planner() planner.Settings {
	s := planner.Settings{
		BuildOrigin: c.Translator.BuildOrigin, KCIDBOrigin: c.KernelCI.KCIDBOrigin,
		BootMargin: c.Translator.BootMargin, MaxRuntime: c.Translator.MaxRuntime,
	}
	if s.BuildOrigin == "" {
		s.BuildOrigin = s.KCIDBOrigin
	}
	return s
}
