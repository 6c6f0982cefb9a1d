package census

import (
	"errors"
	"fmt"
	"testing"

	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/services/poller/internal/judge"
)

func node(runtime, platform string) *kernelci.Node {
	return &kernelci.Node{Data: kernelci.Data{Runtime: runtime, Platform: platform}}
}

func TestCount(t *testing.T) {
	var part, all Count
	part.Event(kernelci.Event{Err: errors.New("bad")})
	part.Event(kernelci.Event{})
	part.Event(kernelci.Event{Node: node("", "")})
	part.Node(node("lava", ""), judge.OtherRuntime)
	part.Node(node("demo", ""), judge.OtherRuntime)
	part.Node(node("demo", ""), judge.OtherRuntime)
	part.Node(node("", ""), judge.NotAJob)
	all.Add(part)
	all.Add(part)
	if all.Events != 6 || all.Bad != 2 || all.NoNode != 2 || all.Matched != 0 {
		t.Errorf("%+v", all)
	}
	if got, want := all.Names(judge.OtherRuntime), `"demo" (4), "lava" (2)`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	want := `Events come back but none are processed: runtime_name mismatch, node.data.data.runtime is "demo" (4), "lava" (2) and never "mine"; if jobs of this lab should be among them, correct kernelci.runtime_name (KERNELCI_RUNTIME_NAME)`
	if got := all.Hint("mine", nil); got != want {
		t.Error(got)
	}
	all.Node(node("mine", "qemu"), judge.OtherPlatform)
	want = `Events come back but none are processed: jobs of runtime "mine" came for platforms "qemu" (1), and kernelci.platforms (KERNELCI_PLATFORMS) takes only a, b`
	if got := all.Hint("mine", []string{"a", "b"}); got != want {
		t.Error(got)
	}
	all.Node(node("mine", "a"), judge.TooLate)
	if got := all.Hint("mine", nil); got != "" || all.Matched != 1 {
		t.Error(got, all.Matched)
	}
	if got := new(Count).Hint("mine", nil); got != "" {
		t.Error(got)
	}
}

func TestNamesAreBounded(t *testing.T) {
	var c Count
	for i := range 14 {
		c.Node(node(fmt.Sprintf("lab-%02d", i), ""), judge.OtherRuntime)
	}
	want := `"lab-00" (1), "lab-01" (1), "lab-02" (1), "lab-03" (1), "lab-04" (1), "lab-05" (1), "lab-06" (1), "lab-07" (1), "lab-08" (1), "lab-09" (1), 4 more`
	if got := c.Names(judge.OtherRuntime); got != want {
		t.Error(got)
	}
}
