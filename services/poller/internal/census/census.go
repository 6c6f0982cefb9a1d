// Package census counts what events are about, so that an operator whose lab
// gets no jobs can see why.
package census

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/services/poller/internal/judge"
	"github.com/pullab/pullab/services/poller/internal/offers"
)

// Count of one reading. The zero value is empty.
type Count struct {
	// Events that were not handled before; Matched those of the lab's runtime
	// and platforms.
	Events, Matched int
	// NoNode: about no node, or one that is gone. Bad: not readable.
	NoNode, Bad int
	// Made, Passed and Known are jobs, as in offers.Tally.
	Made, Passed, Known int

	// names of runtimes and platforms that are not ours, and how often.
	names map[judge.Reason]map[string]int
}

// Event counts an event.
func (c *Count) Event(e kernelci.Event) {
	c.Events++
	switch {
	case e.Err != nil:
		c.Bad++
	case e.Node == nil:
		c.NoNode++
	}
}

// Node counts an event's node by what was decided of it.
func (c *Count) Node(n *kernelci.Node, r judge.Reason) {
	switch r {
	case judge.OtherRuntime:
		c.name(r, n.Data.Runtime, 1)
	case judge.OtherPlatform:
		c.name(r, n.Data.Platform, 1)
	case judge.NotAJob:
	default:
		c.Matched++
	}
}

// Tally counts jobs.
func (c *Count) Tally(t offers.Tally) {
	c.Made += t.Made
	c.Passed += t.Passed
	c.Known += t.Known
}

// Add another count.
func (c *Count) Add(o Count) {
	c.Events += o.Events
	c.Matched += o.Matched
	c.NoNode += o.NoNode
	c.Bad += o.Bad
	c.Tally(offers.Tally{Made: o.Made, Passed: o.Passed, Known: o.Known})
	for r, names := range o.names {
		for n, times := range names {
			c.name(r, n, times)
		}
	}
}

func (c *Count) name(r judge.Reason, name string, times int) {
	if c.names == nil {
		c.names = map[judge.Reason]map[string]int{}
	}
	if c.names[r] == nil {
		c.names[r] = map[string]int{}
	}
	c.names[r][name] += times
}

// shown names in a list.
const shown = 10

// Names of the runtimes (judge.OtherRuntime) or platforms (judge.OtherPlatform)
// of events that were not ours, the most frequent first.
func (c *Count) Names(r judge.Reason) string {
	m := c.names[r]
	names := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(m[b], m[a]), cmp.Compare(a, b))
	})
	var out []string
	for _, n := range names[:min(len(names), shown)] {
		out = append(out, fmt.Sprintf("%.100q (%d)", n, m[n]))
	}
	if more := len(names) - shown; more > 0 {
		out = append(out, fmt.Sprintf("%d more", more))
	}
	return strings.Join(out, ", ")
}

// Hint says why events came and none was for this lab; empty when some was, or
// when there is nothing to say.
func (c *Count) Hint(runtime string, platforms []string) string {
	const none = "Events come back but none are processed: "
	switch {
	case c.Matched > 0:
		return ""
	case len(c.names[judge.OtherPlatform]) > 0:
		return fmt.Sprintf(none+"jobs of runtime %q came for platforms %s, and kernelci.platforms (KERNELCI_PLATFORMS) takes only %s",
			runtime, c.Names(judge.OtherPlatform), strings.Join(platforms, ", "))
	case len(c.names[judge.OtherRuntime]) > 0:
		return fmt.Sprintf(none+"runtime_name mismatch, node.data.data.runtime is %s and never %q; if jobs of this lab should be among them, correct kernelci.runtime_name (KERNELCI_RUNTIME_NAME)",
			c.Names(judge.OtherRuntime), runtime)
	}
	return ""
}
