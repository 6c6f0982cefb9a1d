package verdict_test

import (
	"math"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/pullab/pullab/pkg/executor"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/runner/internal/verdict"
)

const (
	pass = pullabv1.Status_STATUS_PASS
	fail = pullabv1.Status_STATUS_FAIL
	skip = pullabv1.Status_STATUS_SKIP
)

// rows from "path=STATUS" words.
func rows(words ...string) []*pullabv1.TestRow {
	var rs []*pullabv1.TestRow
	for _, w := range words {
		p, s, _ := strings.Cut(w, "=")
		rs = append(rs, &pullabv1.TestRow{Path: p, Status: pullabv1.Status(pullabv1.Status_value["STATUS_"+s]), LogExcerpt: "log of " + p})
	}
	return rs
}

func words(rs []*pullabv1.TestRow) string {
	var ws []string
	for _, r := range rs {
		ws = append(ws, r.GetPath()+"="+strings.TrimPrefix(r.GetStatus().String(), "STATUS_"))
	}
	return strings.Join(ws, " ")
}

func plan(paths ...string) *pullabv1.RunPlanned {
	p := &pullabv1.RunPlanned{}
	for _, s := range paths {
		p.Tests = append(p.Tests, &pullabv1.TestPlan{Id: s, Path: s})
	}
	return p
}

func TestJudge(t *testing.T) {
	t.Parallel()
	const (
		booted, dead, hung, unknown = executor.KernelBooted, executor.KernelFailed, executor.KernelHung, executor.KernelUnknown
	)
	for _, c := range []struct {
		name   string
		plan   string
		kernel executor.KernelFate
		rows   string
		want   string
		result string
		code   string
		fault  string
		broken int
	}{
		{"boots", "boot", booted, "boot=PASS", "boot=PASS", "PASS", "", "NONE", 0},
		{"done counts as pass", "bench", booted, "bench=DONE", "bench=DONE", "PASS", "", "NONE", 0},
		{"skips only", "ltp", booted, "ltp.a=SKIP ltp.b=SKIP", "ltp.a=SKIP ltp.b=SKIP", "SKIP", "", "NONE", 0},
		{"a test fails", "boot ltp", booted, "boot=PASS ltp.a=PASS ltp.b=FAIL", "boot=PASS ltp.a=PASS ltp.b=FAIL", "FAIL", "", "TEST", 0},
		{"a failed check of the boot is the kernel's", "boot", booted, "boot=PASS boot.dmesg=FAIL", "boot=PASS boot.dmesg=FAIL", "FAIL", "", "KERNEL", 0},
		{"fail outweighs error and miss", "", booted, "a=ERROR b=MISS c=FAIL", "a=ERROR b=MISS c=FAIL", "FAIL", "", "TEST", 0},
		{"a broken test", "", booted, "boot=PASS a=ERROR", "boot=PASS a=ERROR", "INCOMPLETE", "Test", "TEST", 0},
		{"a missing test", "", booted, "boot=PASS a=MISS", "boot=PASS a=MISS", "INCOMPLETE", "Infrastructure", "LAB", 0},
		{"miss outweighs error", "", booted, "a=ERROR b=MISS", "a=ERROR b=MISS", "INCOMPLETE", "Infrastructure", "LAB", 0},
		{"a planned test without a row", "boot ltp", booted, "boot=PASS", "boot=PASS ltp=MISS", "INCOMPLETE", "Infrastructure", "LAB", 0},
		{"no rows at all", "", booted, "", "boot=MISS", "INCOMPLETE", "Infrastructure", "LAB", 0},
		{"panic", "boot ltp", dead, "boot=FAIL", "boot=FAIL ltp=SKIP", "FAIL", "", "KERNEL", 0},
		{"panic while testing", "boot ltp", dead, "ltp.a=PASS boot=FAIL", "ltp.a=PASS boot=FAIL", "FAIL", "", "KERNEL", 0},
		{"hang", "boot", hung, "boot=FAIL", "boot=FAIL", "FAIL", "", "KERNEL", 0},
		{"panic, executor forgot the row", "boot", dead, "", "boot=FAIL", "FAIL", "", "KERNEL", 1},
		{"panic, executor left PASS standing", "boot", dead, "boot=PASS", "boot=FAIL", "FAIL", "", "KERNEL", 2},
		{"PASS of an unseen kernel", "boot", unknown, "boot=PASS", "boot=MISS", "INCOMPLETE", "Infrastructure", "LAB", 1},
		{"every PASS of an unseen kernel", "boot", unknown, "boot.x=PASS ltp.a=PASS", "boot.x=MISS ltp.a=MISS", "INCOMPLETE", "Infrastructure", "LAB", 2},
		{"illegal path", "", booted, "a/b:c..d+=PASS", "a_b_c.d_=PASS", "PASS", "", "NONE", 1},
		{"no status", "", booted, "a=", "a=ERROR", "INCOMPLETE", "Test", "TEST", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := executor.Outcome{Kernel: c.kernel, KernelReason: "why", Rows: rows(strings.Fields(c.rows)...)}
			before := words(o.Rows)
			j := verdict.Judge(plan(strings.Fields(c.plan)...), o)
			if got := words(j.Rows); got != c.want {
				t.Errorf("rows %q, want %q", got, c.want)
			}
			v := j.Verdict
			if v.GetResult().String() != "RESULT_"+c.result || v.GetErrorCode() != c.code || v.GetFault().String() != "FAULT_"+c.fault {
				t.Errorf("verdict %v", v)
			}
			if (c.result == "PASS" || c.result == "SKIP") != (v.GetErrorMsg() == "") {
				t.Errorf("error_msg %q", v.GetErrorMsg())
			}
			if len(j.Broken) != c.broken {
				t.Errorf("%d complaints, want %d: %q", len(j.Broken), c.broken, j.Broken)
			}
			if words(o.Rows) != before {
				t.Error("the outcome was changed")
			}
			legal(t, j.Rows)
		})
	}
}

var legalPath = regexp.MustCompile(`^[a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)*$`)

func legal(t *testing.T, rs []*pullabv1.TestRow) {
	t.Helper()
	for _, r := range rs {
		if !legalPath.MatchString(r.GetPath()) {
			t.Errorf("path %q", r.GetPath())
		}
		if x := r.GetLogExcerpt(); utf8.RuneCountInString(x) > verdict.MaxExcerpt || strings.Contains(x, "\x00") ||
			r.GetStatus() == fail && strings.TrimSpace(x) == "" {
			t.Errorf("excerpt of %s: %d code points", r.GetPath(), utf8.RuneCountInString(x))
		}
		if _, err := proto.Marshal(r); err != nil {
			t.Errorf("%s: %v", r.GetPath(), err)
		}
	}
}

func TestRowsAreLegal(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é", verdict.MaxExcerpt+5) + "end"
	j := verdict.Judge(plan(), executor.Outcome{Kernel: executor.KernelBooted, Rows: []*pullabv1.TestRow{
		{Path: "a", Status: fail},
		{Path: "b", Status: fail, Reason: "why"},
		{Path: "c", Status: fail, LogExcerpt: long},
		{Path: "d", Status: fail, LogExcerpt: "x\x00\xff"},
		{Path: "", Status: pass},
		{Path: "e", Status: pass, Number: &pullabv1.Number{Value: math.NaN()}},
		{Path: "f", Status: skip, Misc: map[string]string{"k\xff": "v\x00"}, Reason: "\xfe", TestId: "\xfd"},
	}})
	legal(t, j.Rows)
	if j.Rows[1].LogExcerpt != "why" || !strings.HasSuffix(j.Rows[2].LogExcerpt, "end") || j.Rows[3].LogExcerpt != "x\uFFFD" {
		t.Errorf("%q %q", j.Rows[1].LogExcerpt, j.Rows[3].LogExcerpt)
	}
	if utf8.RuneCountInString(j.Rows[2].LogExcerpt) != verdict.MaxExcerpt {
		t.Error("an excerpt is cut to less than it may have")
	}
	if j.Rows[5].Number != nil || j.Rows[6].Misc["k\uFFFD"] != "v" {
		t.Errorf("%v", j.Rows[5:])
	}
}

func TestLabFailed(t *testing.T) {
	t.Parallel()
	j := verdict.LabFailed(plan("boot", "ltp", "ltp"), verdict.Infrastructure, "no machine")
	if got := words(j.Rows); got != "boot=MISS ltp=MISS" {
		t.Error(got)
	}
	if v := j.Verdict; v.GetResult() != pullabv1.Result_RESULT_INCOMPLETE || v.GetErrorCode() != "Infrastructure" ||
		v.GetFault() != pullabv1.Fault_FAULT_LAB || v.GetErrorMsg() != "no machine" {
		t.Errorf("%v", v)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for code, fault := range map[string]pullabv1.Fault{
		"invalid_job_params": pullabv1.Fault_FAULT_DEFINITION, "Configuration": pullabv1.Fault_FAULT_LAB,
	} {
		v := verdict.Refused(&pullabv1.Refusal{ErrorCode: code, ErrorMsg: "m"})
		if v.GetFault() != fault || v.GetErrorCode() != code || v.GetResult() != pullabv1.Result_RESULT_INCOMPLETE {
			t.Errorf("%s: %v", code, v)
		}
	}
}

func FuzzJudge(f *testing.F) {
	f.Add("boot", "excerpt", "reason", int32(1), 1)
	f.Add("a/../b", "\x00\xff", "", int32(4), 0)
	f.Fuzz(func(t *testing.T, path, excerpt, reason string, status int32, kernel int) {
		o := executor.Outcome{Kernel: executor.KernelFate(kernel & 3), KernelReason: reason, Rows: []*pullabv1.TestRow{
			{Path: path, LogExcerpt: excerpt, Reason: reason, Status: pullabv1.Status(status & 7 % 7), TestId: path},
		}}
		j := verdict.Judge(&pullabv1.RunPlanned{Tests: []*pullabv1.TestPlan{{Id: excerpt, Path: path}}}, o)
		legal(t, j.Rows)
		for _, r := range j.Rows {
			if r.GetPath() == "boot" && r.GetStatus() == pass && o.Kernel != executor.KernelBooted {
				t.Fatalf("PASS of boot with fate %d", o.Kernel)
			}
		}
		if j.Verdict.GetResult() == pullabv1.Result_RESULT_UNSPECIFIED || j.Verdict.GetFault() == pullabv1.Fault_FAULT_UNSPECIFIED {
			t.Fatalf("%v", j.Verdict)
		}
	})
}
