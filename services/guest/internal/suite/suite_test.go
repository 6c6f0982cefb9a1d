package suite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"
	"unicode/utf8"

	"github.com/pullab/pullab/pkg/channel"
)

// dirJail shows a directory as a root; its programs run outside of it.
type dirJail struct {
	dir    string
	sweeps *int
}

func (d dirJail) Open(name string) (fs.File, error) { return os.Open(filepath.Join(d.dir, name)) }

func (d dirJail) Command(name string, args ...string) *exec.Cmd {
	if name != "/bin/sh" {
		name = filepath.Join(d.dir, name)
	}
	for i, a := range args {
		if strings.HasPrefix(a, reports+"/pullab-") {
			args[i] = filepath.Join(d.dir, a)
		}
	}
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

func (dirJail) Start(cmd *exec.Cmd) error { return cmd.Start() }
func (dirJail) Wait(cmd *exec.Cmd) error  { return cmd.Wait() }
func (dirJail) Kill(cmd *exec.Cmd)        { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
func (d dirJail) Sweep()                  { *d.sweeps++ }

// bundle is a runner over a directory with the given programs.
func bundle(t *testing.T, programs map[string]string) (*Runner, *bytes.Buffer, *int) {
	t.Helper()
	dir, console, sweeps := t.TempDir(), &bytes.Buffer{}, new(int)
	if err := os.Mkdir(filepath.Join(dir, reports), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range programs {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	return &Runner{Jail: dirJail{dir, sweeps}, Console: console, Uptime: func() time.Duration { return time.Since(start) }, CPUs: 3}, console, sweeps
}

func selftest(script string) map[string]string {
	return map[string]string{"/usr/libexec/kselftests/run_kselftest.sh": "#!/bin/sh\n" + script}
}

func TestKselftest(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		script, status, reason, excerpt string
	}{
		"pass":             {"echo 'ok 1 selftests: x: a'", "PASS", "", ""},
		"pass and skip":    {"echo 'ok 1 a'; echo 'ok 2 b # SKIP no hardware'", "PASS", "", ""},
		"all skipped":      {"echo 'ok 1 a # SKIP'; echo 'not ok 2 b # skip'", "SKIP", "every test was skipped", ""},
		"fail":             {"echo log; echo 'ok 1 a'; echo 'not ok 2 selftests: x: b # exit=1'; exit 0", "FAIL", "1 of 2 tests failed: x: b", "log\n"},
		"fail to stderr":   {"echo 'not ok 1 - b' >&2", "FAIL", "1 of 1 tests failed: b", "not ok"},
		"inner results":    {"echo '# not ok 1 a'; echo '    not ok 1 b'; echo 'ok 1 c'", "PASS", "", ""},
		"passed, but died": {"echo 'ok 1 a'; exit 1", "FAIL", "exit status 1", "ok 1 a"},
		"no test":          {"echo \"No such collection 'x'\" >&2; exit 1", "ERROR", "exit status 1 and ran no test", "No such collection"},
		"killed":           {"kill -SEGV $$", "ERROR", "killed by signal 11", ""},
		"no interpreter":   {"exit 127", "MISS", "cannot be executed", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, console, sweeps := bundle(t, selftest(tt.script))
			rows := r.Run(t.Context(), channel.Test{ID: "i", Type: "kselftest-x", Path: "kselftest.x", TimeoutS: 60})
			row := rows[0]
			if len(rows) != 1 || row.Status != tt.status || !strings.Contains(row.Reason, tt.reason) || !strings.Contains(row.Excerpt, tt.excerpt) {
				t.Errorf("%+v", rows)
			}
			if row.TestID != "i" || row.Path != "kselftest.x" || row.TookS < 0 || row.Status == "FAIL" && row.Excerpt == "" {
				t.Errorf("%+v", row)
			}
			if !strings.Contains(console.String(), tt.excerpt) || *sweeps != 1 {
				t.Errorf("console %q, %d sweeps", console, *sweeps)
			}
		})
	}
}

func TestNoRunnerIsMiss(t *testing.T) {
	t.Parallel()
	r, _, _ := bundle(t, nil)
	for typ, want := range map[string]string{
		"kselftest-x": "/usr/libexec/kselftests/run_kselftest.sh", "ltp": "/opt/ltp/runltp", "kselftest-": "not \"kselftest-\"", "lmbench": "not \"lmbench\"",
	} {
		rows := r.Run(t.Context(), channel.Test{ID: "i", Type: typ, Path: "p"})
		if len(rows) != 1 || rows[0].Status != "MISS" || !strings.Contains(rows[0].Reason, want) {
			t.Errorf("%s: %+v", typ, rows)
		}
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	r, _, _ := bundle(t, selftest("echo before; sleep 1000 & sleep 1000"))
	rows := r.Run(t.Context(), channel.Test{ID: "i", Type: "kselftest-x", Path: "p", TimeoutS: 1, PostCommands: []string{"true"}})
	if len(rows) != 1 || rows[0].Status != "ERROR" || rows[0].Reason != "timed out after 1s" || rows[0].Excerpt != "before\n" || rows[0].Misc["post_commands_failed"] != "" {
		t.Errorf("%+v", rows)
	}
	if rows[0].TookS > stuck.Seconds() {
		t.Errorf("took %g s", rows[0].TookS)
	}
	gone := errors.New("the lights went out")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	rows = r.Run(ctx, channel.Test{ID: "i", Type: "kselftest-x", Path: "p"})
	if rows[0].Status != "ERROR" || rows[0].Reason != gone.Error() {
		t.Errorf("%+v", rows)
	}
}

func TestCommandsAround(t *testing.T) {
	t.Parallel()
	r, _, _ := bundle(t, selftest("echo 'ok 1 a'"))
	rows := r.Run(t.Context(), channel.Test{ID: "i", Type: "kselftest-x", Path: "p", PreCommands: []string{"true", "echo no >&2; exit 4", "exit 5"}, PostCommands: []string{"exit 6"}})
	if len(rows) != 1 || rows[0].Status != "ERROR" || !strings.Contains(rows[0].Reason, "exit status 4") || rows[0].Excerpt != "no\n" ||
		!strings.Contains(rows[0].Misc["post_commands_failed"], "exit status 6") {
		t.Errorf("%+v", rows)
	}
	rows = r.Run(t.Context(), channel.Test{ID: "i", Type: "kselftest-x", Path: "p", PreCommands: []string{"true"}, PostCommands: []string{"true"}})
	if len(rows) != 1 || rows[0].Status != "PASS" || rows[0].Misc["post_commands_failed"] != "" {
		t.Errorf("%+v", rows)
	}
}

func TestKirk(t *testing.T) {
	t.Parallel()
	report, err := os.ReadFile("testdata/kirk-failed.json")
	if err != nil {
		t.Fatal(err)
	}
	result := func(status ...string) string {
		var out []string
		for i, s := range status {
			out = append(out, fmt.Sprintf(`{"test_fqn":"t%d","status":%q,"test":{"log":"l"}}`, i, s))
		}
		return `{"results":[` + strings.Join(out, ",") + `]}`
	}
	for name, tt := range map[string]struct {
		report         string
		code           int
		status, reason string
	}{
		"failed":           {string(report), 0, "FAIL", "1 of 3 tests failed: fork13"},
		"passed":           {result("pass", "conf", "warn"), 0, "PASS", ""},
		"broken":           {result("pass", "brok"), 0, "ERROR", "1 of 2 tests broke: t1"},
		"not configured":   {result("conf", "conf"), 0, "SKIP", "every test"},
		"empty":            {`{"results":[]}`, 0, "ERROR", "after 0 tests"},
		"gave up":          {result("pass"), 1, "ERROR", "exit status 1 after 1 tests"},
		"no report":        {"", 1, "ERROR", "exit status 1 and left no result"},
		"half report":      {`{"results":[{"test_fqn"`, 0, "ERROR", "left no result"},
		"many failed":      {result(strings.Fields(strings.Repeat("fail ", 12))...), 0, "FAIL", "t9, ..."},
		"report of no use": {`[]`, 0, "ERROR", "left no result"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := fstest.MapFS{}
			if tt.report != "" {
				root["r.json"] = &fstest.MapFile{Data: []byte(tt.report)}
			}
			v := judgeKirk(root, "r.json", ended{code: tt.code, started: true})
			if v.status != tt.status || !strings.Contains(v.reason, tt.reason) {
				t.Errorf("%+v", v)
			}
			if name == "failed" && (!strings.Contains(v.excerpt, "=== fork13: fail\nfork13.c:98: TFAIL") || strings.Contains(v.excerpt, "abs01") || v.facts["tests_conf"] != "1") {
				t.Errorf("%+v", v)
			}
		})
	}
}

func TestLTPRunners(t *testing.T) {
	t.Parallel()
	test := channel.Test{ID: "ltp-x", Type: "ltp", Path: "ltp", TimeoutS: 77, Parameters: map[string]string{
		"tst_cmdfiles": "fs,net/ipv6", "workers": "max", "skip_install": "true", "skipfile": "skipfile-lkft.yaml",
	}}
	kirk := `#!/bin/sh
echo "args $*"
for a; do [ "$last" = --json-report ] && printf '{"results":[{"test_fqn":"a","status":"pass"}]}' > "$a"; last=$a; done
`
	r, console, _ := bundle(t, map[string]string{"/opt/kirk/kirk": kirk, "/opt/ltp/runltp": "#!/bin/sh\nexit 9\n"})
	rows := r.Run(t.Context(), test)
	if len(rows) != 2 || rows[0].Path != "ltp.fs" || rows[1].Path != "ltp.net_ipv6" || rows[0].Status != "PASS" || rows[1].Status != "PASS" {
		t.Errorf("%+v", rows)
	}
	for _, want := range []string{"--framework ltp --run-suite fs ", "--run-suite net/ipv6 ", "--workers 3 ", "--suite-timeout 77"} {
		if !strings.Contains(console.String(), want) {
			t.Errorf("no %q in %s", want, console)
		}
	}
	if rows[0].Misc["parameters_not_used"] != "skipfile=skipfile-lkft.yaml" || rows[0].Misc["runner"] != "/opt/kirk/kirk" {
		t.Errorf("%+v", rows[0])
	}
	gone := "#!/bin/sh\necho 'runltp was removed from LTP' >&2\nexit 1\n"
	for name, tt := range map[string]struct{ script, status, reason string }{
		"gone": {gone, "ERROR", "exit status 1 and ran no test"},
		"pass": {"#!/bin/sh\necho 'abs01    PASS       0' > $6\n", "PASS", ""},
		"fail": {"#!/bin/sh\necho 'abs01    FAIL       1' > $6; exit 1\n", "FAIL", "exit status 1"},
	} {
		r, _, _ := bundle(t, map[string]string{"/opt/ltp/runltp": tt.script})
		rows := r.Run(t.Context(), channel.Test{ID: "i", Type: "ltp", Path: "ltp"})
		if len(rows) != 1 || rows[0].Path != "ltp" || rows[0].Status != tt.status || !strings.Contains(rows[0].Reason, tt.reason) {
			t.Errorf("%s: %+v", name, rows)
		}
		if rows[0].Status == "FAIL" && strings.TrimSpace(rows[0].Excerpt) == "" {
			t.Errorf("%s: a FAIL without an excerpt", name)
		}
	}
}

// TestReasonIsOneCleanLine: names come from the tests' output.
func TestReasonIsOneCleanLine(t *testing.T) {
	t.Parallel()
	r, _, _ := bundle(t, selftest(`printf 'not ok 1 a\001\t\377b'; seq 3000 | while read i; do printf x; done; echo`))
	row := r.Run(t.Context(), channel.Test{ID: "i", Type: "kselftest-x", Path: "p"})[0]
	if n := utf8.RuneCountInString(row.Reason); row.Status != "FAIL" || !utf8.ValidString(row.Reason) || n > 1003 || !strings.Contains(row.Reason, "a \uFFFDbxxx") {
		t.Errorf("%s, %d code points: %.80q", row.Status, n, row.Reason)
	}
}

func TestPassed(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]bool{"": false, "PASS": true, "DONE": true, "PASS SKIP": true, "SKIP": false, "PASS FAIL": false, "ERROR": false, "PASS MISS": false} {
		var rows []channel.Row
		for _, s := range strings.Fields(in) {
			rows = append(rows, channel.Row{Status: s})
		}
		if Passed(rows) != want {
			t.Errorf("%q: %v", in, !want)
		}
	}
}

func TestCapture(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, keep - 1, keep, keep + 1, 2 * keep, 2*keep + 1, 5*keep + 17} {
		for _, step := range []int{1, 1000, keep, 3 * keep} {
			if size/step > 1<<17 {
				continue
			}
			var whole []byte
			for i := range size {
				whole = append(whole, byte('a'+i%23))
			}
			c := &Capture{}
			for rest := whole; len(rest) > 0; {
				n := min(step, len(rest))
				if got, err := c.Write(rest[:n]); got != n || err != nil {
					t.Fatal(got, err)
				}
				rest = rest[n:]
			}
			got := c.String()
			if size <= 2*keep {
				if got != string(whole) {
					t.Errorf("size %d, step %d: %d bytes, changed", size, step, len(got))
				}
				continue
			}
			mark := fmt.Sprintf("\n[... %d bytes left out ...]\n", size-2*keep)
			if got != string(whole[:keep])+mark+string(whole[size-keep:]) {
				t.Errorf("size %d, step %d: wrong begin, end or mark", size, step)
			}
		}
	}
}

func TestExcerpt(t *testing.T) {
	t.Parallel()
	if got := Excerpt("a\x00b\x1b[31mc\r\nd\te\xffäf\x7f"); got != "ab[31mc\nd\te\uFFFDäf" {
		t.Errorf("%q", got)
	}
	got := Excerpt("begin" + strings.Repeat("ä", 2*MaxExcerpt) + "end")
	if utf8.RuneCountInString(got) != MaxExcerpt || !strings.HasPrefix(got, "begin") || !strings.HasSuffix(got, "end") || !strings.Contains(got, "\n[...]\n") {
		t.Errorf("%d code points, %.20q", utf8.RuneCountInString(got), got)
	}
	if whole := strings.Repeat("ä", MaxExcerpt); Excerpt(whole) != whole {
		t.Error("an excerpt of just the limit was changed")
	}
}

func FuzzExcerpt(f *testing.F) {
	f.Add("a\x00b", 1)
	f.Add("\xff\xfe", 40000)
	f.Fuzz(func(t *testing.T, in string, n int) {
		c := &Capture{}
		for range max(0, min(n, 1+(200<<10)/(len(in)+1))) {
			_, _ = c.Write([]byte(in))
		}
		x := Excerpt(c.String())
		if !utf8.ValidString(x) || strings.ContainsRune(x, 0) || utf8.RuneCountInString(x) > MaxExcerpt {
			t.Errorf("%.80q", x)
		}
	})
}

// FuzzTally: the sums do not depend on how the output was cut into writes.
func FuzzTally(f *testing.F) {
	f.Add([]byte("ok 1 a\nnot ok 2 b # exit=1\r\nok 3 c # SKIP\n# not ok 4\nnot ok\nok x\n"), 3)
	f.Add(append(bytes.Repeat([]byte("x"), 2*maxTap), "\nok 1 a\n"...), 100)
	f.Fuzz(func(t *testing.T, in []byte, cut int) {
		whole, parts := &tally{}, &tally{}
		_, _ = whole.Write(in)
		cut = max(1, cut)
		for b := in; len(b) > 0; b = b[min(cut, len(b)):] {
			_, _ = parts.Write(b[:min(cut, len(b))])
		}
		if whole.ok != parts.ok || whole.skipped != parts.skipped || len(whole.bad) != len(parts.bad) || whole.moreBad != parts.moreBad {
			t.Errorf("%+v, in parts %+v", whole, parts)
		}
	})
}
