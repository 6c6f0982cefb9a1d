package rows

import (
	"strings"

	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

// Path makes s a legal KCIDB path: other characters become '_', as in the
// bridge, and empty segments go.
func Path(s string) string {
	s = strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-', c == '.':
			return c
		}
		return '_'
	}, s)
	parts := strings.FieldsFunc(s, func(c rune) bool { return c == '.' })
	if len(parts) == 0 {
		return "unnamed"
	}
	return strings.Join(parts, ".")
}

// Suite is the path of the job's own row: what KernelCI's bridge puts in place
// of the job's name (kcidb_test_suite). The list of suites is in KernelCI's
// configuration, not in the job, so it is read off the job's name, and off the
// rows where the name does not tell.
func Suite(fin *pullabv1.RunFinished, tests []*pullabv1.TestRow) string {
	name := fin.GetOrigin().GetNodeName()
	word, after, _ := strings.Cut(name, "-")
	switch word {
	case "baseline", "boot":
		return "boot"
	case "kselftest":
		if s := collection(after, tests); s != "" {
			return s
		}
		return "kselftest"
	}
	word = Path(word)
	if word != "unnamed" && (len(tests) == 0 || anyBelow(word, tests)) {
		return word
	}
	if len(tests) > 0 {
		first, _, _ := strings.Cut(Path(tests[0].GetPath()), ".")
		return first
	}
	return "boot"
}

// collection finds kselftest.<collection> in kselftest-<collection>-<lab>: the
// longest one that a row is below, else the first word.
func collection(after string, tests []*pullabv1.TestRow) string {
	if after == "" {
		return ""
	}
	words := strings.Split(after, "-")
	for n := len(words); n > 0; n-- {
		if s := Path("kselftest." + strings.Join(words[:n], "-")); anyBelow(s, tests) {
			return s
		}
	}
	return Path("kselftest." + words[0])
}

func anyBelow(suite string, tests []*pullabv1.TestRow) bool {
	for _, t := range tests {
		if p := Path(t.GetPath()); p == suite || strings.HasPrefix(p, suite+".") {
			return true
		}
	}
	return false
}

func status(s pullabv1.Status) string {
	switch s {
	case pullabv1.Status_STATUS_FAIL:
		return "FAIL"
	case pullabv1.Status_STATUS_ERROR:
		return "ERROR"
	case pullabv1.Status_STATUS_MISS:
		return "MISS"
	case pullabv1.Status_STATUS_PASS:
		return "PASS"
	case pullabv1.Status_STATUS_DONE:
		return "DONE"
	case pullabv1.Status_STATUS_SKIP:
		return "SKIP"
	default:
		return ""
	}
}

// JobStatus is the status of a job without a row of its own, by the bridge's
// table (kernelci-wire.md section 7). Empty leaves the field out.
func JobStatus(v *pullabv1.Verdict) string {
	switch v.GetResult() {
	case pullabv1.Result_RESULT_PASS:
		return "PASS"
	case pullabv1.Result_RESULT_FAIL:
		return "FAIL"
	case pullabv1.Result_RESULT_SKIP:
		return "SKIP"
	}
	switch v.GetErrorCode() {
	case "Infrastructure", "Canceled", "LAVATimeout", "MultinodeTimeout", "Test":
		return "ERROR"
	case "Bug", "Configuration", "invalid_job_params", "Job", "job_generation_error", "ObjectNotPersisted",
		"submit_error", "kbuild_internal_error", "Unexisting permission codename.":
		return "MISS"
	}
	return ""
}
