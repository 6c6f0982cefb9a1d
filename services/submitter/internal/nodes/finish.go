// Package nodes makes the documents that finish a job's node in kernelci-api:
// the changed fields, and the tree of results below it (kernelci-wire.md 1.6,
// 2.1, 2.6). It is pure, and writes nothing.
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

// errorCodes are the legal values of data.error_code; any other makes the API
// refuse the whole write (kernelci-wire.md 2.1).
var errorCodes = []string{
	"invalid_job_params", "submit_error", "node_timeout", "Infrastructure", "Canceled", "Job", "Bug", "Test", "Configuration",
	"LAVATimeout", "MultinodeTimeout", "ObjectNotPersisted", "Unexisting permission codename.", "job_generation_error", "kbuild_internal_error",
}

// maxLeftOut paths are named in the node's misc.
const maxLeftOut = 100

// Finish gives the top-level fields to change, for PATCH: state, result,
// artifacts and data. The last two are merged with what the node has, as the API
// replaces them whole. An error of an earlier timeout is cleared by a result
// that came late (kernelci-wire.md 2.4).
func Finish(n *kernelci.Node, fin *pullabv1.RunFinished, tests []*pullabv1.TestRow) map[string]any {
	v := fin.GetVerdict()
	data := object(n.Doc["data"])
	set(data, "job_id", fin.GetJobId())
	set(data, "device", fin.GetDevice())
	delete(data, "error_code")
	delete(data, "error_msg")
	if v.GetResult() == pullabv1.Result_RESULT_INCOMPLETE {
		set(data, "error_code", errorCode(v))
		set(data, "error_msg", v.GetErrorMsg())
	}
	misc := object(data["misc"])
	maps.Copy(misc, facts(fin))
	if out := leftOut(fin, tests); len(out) > 0 {
		misc["kcidb_left_out"] = strings.Join(out[:min(len(out), maxLeftOut)], " ")
		misc["kcidb_left_out_count"] = strconv.Itoa(len(out))
	}
	data["misc"] = misc
	artifacts := object(n.Doc["artifacts"])
	// One log on the job serves all children: the bridge looks upwards.
	set(artifacts, "test_log", rows.ConsoleURL(fin))
	return map[string]any{"state": "done", "result": result(v.GetResult()), "artifacts": artifacts, "data": data}
}

// Document is the node with the fields changed: everything it had, because PUT
// resets what is left out.
func Document(n *kernelci.Node, fields map[string]any) map[string]any {
	doc := object(n.Doc)
	maps.Copy(doc, fields)
	return doc
}

// facts are for people who look at the node; strings only.
func facts(fin *pullabv1.RunFinished) map[string]any {
	m := map[string]any{}
	for k, v := range fin.GetFacts() {
		set(m, k, v)
	}
	for k, v := range map[string]string{
		"run_id": fin.GetRunId(), "executor": fin.GetExecutor(), "kernel_release": fin.GetKernelRelease(),
	} {
		set(m, k, v)
	}
	if v := fin.GetVerdict(); v.GetResult() != pullabv1.Result_RESULT_INCOMPLETE {
		set(m, "reason", v.GetErrorMsg())
	}
	return m
}

func errorCode(v *pullabv1.Verdict) string {
	switch {
	case slices.Contains(errorCodes, v.GetErrorCode()):
		return v.GetErrorCode()
	case v.GetFault() == pullabv1.Fault_FAULT_DEFINITION:
		return "invalid_job_params"
	default:
		return "Infrastructure"
	}
}

// leftOut names rows that KernelCI's bridge drops: whose dotted path has "setup"
// in it and not "os-release" (kernelci-wire.md 2.6). They are in the tree and,
// through us, in KCIDB.
func leftOut(fin *pullabv1.RunFinished, tests []*pullabv1.TestRow) []string {
	suite := rows.Suite(fin, tests)
	var out []string
	for _, t := range tests {
		p := rows.Path(t.GetPath())
		dotted := suite + "." + strings.Join(names(suite, p), ".")
		if p != suite && strings.Contains(dotted, "setup") && !strings.Contains(dotted, "os-release") {
			out = append(out, p)
		}
	}
	return out
}

func result(r pullabv1.Result) string {
	switch r {
	case pullabv1.Result_RESULT_PASS:
		return "pass"
	case pullabv1.Result_RESULT_FAIL:
		return "fail"
	case pullabv1.Result_RESULT_SKIP:
		return "skip"
	default:
		return "incomplete"
	}
}

// set puts a string that is not empty; PostgreSQL further down the line stores
// no NUL.
func set(m map[string]any, k, v string) {
	if v = strings.ReplaceAll(v, "\x00", ""); v != "" {
		m[k] = v
	}
}

// object is a copy of a JSON object, empty for anything else.
func object(v any) map[string]any {
	m, ok := clone(v).(map[string]any)
	if !ok || m == nil {
		return map[string]any{}
	}
	return m
}

func clone(v any) any {
	switch x := v.(type) {
	case map[string]any:
		m := make(map[string]any, len(x))
		for k, e := range x {
			m[k] = clone(e)
		}
		return m
	case []any:
		l := make([]any, len(x))
		for i, e := range x {
			l[i] = clone(e)
		}
		return l
	default:
		return v
	}
}
