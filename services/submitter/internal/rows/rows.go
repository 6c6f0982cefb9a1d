// Package rows turns a finished run into KCIDB rows, by the conventions of the
// rows that KernelCI's own bridge writes (kernelci-wire.md section 7). It is
// pure: the same run gives the same rows, ids included, which makes sending
// twice harmless.
package rows

import (
	"maps"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/submitter/internal/kcidb"
)

// timeLayout is what the bridge's Python writes; microseconds are all that KCIDB
// keeps.
const timeLayout = "2006-01-02T15:04:05.000000+00:00"

// Build gives the rows of a run: the job's own row first, with the id
// <origin>:<node>, then one per test row, with the id <origin>:<node>.<path>,
// and .2, .3 … where a path repeats. A test row whose path is the job's suite
// is the job's row.
func Build(origin string, fin *pullabv1.RunFinished, tests []*pullabv1.TestRow) []kcidb.Test {
	b := builder{origin: origin, fin: fin, suite: Suite(fin, tests)}
	b.shared = b.facts()
	b.console, b.files = b.stored()
	own := ownRow(b.suite, tests)
	job := b.job(tests, own)
	node := origin + ":" + fin.GetOrigin().GetNodeId()
	// The suite's own path counts as taken: it belongs to the job's row.
	taken := map[string]bool{node: true, node + "." + b.suite: true}
	out := []kcidb.Test{job}
	for i, t := range tests {
		if i == own {
			continue
		}
		r := b.row(t)
		base := node + "." + r.Path
		r.ID = base
		for n := 2; taken[r.ID]; n++ {
			r.ID = base + "." + strconv.Itoa(n)
		}
		taken[r.ID] = true
		out = append(out, r)
	}
	return out
}

func ownRow(suite string, tests []*pullabv1.TestRow) int {
	for i, t := range tests {
		if Path(t.GetPath()) == suite {
			return i
		}
	}
	return -1
}

type builder struct {
	origin  string
	fin     *pullabv1.RunFinished
	suite   string
	shared  map[string]string
	console string
	files   []kcidb.Resource
}

// job is the job's own row: measured when the run has a row of that path, else
// made from the verdict.
func (b *builder) job(tests []*pullabv1.TestRow, own int) kcidb.Test {
	var r kcidb.Test
	v := b.fin.GetVerdict()
	if own >= 0 {
		r = b.row(tests[own])
	} else {
		r = b.base(b.suite, b.fin.GetStartedAt())
		if d := b.fin.GetFinishedAt().AsTime().Sub(b.fin.GetStartedAt().AsTime()).Seconds(); d >= 0 {
			r.Duration = &d
		}
		r.LogExcerpt = excerpt(firstExcerpt(v, tests))
	}
	if r.Status == "" {
		r.Status = JobStatus(v)
	}
	r.ID = b.origin + ":" + b.fin.GetOrigin().GetNodeId()
	r.Comment = b.comment(b.fin.GetOrigin().GetNodeName())
	put(r.Misc, "error_code", v.GetErrorCode())
	put(r.Misc, "error_msg", v.GetErrorMsg())
	if r.Status == "SKIP" {
		r.LogURL = ""
		return r
	}
	r.LogURL = b.console
	r.OutputFiles = b.files
	return r
}

// firstExcerpt stands for the whole job: the first failed row's, or the
// verdict's sentence when the kernel never got as far as a row.
func firstExcerpt(v *pullabv1.Verdict, tests []*pullabv1.TestRow) string {
	if v.GetResult() != pullabv1.Result_RESULT_FAIL {
		return ""
	}
	for _, t := range tests {
		if t.GetStatus() == pullabv1.Status_STATUS_FAIL && t.GetLogExcerpt() != "" {
			return t.GetLogExcerpt()
		}
	}
	return v.GetErrorMsg()
}

// row is a test's row, without its id.
func (b *builder) row(t *pullabv1.TestRow) kcidb.Test {
	start := t.GetStartTime()
	if !start.IsValid() {
		start = b.fin.GetStartedAt()
	}
	r := b.base(Path(t.GetPath()), start)
	r.Comment = b.comment(r.Path[strings.LastIndexByte(r.Path, '.')+1:])
	r.Status = status(t.GetStatus())
	if d := t.GetDuration(); d != nil && d.AsDuration() >= 0 {
		s := d.AsDuration().Seconds()
		r.Duration = &s
	}
	// What the guest says never replaces what the lab knows.
	misc := map[string]string{}
	for k, v := range t.GetMisc() {
		put(misc, k, v)
	}
	put(misc, "reason", t.GetReason())
	put(misc, "test_id", t.GetTestId())
	number(&r, misc, t.GetNumber())
	maps.Copy(misc, r.Misc)
	r.Misc = misc
	// The bridge's SKIP rows carry no log either.
	if r.Status != "SKIP" {
		r.LogURL, r.LogExcerpt = b.console, excerpt(t.GetLogExcerpt())
	}
	return r
}

// number keeps a measurement; JSON has no NaN and no infinity.
func number(r *kcidb.Test, misc map[string]string, n *pullabv1.Number) {
	if n == nil {
		return
	}
	if math.IsNaN(n.GetValue()) || math.IsInf(n.GetValue(), 0) {
		put(misc, "number_not_finite", strconv.FormatFloat(n.GetValue(), 'g', -1, 64))
		return
	}
	r.Number = &kcidb.Number{Value: n.GetValue(), Unit: clean(n.GetUnit())}
	if p := n.GetPrefix(); p == "metric" || p == "binary" {
		r.Number.Prefix = p
	}
}

func (b *builder) base(path string, start *timestamppb.Timestamp) kcidb.Test {
	o := b.fin.GetOrigin()
	r := kcidb.Test{
		BuildID: clean(b.fin.GetBuild().GetBuildId()), Origin: b.origin, Path: path,
		Environment: &kcidb.Environment{Comment: "Runtime: " + clean(o.GetRuntime()), Misc: map[string]string{}},
		Misc:        maps.Clone(b.shared),
	}
	put(r.Environment.Misc, "platform", o.GetPlatform())
	put(r.Environment.Misc, "job_id", b.fin.GetJobId())
	if start.IsValid() {
		r.StartTime = start.AsTime().UTC().Truncate(time.Microsecond).Format(timeLayout)
	}
	return r
}

func (b *builder) comment(name string) string {
	o := b.fin.GetOrigin()
	return clean(name + " on " + o.GetPlatform() + " in " + o.GetRuntime())
}

// facts are the misc that every row of the run has.
func (b *builder) facts() map[string]string {
	m := map[string]string{}
	for k, v := range b.fin.GetFacts() {
		put(m, k, v)
	}
	o, bu := b.fin.GetOrigin(), b.fin.GetBuild()
	for k, v := range map[string]string{
		"runtime": o.GetRuntime(), "lab": o.GetRuntime(), "arch": b.fin.GetArch(),
		"compiler": bu.GetCompiler(), "kernel_type": bu.GetKernelType(),
		"defconfig": bu.GetDefconfig(), "config_full": bu.GetConfigFull(),
		"tree_name": bu.GetTree(), "git_repository_url": bu.GetTreeUrl(), "git_repository_branch": bu.GetBranch(),
		"git_commit_hash": bu.GetCommit(), "git_commit_name": bu.GetDescribe(),
		"kernelci_node_id": o.GetNodeId(), "kernel_release": b.fin.GetKernelRelease(),
		"device": b.fin.GetDevice(), "executor": b.fin.GetExecutor(), "run_id": b.fin.GetRunId(),
		"maestro_viewer": viewer(o.GetApiBaseUri(), o.GetNodeId()),
	} {
		delete(m, k)
		put(m, k, v)
	}
	return m
}

// stored gives the console's URL and the other public files, the definition
// among them, as the bridge has it.
func (b *builder) stored() (console string, files []kcidb.Resource) {
	for _, f := range b.fin.GetFiles() {
		switch {
		case !kcidb.PublicURL(f.GetUrl()):
		case f.GetRole() == "log" && console == "":
			console = f.GetUrl()
		default:
			files = append(files, kcidb.Resource{Name: fileName(f.GetName()), URL: f.GetUrl()})
		}
	}
	if u := b.fin.GetOrigin().GetJobDefinitionUrl(); kcidb.PublicURL(u) {
		files = append(files, kcidb.Resource{Name: "job_definition", URL: u})
	}
	return console, files
}

// ConsoleURL is the public address of the run's console, empty without one.
func ConsoleURL(fin *pullabv1.RunFinished) string {
	b := builder{fin: fin}
	u, _ := b.stored()
	return u
}

func fileName(s string) string {
	s = strings.ReplaceAll(clean(s), "/", "_")
	if s == "" {
		return "file"
	}
	return s
}

// viewers are the public hosts of KernelCI's own APIs and where each shows its
// nodes (kernelci-wire.md 1.1, section 7). A stand-in has no viewer.
var viewers = map[string]string{
	"api.kernelci.org":                        "https://api.kernelci.org",
	"kernelci-api.westus3.cloudapp.azure.com": "https://api.kernelci.org",
	"staging.kernelci.org:9000":               "https://staging.kernelci.org:9000",
}

func viewer(api, node string) string {
	u, err := url.Parse(api)
	if err != nil || viewers[u.Host] == "" {
		return ""
	}
	return viewers[u.Host] + "/viewer?node_id=" + url.QueryEscape(node)
}

// excerpt keeps the end, as the bridge does.
func excerpt(s string) string {
	r := []rune(clean(s))
	return string(r[max(0, len(r)-kcidb.MaxExcerpt):])
}

// clean removes what KCIDB and PostgreSQL cannot store.
func clean(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "")
}

func put(m map[string]string, k, v string) {
	if k, v = clean(k), clean(v); k != "" && v != "" {
		m[k] = v
	}
}
