package planner

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/pkg/wire"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/translator/internal/catalog"
	"github.com/pullab/pullab/services/translator/internal/jobdef"
)

// Legal values of node.data.error_code that a refusal may have
// (kernelci-wire.md 2.1).
const (
	InvalidJobParams = "invalid_job_params"
	Configuration    = "Configuration"
	Infrastructure   = "Infrastructure"
)

// maxMessage of a refusal in bytes: it goes into a node's error_msg and must
// never be what makes a message too large.
const maxMessage = 2000

// Refusal says why a job cannot be run, in kernelci-api's terms.
type Refusal struct {
	Code string
	// Message is for whoever wrote the job or runs the lab.
	Message string
}

func (r *Refusal) Error() string { return r.Message }

func refuse(code, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Settings of the lab.
type Settings struct {
	// BuildOrigin is the KCIDB origin of builds; never empty.
	BuildOrigin string
	// KCIDBOrigin is the lab's own, for builds that cannot be resolved.
	KCIDBOrigin string
	// BootMargin is added to the tests' timeouts for fetching, booting and
	// collecting.
	BootMargin time.Duration
	// MaxRuntime caps the whole run.
	MaxRuntime time.Duration
	// AllowFile lets artifacts be file:// URLs: only for a definition that lies
	// on the operator's own disk.
	AllowFile bool
}

// Job is what is known beside the definition.
type Job struct {
	// Origin goes into the plan untouched.
	Origin *pullabv1.Origin
	// RunID and JobID are chosen once and kept (see RunID).
	RunID, JobID string
	// Arch to file a refusal under; a plan's comes from the catalog.
	Arch  string
	Build *pullabv1.Build
	// FinishBefore is the zero time when there is no node.
	FinishBefore time.Time
	// Now is when the plan is made.
	Now time.Time
}

// Plan makes the plan; any error is a *Refusal.
func Plan(j Job, def *jobdef.Definition, c *catalog.Catalog, s Settings) (*pullabv1.RunPlanned, error) {
	// The kernel comes first: nothing else matters without one.
	if def.Artifacts[jobdef.Kernel] == "" {
		return nil, refuse(InvalidJobParams, "missing required artifacts.kernel: the KernelCI build that produced this job did not upload a kernel image")
	}
	boot, err := artifacts(def, s.AllowFile)
	if err != nil {
		return nil, err
	}
	tests, err := tests(def)
	if err != nil {
		return nil, err
	}
	platform, err := machine(j, def, c)
	if err != nil {
		return nil, err
	}
	boot.ExtraCmdline = platform.Cmdline
	plan := j.frame()
	plan.Executor, plan.Arch = platform.Executor, platform.Arch
	plan.Machine = &pullabv1.Machine{
		Platform: platform.Name, Cpus: int32(platform.CPUs), MemoryMib: int32(platform.MemoryMiB),
		DiskGib: int32(platform.DiskGiB), Options: platform.Options,
	}
	plan.Boot, plan.Tests = boot, tests
	plan.RunTimeout = durationpb.New(runTimeout(tests, s))
	plan.Parameters, plan.DefinitionSha256 = def.Parameters, def.SHA256
	return plan, fits(plan)
}

// Refused is the plan that is a refusal.
func Refused(j Job, r *Refusal) *pullabv1.RunPlanned {
	plan := j.frame()
	plan.Executor, plan.Arch = topology.None, j.Arch
	plan.Refusal = &pullabv1.Refusal{ErrorCode: r.Code, ErrorMsg: cut(r.Message, maxMessage)}
	return plan
}

// frame is what plans and refusals share.
func (j Job) frame() *pullabv1.RunPlanned {
	plan := &pullabv1.RunPlanned{
		Origin: j.Origin, RunId: j.RunID, JobId: j.JobID, Build: j.Build, PlannedAt: timestamppb.New(j.Now),
	}
	if !j.FinishBefore.IsZero() {
		plan.FinishBefore = timestamppb.New(j.FinishBefore)
	}
	return plan
}

// fits refuses a plan that no message can carry.
func fits(plan *pullabv1.RunPlanned) error {
	// JSON is at least as long as the binary form, and costs more to make.
	size := proto.Size(plan)
	if size <= wire.MaxPayload {
		b, err := wire.Encode(plan)
		if err != nil {
			return refuse(InvalidJobParams, "the job definition has text that cannot be passed on: %v", err)
		}
		size = len(b)
	}
	if size > wire.MaxPayload {
		return refuse(InvalidJobParams, "the plan made from the job definition has %d bytes; at most %d can be passed on", size, wire.MaxPayload)
	}
	return nil
}

func machine(j Job, def *jobdef.Definition, c *catalog.Catalog) (catalog.Platform, error) {
	name, asked := def.Platform, j.Origin.GetPlatform()
	if name == "" {
		name = asked
	}
	if asked != "" && name != asked {
		return catalog.Platform{}, refuse(InvalidJobParams, "the job definition is for platform %q, its node for %q", clip(name), clip(asked))
	}
	if name == "" {
		return catalog.Platform{}, refuse(InvalidJobParams, "missing required environment.platform")
	}
	p, err := c.Lookup(name)
	if err != nil {
		var unknown *catalog.UnknownPlatformError
		if errors.As(err, &unknown) {
			unknown.Platform = clip(unknown.Platform)
			return p, refuse(Configuration, "%v", unknown)
		}
		return p, refuse(Configuration, "platform %q cannot be looked up: %v", clip(name), err)
	}
	if arch := Arch(def.Arch); arch != "" && arch != p.Arch {
		return p, refuse(InvalidJobParams, "the job definition is for arch %q, but this lab's catalog has platform %q as %s", clip(def.Arch), name, p.Arch)
	}
	return p, nil
}

// Arch gives KernelCI's spelling of an arch.
func Arch(s string) string {
	switch s {
	case "aarch64":
		return "arm64"
	case "amd64":
		return "x86_64"
	}
	return s
}

func artifacts(def *jobdef.Definition, allowFile bool) (*pullabv1.Boot, error) {
	b := &pullabv1.Boot{}
	for _, a := range []struct {
		name string
		file **pullabv1.RemoteFile
	}{
		{jobdef.Kernel, &b.Kernel}, {jobdef.Modules, &b.Modules}, {jobdef.Ramdisk, &b.Ramdisk}, {jobdef.Initrd, &b.Initrd},
		{jobdef.Rootfs, &b.Rootfs}, {jobdef.DTB, &b.Dtb}, {jobdef.Kselftest, &b.Kselftest},
	} {
		location := def.Artifacts[a.name]
		if location == "" {
			continue
		}
		u, err := url.Parse(location)
		if err != nil {
			// The parser's error repeats the text, which may hold a password.
			return nil, refuse(InvalidJobParams, "artifacts.%s is not a URL", a.name)
		}
		if err := jobdef.CheckURL(u, allowFile); err != nil {
			return nil, refuse(InvalidJobParams, "artifacts.%s %v", a.name, err)
		}
		*a.file = &pullabv1.RemoteFile{Url: location, Sha256: def.Checksums[a.name]}
	}
	return b, nil
}

// runTimeout is the tests' own time and the margin, capped.
func runTimeout(tests []*pullabv1.TestPlan, s Settings) time.Duration {
	total := s.BootMargin
	for _, t := range tests {
		total = min(total+t.GetTimeout().AsDuration(), s.MaxRuntime)
	}
	return min(total, s.MaxRuntime)
}
