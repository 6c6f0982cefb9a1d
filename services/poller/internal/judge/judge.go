// Package judge decides whether a node is a job that this lab should be
// offered. It is a pure function of the node as it is now, the lab's rules and
// the API's time; what was offered before is package offers' business.
package judge

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"time"

	"github.com/pullab/pullab/pkg/kernelci"
)

// Rules of one lab.
type Rules struct {
	// Runtime is node.data.runtime of the lab's jobs.
	Runtime string
	// Platforms (node.data.platform) that are taken; empty takes every one.
	Platforms []string
	// State in which a job may be picked up.
	State string
	// Lab is our name in claims (kernelci.ClaimID).
	Lab string
	// MinRuntime must be left until node.timeout.
	MinRuntime time.Duration
}

// Reason is a short stable word for why a node is not offered.
type Reason string

// Reasons. None is the reason of a node that is offered.
const (
	None          Reason = ""
	OtherRuntime  Reason = "other-runtime"
	OtherPlatform Reason = "other-platform"
	NotAJob       Reason = "not-a-job"
	BadName       Reason = "bad-name"
	NotOpen       Reason = "not-open"
	Claimed       Reason = "claimed"
	NoDefinition  Reason = "no-definition"
	BadDefinition Reason = "bad-definition"
	TooLate       Reason = "too-late"
	TooLarge      Reason = "too-large"
)

// Foreign tells that the node is another lab's business, or another poller's of
// this lab: it is passed by without a record.
func (r Reason) Foreign() bool { return r == OtherRuntime || r == OtherPlatform || r == NotAJob }

// Verdict on a node.
type Verdict struct {
	Reason Reason
	// Detail is a sentence for the operator; empty when the node is offered.
	Detail string
}

// maxPlatform bounds what becomes part of a subject, in bytes. Upstream's
// longest platform has about 40.
const maxPlatform = 200

// nodeID is a MongoDB ObjectId, which every node of kernelci-api has.
var nodeID = regexp.MustCompile(`^[0-9a-f]{24}$`)

// Judge a node. The order matters: a node of another runtime is foreign
// whatever else is wrong with it.
func (r Rules) Judge(n *kernelci.Node, now time.Time) Verdict {
	no := func(why Reason, format string, args ...any) Verdict {
		return Verdict{why, fmt.Sprintf(format, args...)}
	}
	switch {
	case n.Kind != "job":
		return no(NotAJob, "its kind is %.40q", n.Kind)
	case n.Data.Runtime != r.Runtime:
		return no(OtherRuntime, "node.data.runtime is %.100q", n.Data.Runtime)
	case len(r.Platforms) > 0 && !slices.Contains(r.Platforms, n.Data.Platform):
		return no(OtherPlatform, "node.data.platform %.100q is not in kernelci.platforms", n.Data.Platform)
	case !nodeID.MatchString(n.ID):
		return no(BadName, "its id %.40q is not a node id (24 hex digits)", n.ID)
	case len(n.Data.Platform) > maxPlatform:
		return no(BadName, "its platform's name has %d bytes", len(n.Data.Platform))
	case n.State != r.State:
		return no(NotOpen, "its state is %.40q now, result %.40q; jobs are taken in state %s", n.State, n.Result, r.State)
	case n.Data.JobID != "" && n.Data.JobID != kernelci.ClaimID(r.Runtime, r.Lab, n.ID):
		return no(Claimed, "it is claimed: data.job_id is %.100q", n.Data.JobID)
	}
	if v := definition(n.Artifacts["job_definition"]); v.Reason != None {
		return v
	}
	if left := n.Timeout.Sub(now); !n.Timeout.IsZero() && left < r.MinRuntime {
		return no(TooLate, "KernelCI closes it at %s, %s from now; a run needs at least %s (poller.min_runtime)",
			n.Timeout.Format(time.RFC3339), left.Round(time.Second), r.MinRuntime)
	}
	return Verdict{}
}

// definition only sees to it that there is something to fetch. What is behind
// the URL, and a .yaml there (a LAVA job), is the translator's to refuse: it
// reports its refusals.
func definition(s string) Verdict {
	if s == "" {
		return Verdict{NoDefinition, "it has no artifacts.job_definition"}
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return Verdict{BadDefinition, "its artifacts.job_definition is not an http or https URL"}
	}
	return Verdict{}
}
