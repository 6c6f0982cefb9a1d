package nodes

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/pullab/pullab/pkg/kernelci"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/submitter/internal/rows"
)

// inherited are the job's data that every child repeats
// (core:kernelci/api/helper.py:642-736).
var inherited = []string{"kernel_revision", "kernel_type", "arch", "defconfig", "config_full", "compiler", "platform", "runtime"}

// Children gives the tree below a job: a node per row, of kind test where it
// ends and job where it goes on. The job's own row is the job itself. fields are
// Finish's.
func Children(n *kernelci.Node, fields map[string]any, fin *pullabv1.RunFinished, tests []*pullabv1.TestRow) []kernelci.Tree {
	suite := rows.Suite(fin, tests)
	var root branch
	for _, t := range tests {
		p := rows.Path(t.GetPath())
		if p == suite {
			if root.own == nil {
				root.own = t
			}
			continue
		}
		root.insert(names(suite, p), t)
	}
	data, _ := fields["data"].(map[string]any)
	base := map[string]any{}
	for _, k := range inherited {
		if v := data[k]; v != nil {
			base[k] = v
		}
	}
	w := writer{base: base, group: n.Name, suite: suite, own: root.own}
	return w.trees(&root, n.Path)
}

// names of the nodes from the job down to a row. The bridge puts the suite in
// place of the job's name and merges it with a first child of that name, so a
// suite of one word has a node of its own, as KernelCI's jobs have; a suite with
// a dot cannot be a node's name and is left to the job alone.
func names(suite, path string) []string {
	if rest, ok := strings.CutPrefix(path, suite+"."); ok && strings.Contains(suite, ".") {
		path = rest
	}
	return strings.Split(path, ".")
}

// branch is a node in the making.
type branch struct {
	name string
	// own is the row of this very path; nil for one that only holds others.
	own    *pullabv1.TestRow
	subs   []*branch
	byName map[string]*branch
}

func (b *branch) sub(name string) *branch {
	s := b.byName[name]
	if s == nil {
		s = &branch{name: name}
		if b.byName == nil {
			b.byName = map[string]*branch{}
		}
		b.byName[name] = s
		b.subs = append(b.subs, s)
	}
	return s
}

func (b *branch) insert(path []string, t *pullabv1.TestRow) {
	for _, name := range path[:len(path)-1] {
		b = b.sub(name)
	}
	last := path[len(path)-1]
	for n := 2; ; n++ {
		// A path that repeats needs a name of its own among its siblings.
		if s := b.sub(last); s.own == nil {
			s.own = t
			return
		}
		last = path[len(path)-1] + "_" + strconv.Itoa(n)
	}
}

type writer struct {
	base  map[string]any
	group string
	suite string
	own   *pullabv1.TestRow
}

func (w writer) trees(b *branch, path []string) []kernelci.Tree {
	out := make([]kernelci.Tree, 0, len(b.subs))
	for _, s := range b.subs {
		out = append(out, w.tree(s, path))
	}
	return out
}

func (w writer) tree(b *branch, parent []string) kernelci.Tree {
	path := append(slices.Clone(parent), b.name)
	children := w.trees(b, path)
	data := maps.Clone(w.base)
	kind := "test"
	if len(children) > 0 {
		kind = "job"
	}
	row := b.own
	if row == nil && len(parent) > 0 && b.name == w.suite && parent[len(parent)-1] == w.group {
		// The suite's node below the job: the job's own row is its row too.
		row = w.own
	}
	res := summary(children)
	if row != nil {
		res = leaf(data, row)
	}
	elems := make([]any, len(path))
	for i, p := range path {
		elems[i] = p
	}
	return kernelci.Tree{Children: children, Node: map[string]any{
		"name": b.name, "state": "done", "result": res, "kind": kind, "data": data,
		"group": w.group, "processed_by_kcidb_bridge": false, "path": elems,
	}}
}

// leaf gives a row's result, and puts into data what makes the bridge's table
// give back the row's status (kernelci-wire.md section 7).
func leaf(data map[string]any, t *pullabv1.TestRow) string {
	misc := map[string]any{}
	for k, v := range t.GetMisc() {
		set(misc, k, v)
	}
	if d := t.GetDuration(); d != nil {
		misc["duration"] = d.AsDuration().Seconds()
	}
	if n := t.GetNumber(); n != nil && finite(n.GetValue()) {
		// What the bridge makes environment.misc.measurement of.
		misc["measurement"] = n.GetValue()
		set(misc, "unit", n.GetUnit())
	}
	incomplete := func(code string) string {
		data["error_code"] = code
		set(data, "error_msg", t.GetReason())
		return "incomplete"
	}
	if t.GetStatus() != pullabv1.Status_STATUS_ERROR && t.GetStatus() != pullabv1.Status_STATUS_MISS {
		set(misc, "reason", t.GetReason())
	}
	if len(misc) > 0 {
		data["misc"] = misc
	}
	switch t.GetStatus() {
	case pullabv1.Status_STATUS_PASS, pullabv1.Status_STATUS_DONE:
		return "pass"
	case pullabv1.Status_STATUS_FAIL:
		return "fail"
	case pullabv1.Status_STATUS_SKIP:
		return "skip"
	case pullabv1.Status_STATUS_MISS:
		return incomplete("Job")
	default:
		return incomplete("Test")
	}
}

func finite(f float64) bool { return f-f == 0 }

// summary of children: the worst that happened.
func summary(children []kernelci.Tree) string {
	for _, r := range []string{"fail", "incomplete", "pass"} {
		if slices.ContainsFunc(children, func(t kernelci.Tree) bool { return t.Node["result"] == r }) {
			return r
		}
	}
	return "skip"
}

// Adopt gives the tree the ids of nodes that an earlier attempt has already
// made, so that they are replaced and not made twice. children finds a node's
// existing children.
func Adopt(tree []kernelci.Tree, existing []*kernelci.Node, children func(id string) ([]*kernelci.Node, error)) error {
	for i, t := range tree {
		j := slices.IndexFunc(existing, func(n *kernelci.Node) bool { return n.Name == t.Node["name"] })
		if j < 0 {
			continue
		}
		n := existing[j]
		// The whole document, as a replacement resets what it lacks.
		tree[i].Node = Document(n, t.Node)
		if len(t.Children) == 0 {
			continue
		}
		below, err := children(n.ID)
		if err != nil {
			return err
		}
		if err := Adopt(t.Children, below, children); err != nil {
			return err
		}
	}
	return nil
}
