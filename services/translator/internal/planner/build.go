package planner

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"time"

	"github.com/pullab/pullab/pkg/kernelci"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/translator/internal/lineage"
)

// revision is node.data.kernel_revision where pullab looks at it
// (kernelci-wire.md 2.1).
type revision struct {
	Tree, URL, Branch, Commit, Describe string
}

// BuildOf says what is under test, from the chain of nodes. Where several
// nodes tell a fact, the one nearest to the job is believed. Without a kbuild
// the id is <lab's origin>:unknown_<node>, the predecessor's form: a made-up id
// under another origin would be a lie in that origin's name.
func BuildOf(c lineage.Chain, s Settings) *pullabv1.Build {
	b := &pullabv1.Build{}
	if c.Job != nil {
		b.BuildId = s.KCIDBOrigin + ":unknown_" + c.Job.ID
	}
	if c.Kbuild != nil {
		b.KbuildNodeId = c.Kbuild.ID
		b.BuildId = s.BuildOrigin + ":" + c.Kbuild.ID
	}
	if c.Checkout != nil {
		b.CheckoutNodeId = c.Checkout.ID
	}
	for _, n := range []*kernelci.Node{c.Job, c.Kbuild, c.Checkout} {
		if n == nil {
			continue
		}
		b.Compiler = cmp.Or(b.Compiler, n.Data.Compiler)
		b.Defconfig = cmp.Or(b.Defconfig, n.Data.Defconfig)
		b.ConfigFull = cmp.Or(b.ConfigFull, n.Data.ConfigFull)
		b.KernelType = cmp.Or(b.KernelType, n.Data.KernelType)
		revise(b, n.Data.KernelRevision)
	}
	return b
}

// maxRevision in bytes, of which a commit message is nearly all: a longer one
// would crowd the plan out of its message.
const maxRevision = 64 << 10

// revise takes the first revision that can be read; what cannot is as good as
// absent, for a plan does not depend on it.
func revise(b *pullabv1.Build, raw json.RawMessage) {
	if b.KernelRevisionJson != "" || len(raw) == 0 {
		return
	}
	var r *revision
	var compact bytes.Buffer
	if len(raw) > maxRevision || json.Unmarshal(raw, &r) != nil || r == nil || json.Compact(&compact, raw) != nil {
		return
	}
	b.Tree, b.TreeUrl, b.Branch, b.Commit, b.Describe = r.Tree, r.URL, r.Branch, r.Commit, r.Describe
	b.KernelRevisionJson = compact.String()
}

var plainArch = regexp.MustCompile(`^[a-z0-9_]{1,32}$`)

// RunID names a run: the arch as a token, the full node id (the first 12 digits
// of two ids made in one second are equal), and the second.
func RunID(arch, node string, t time.Time) string {
	return fmt.Sprintf("run_pulllab-%s-%s_%s", arch, node, t.UTC().Format("20060102_150405"))
}

// FileArch is the arch that a run is named and a refusal filed by, from the
// words at hand in order of trust. The definition is not one of them: the name
// is chosen before it is read.
func FileArch(words ...string) string {
	for _, w := range words {
		if a := Arch(w); plainArch.MatchString(a) {
			return a
		}
	}
	return "unknown"
}
