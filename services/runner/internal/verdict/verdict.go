// Package verdict turns what happened on a machine into what is reported: legal
// rows, a result in kernelci-api's terms, and whose fault it was. It is pure.
//
// Rows follow KCIDB (kernelci-wire.md sections 4 and 7): FAIL blames the kernel,
// ERROR the test, MISS the harness.
package verdict

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/pullab/pullab/pkg/executor"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

// Values of node.data.error_code that the runner gives (kernelci-wire.md 2.1).
const (
	// Infrastructure is the lab's failure.
	Infrastructure = "Infrastructure"
	// Test is a test that broke.
	Test = "Test"
	// NodeTimeout is a job whose time was over before a machine was free. It is
	// what KernelCI's own timeout service would say of it.
	NodeTimeout = "node_timeout"
	// invalidJobParams is the translator's word for a bad definition.
	invalidJobParams = "invalid_job_params"
)

// MaxExcerpt is the longest log excerpt that KCIDB takes, in code points.
const MaxExcerpt = 16384

// boot is the path by which the dashboard knows boot rows.
const boot = "boot"

// Judged is what to report.
type Judged struct {
	Verdict *pullabv1.Verdict
	Rows    []*pullabv1.TestRow
	// Broken says in sentences what the executor did against its contract. The
	// rows were put right; somebody should put the executor right.
	Broken []string
}

// Judge reads an outcome. It never changes it.
func Judge(plan *pullabv1.RunPlanned, o executor.Outcome) Judged {
	j := &Judged{}
	for _, r := range o.Rows {
		j.add(o, r)
	}
	j.kernel(o)
	j.planned(plan, o)
	if len(j.Rows) == 0 {
		j.Rows = append(j.Rows, miss(boot, "executor returned no per-test results"))
	}
	j.Verdict = sum(j.Rows, o)
	return *j
}

// LabFailed is the report of a run that the lab could not do: no row of it says
// anything about the kernel.
func LabFailed(plan *pullabv1.RunPlanned, code, reason string) Judged {
	reason = text(reason)
	j := Judged{
		Verdict: &pullabv1.Verdict{Result: pullabv1.Result_RESULT_INCOMPLETE, ErrorCode: code, ErrorMsg: reason, Fault: pullabv1.Fault_FAULT_LAB},
		Rows:    []*pullabv1.TestRow{miss(boot, reason)},
	}
	for _, t := range plan.GetTests() {
		if p := path(t.GetPath()); !slices.ContainsFunc(j.Rows, func(r *pullabv1.TestRow) bool { return r.GetPath() == p }) {
			r := miss(p, reason)
			r.TestId = text(t.GetId())
			j.Rows = append(j.Rows, r)
		}
	}
	return j
}

// Refused is the report of a plan that is a refusal.
func Refused(r *pullabv1.Refusal) *pullabv1.Verdict {
	fault := pullabv1.Fault_FAULT_LAB
	if r.GetErrorCode() == invalidJobParams {
		fault = pullabv1.Fault_FAULT_DEFINITION
	}
	return &pullabv1.Verdict{Result: pullabv1.Result_RESULT_INCOMPLETE, ErrorCode: r.GetErrorCode(), ErrorMsg: r.GetErrorMsg(), Fault: fault}
}

func (j *Judged) broken(format string, args ...any) {
	j.Broken = append(j.Broken, fmt.Sprintf(format, args...))
}

// add takes one row in, made legal.
func (j *Judged) add(o executor.Outcome, r *pullabv1.TestRow) {
	r = proto.CloneOf(r)
	if p := path(r.GetPath()); p != r.GetPath() {
		j.broken("path %q is not legal in KCIDB; reported as %q", r.GetPath(), p)
		r.Path = p
	}
	r.LogExcerpt, r.Reason, r.TestId = Excerpt(r.GetLogExcerpt()), text(r.GetReason()), text(r.GetTestId())
	r.Misc = legalMap(r.GetMisc())
	if n := r.GetNumber(); n != nil && (math.IsNaN(n.GetValue()) || math.IsInf(n.GetValue(), 0)) {
		j.broken("%s measured %v, which JSON cannot carry; left out", r.GetPath(), n.GetValue())
		r.Number = nil
	} else if n != nil {
		n.Unit, n.Prefix = text(n.GetUnit()), text(n.GetPrefix())
	}
	if r.GetStatus() == pullabv1.Status_STATUS_UNSPECIFIED {
		j.broken("%s has no status; reported as ERROR", r.GetPath())
		r.Status, r.Reason = pullabv1.Status_STATUS_ERROR, "the test gave no status"
	}
	if r.GetStatus() == pullabv1.Status_STATUS_PASS && !believed(r, o) {
		j.broken("%s is PASS although the kernel under test was not seen to run; reported as MISS", r.GetPath())
		r.Status, r.Reason = pullabv1.Status_STATUS_MISS, "it is not known that the kernel under test ran this"
	}
	if r.GetStatus() == pullabv1.Status_STATUS_FAIL && strings.TrimSpace(r.GetLogExcerpt()) == "" {
		if r.LogExcerpt = Excerpt(r.GetReason()); strings.TrimSpace(r.LogExcerpt) == "" {
			r.LogExcerpt = "The test reported FAIL and gave no log."
		}
	}
	j.Rows = append(j.Rows, r)
}

// believed is invariant 5: a PASS of boot implies that the kernel under test
// ran. Other tests may have passed before a kernel failed, but nothing passes
// on a kernel that nobody saw.
func believed(r *pullabv1.TestRow, o executor.Outcome) bool {
	if isBoot(r) {
		return o.Kernel == executor.KernelBooted
	}
	return o.Kernel != executor.KernelUnknown
}

func isBoot(r *pullabv1.TestRow) bool {
	return r.GetPath() == boot || strings.HasPrefix(r.GetPath(), boot+".")
}

// kernel sees to it that a failed kernel has its FAIL of boot, and only that.
func (j *Judged) kernel(o executor.Outcome) {
	if !failed(o) {
		return
	}
	blamed := slices.ContainsFunc(j.Rows, func(r *pullabv1.TestRow) bool {
		return r.GetPath() == boot && r.GetStatus() == pullabv1.Status_STATUS_FAIL
	})
	if !blamed {
		j.broken("the kernel failed (%s) but no boot row says so; added", o.KernelReason)
		why := reason(o)
		j.Rows = append(j.Rows, &pullabv1.TestRow{
			Path: boot, Status: pullabv1.Status_STATUS_FAIL, LogExcerpt: Excerpt(why), Reason: why,
		})
	}
	j.Rows = slices.DeleteFunc(j.Rows, func(r *pullabv1.TestRow) bool {
		return r.GetPath() == boot && r.GetStatus() == pullabv1.Status_STATUS_MISS
	})
}

func failed(o executor.Outcome) bool {
	return o.Kernel == executor.KernelFailed || o.Kernel == executor.KernelHung
}

func reason(o executor.Outcome) string {
	if why := strings.TrimSpace(text(o.KernelReason)); why != "" {
		return why
	}
	return "the kernel under test did not boot"
}

// planned gives every planned test that left no row one that says so.
func (j *Judged) planned(plan *pullabv1.RunPlanned, o executor.Outcome) {
	for _, t := range plan.GetTests() {
		p := path(t.GetPath())
		seen := slices.ContainsFunc(j.Rows, func(r *pullabv1.TestRow) bool {
			return t.GetId() != "" && r.GetTestId() == t.GetId() || r.GetPath() == p || strings.HasPrefix(r.GetPath(), p+".")
		})
		if seen {
			continue
		}
		r := miss(p, "the test left no result")
		if failed(o) {
			r.Status, r.Reason = pullabv1.Status_STATUS_SKIP, "the kernel under test failed first"
		}
		r.TestId = text(t.GetId())
		j.Rows = append(j.Rows, r)
	}
}

func miss(path, reason string) *pullabv1.TestRow {
	return &pullabv1.TestRow{Path: path, Status: pullabv1.Status_STATUS_MISS, Reason: reason}
}

// sum is the job's result. A failure of the kernel or of a test is the strongest
// word; then the lab's, then a broken test's.
func sum(rows []*pullabv1.TestRow, o executor.Outcome) *pullabv1.Verdict {
	count := map[pullabv1.Status]int{}
	first := map[pullabv1.Status]*pullabv1.TestRow{}
	for _, r := range rows {
		s := r.GetStatus()
		if first[s] == nil || s == pullabv1.Status_STATUS_FAIL && isBoot(r) && !isBoot(first[s]) {
			first[s] = r
		}
		count[s]++
	}
	say := func(s pullabv1.Status, what string) string {
		r := first[s]
		msg := fmt.Sprintf("%d of %d tests %s, first %s", count[s], len(rows), what, r.GetPath())
		if r.GetReason() != "" {
			msg += ": " + r.GetReason()
		}
		return msg
	}
	const (
		fail, lost, broke = pullabv1.Status_STATUS_FAIL, pullabv1.Status_STATUS_MISS, pullabv1.Status_STATUS_ERROR
		pass, done        = pullabv1.Status_STATUS_PASS, pullabv1.Status_STATUS_DONE
	)
	switch {
	case failed(o):
		return &pullabv1.Verdict{Result: pullabv1.Result_RESULT_FAIL, ErrorMsg: reason(o), Fault: pullabv1.Fault_FAULT_KERNEL}
	case count[fail] > 0:
		v := &pullabv1.Verdict{Result: pullabv1.Result_RESULT_FAIL, ErrorMsg: say(fail, "failed"), Fault: pullabv1.Fault_FAULT_TEST}
		if isBoot(first[fail]) {
			v.Fault = pullabv1.Fault_FAULT_KERNEL
		}
		return v
	case count[lost] > 0:
		return &pullabv1.Verdict{Result: pullabv1.Result_RESULT_INCOMPLETE, ErrorCode: Infrastructure,
			ErrorMsg: say(lost, "gave no result"), Fault: pullabv1.Fault_FAULT_LAB}
	case count[broke] > 0:
		return &pullabv1.Verdict{Result: pullabv1.Result_RESULT_INCOMPLETE, ErrorCode: Test,
			ErrorMsg: say(broke, "broke"), Fault: pullabv1.Fault_FAULT_TEST}
	case count[pass]+count[done] > 0:
		return &pullabv1.Verdict{Result: pullabv1.Result_RESULT_PASS, Fault: pullabv1.Fault_FAULT_NONE}
	default:
		return &pullabv1.Verdict{Result: pullabv1.Result_RESULT_SKIP, Fault: pullabv1.Fault_FAULT_NONE}
	}
}

// path makes p a KCIDB path: dot-separated [A-Za-z0-9_-] segments, not empty.
func path(p string) string {
	var segments []string
	for s := range strings.SplitSeq(p, ".") {
		s = strings.Map(func(r rune) rune {
			if r == '_' || r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
				return r
			}
			return '_'
		}, s)
		if s != "" {
			segments = append(segments, s)
		}
	}
	if len(segments) == 0 {
		return "unnamed"
	}
	return strings.Join(segments, ".")
}

// Excerpt makes s a legal log excerpt. Of a longer one the end is kept: that is
// where kernels say why.
func Excerpt(s string) string {
	s = text(s)
	over := utf8.RuneCountInString(s) - MaxExcerpt
	for i := range s {
		if over <= 0 {
			return s[i:]
		}
		over--
	}
	return s
}

// text is s as protobuf and KCIDB take it: UTF-8 without NUL.
func text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "")
}

func legalMap(m map[string]string) map[string]string {
	for k, v := range m {
		if tk, tv := text(k), text(v); tk != k || tv != v {
			delete(m, k)
			m[tk] = tv
		}
	}
	return m
}
