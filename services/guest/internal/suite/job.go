package suite

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/pullab/pullab/pkg/channel"
)

// job is one command of a suite.
type job struct {
	// name tells the commands of a suite apart; empty when there is only one.
	name string
	// argvs are the ways to run it, best first; the first whose program exists
	// is taken.
	argvs [][]string
	// ignored are parameters that this version has no use for.
	ignored []string
	judge   func(root fs.FS, argv []string, end ended, seen *tally) verdict
}

func (j job) find(root fs.FS) []string {
	for _, argv := range j.argvs {
		if f, err := root.Open(argv[0]); err == nil {
			_ = f.Close() // it is there, that is all
			return argv
		}
	}
	return nil
}

func (j job) looked() []string {
	var names []string
	for _, argv := range j.argvs {
		names = append(names, argv[0])
	}
	return names
}

// Types of tests that need no root file system.
const Boot = "boot"

// plan gives the commands of a test's suite, or why there are none.
func plan(t channel.Test, cpus int) ([]job, string) {
	collection, isSelftest := strings.CutPrefix(t.Type, "kselftest-")
	switch {
	case t.Type == "ltp":
		return ltp(t, cpus), ""
	case isSelftest && collection != "":
		return []job{kselftest(collection)}, ""
	}
	return nil, fmt.Sprintf("this guest runs tests of the types boot, ltp and kselftest-<collection>, not %q", t.Type)
}

// reports is where runners leave what they know; a fresh tmpfs in the guest.
const reports = "/tmp"

// ltp runs each command file of tst_cmdfiles (smoketest by default) by itself,
// with kirk or, in older root file systems, runltp.
func ltp(t channel.Test, cpus int) []job {
	files := strings.FieldsFunc(t.Parameters["tst_cmdfiles"], func(r rune) bool { return r == ',' })
	if len(files) == 0 {
		files = []string{"smoketest"}
	}
	var ignored []string
	for _, k := range slices.Sorted(maps.Keys(t.Parameters)) {
		// skip_install=true is what we do anyway: the root file system has LTP.
		if k != "tst_cmdfiles" && k != "workers" && (k != "skip_install" || t.Parameters[k] != "true") {
			ignored = append(ignored, k+"="+t.Parameters[k])
		}
	}
	workers := t.Parameters["workers"]
	if n, err := strconv.Atoi(workers); workers == "max" {
		workers = strconv.Itoa(max(1, cpus))
	} else if err != nil || n < 1 {
		workers = "1"
	}
	var jobs []job
	for _, f := range files {
		report := path.Join(reports, "pullab-"+segment(t.ID)+"-"+segment(f))
		kirk := []string{
			"--framework", "ltp", "--run-suite", f, "--tmp-dir", reports, "--env", "LTP_COLORIZE_OUTPUT=0",
			"--workers", workers, "--json-report", report + ".json",
		}
		if t.TimeoutS > 0 {
			// Its own limit is an hour (libkirk/main.py); ours is the test's.
			kirk = append(kirk, "--suite-timeout", strconv.Itoa(t.TimeoutS))
		}
		j := job{name: f, ignored: ignored, judge: func(root fs.FS, argv []string, end ended, _ *tally) verdict {
			if path.Base(argv[0]) == "kirk" {
				return judgeKirk(root, report+".json", end)
			}
			return judgeRunltp(root, report+".log", end)
		}}
		if len(files) == 1 {
			j.name = ""
		}
		for _, program := range []string{"/opt/kirk/kirk", "/opt/ltp/kirk"} {
			j.argvs = append(j.argvs, append([]string{program}, kirk...))
		}
		j.argvs = append(j.argvs, []string{"/opt/ltp/runltp", "-f", f, "-p", "-q", "-l", report + ".log", "-C", report + "-failed.log"})
		jobs = append(jobs, j)
	}
	return jobs
}

// maxReport bounds what is read of a report: it holds every test's whole log.
const maxReport = 64 << 20

// kirkReport is what kirk writes with --json-report (libkirk/export.py).
type kirkReport struct {
	Results []struct {
		Name   string `json:"test_fqn"`
		Status string `json:"status"` // pass, fail, brok, conf, warn
		Test   struct {
			Log string `json:"log"`
		} `json:"test"`
	} `json:"results"`
}

// judgeKirk goes by the report: kirk's exit status is 0 also when tests failed
// (libkirk/main.py), and non-zero when kirk itself did.
func judgeKirk(root fs.FS, report string, end ended) verdict {
	b, err := readAll(root, report)
	var rep kirkReport
	if err == nil {
		err = json.Unmarshal(b, &rep)
	}
	if err != nil {
		return verdict{status: "ERROR", reason: fmt.Sprintf("kirk ended with %s and left no result: %v", end, err)}
	}
	count, names, logs := map[string]int{}, map[string][]string{}, strings.Builder{}
	for _, r := range rep.Results {
		count[r.Status]++
		names[r.Status] = append(names[r.Status], r.Name)
		if r.Status == "fail" || r.Status == "brok" {
			fmt.Fprintf(&logs, "=== %s: %s\n%s\n", r.Name, r.Status, r.Test.Log)
		}
	}
	v := verdict{facts: map[string]string{}}
	for _, s := range []string{"pass", "fail", "brok", "conf", "warn"} {
		v.facts["tests_"+s] = strconv.Itoa(count[s])
	}
	switch {
	case count["fail"] > 0:
		v.status, v.reason = "FAIL", fmt.Sprintf("%d of %d tests failed: %s", count["fail"], len(rep.Results), list(names["fail"]))
	case count["brok"] > 0:
		v.status, v.reason = "ERROR", fmt.Sprintf("%d of %d tests broke: %s", count["brok"], len(rep.Results), list(names["brok"]))
	case count["pass"]+count["warn"] > 0 && end.code == 0:
		v.status = "PASS"
	case count["conf"] > 0 && end.code == 0:
		v.status, v.reason = "SKIP", "every test says that this kernel or machine is not configured for it"
	default:
		v.status, v.reason = "ERROR", fmt.Sprintf("kirk ended with %s after %d tests", end, len(rep.Results))
	}
	v.excerpt = logs.String()
	return v
}

// judgeRunltp goes by the exit status, which counts failed tests, once the log
// shows that tests ran: newer LTPs have a runltp that only says it is gone.
func judgeRunltp(root fs.FS, log string, end ended) verdict {
	b, err := readAll(root, log)
	switch {
	case err != nil || !strings.Contains(string(b), " PASS ") && !strings.Contains(string(b), " FAIL ") && !strings.Contains(string(b), " CONF "):
		return verdict{status: "ERROR", reason: fmt.Sprintf("runltp ended with %s and ran no test", end)}
	case end.code != 0:
		return verdict{status: "FAIL", reason: end.String()}
	}
	return verdict{status: "PASS"}
}

func readAll(root fs.FS, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxReport+1))
	if err == nil && len(b) > maxReport {
		err = errors.New("it is too large")
	}
	return b, err
}

// kselftest runs a collection of the kernel's own tests.
func kselftest(collection string) job {
	j := job{judge: judgeKselftest}
	for _, dir := range []string{
		"/opt/kselftests", "/opt/kselftests/mainline", "/opt/kselftest", "/usr/libexec/kselftests", "/usr/lib/kselftests",
	} {
		j.argvs = append(j.argvs, []string{dir + "/run_kselftest.sh", "-c", collection})
	}
	return j
}

// judgeKselftest goes by the KTAP lines: before Linux 6.14 run_kselftest.sh
// exits with 0 whatever the tests did.
func judgeKselftest(_ fs.FS, _ []string, end ended, seen *tally) verdict {
	v := verdict{facts: map[string]string{
		"tests_pass": strconv.Itoa(seen.ok), "tests_fail": strconv.Itoa(len(seen.bad) + seen.moreBad), "tests_skip": strconv.Itoa(seen.skipped),
	}}
	bad := len(seen.bad) + seen.moreBad
	switch {
	case bad > 0:
		v.status, v.reason = "FAIL", fmt.Sprintf("%d of %d tests failed: %s", bad, bad+seen.ok+seen.skipped, list(seen.bad))
	case seen.ok == 0 && seen.skipped == 0:
		v.status, v.reason = "ERROR", fmt.Sprintf("run_kselftest.sh ended with %s and ran no test", end)
	case end.code != 0:
		v.status, v.reason = "FAIL", end.String()
	case seen.ok == 0:
		v.status, v.reason = "SKIP", "every test was skipped"
	default:
		v.status = "PASS"
	}
	return v
}

// list names the first few.
func list(names []string) string {
	const few = 10
	if len(names) > few {
		return strings.Join(names[:few], ", ") + ", ..."
	}
	return strings.Join(names, ", ")
}
