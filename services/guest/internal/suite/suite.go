// Package suite runs the test suites of a plan in the job's root file system
// and gives their rows. A row says whose failure it is (KCIDB v5.3): FAIL is
// the kernel's, ERROR the test's, MISS the harness's.
package suite

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/pullab/pullab/pkg/channel"
)

// Jail is the root file system that suites run in.
type Jail interface {
	fs.FS // names are absolute, links are followed inside
	Command(name string, args ...string) *exec.Cmd
	Start(*exec.Cmd) error
	Wait(*exec.Cmd) error
	// Kill ends a running command and its group, Sweep whatever commands left
	// behind.
	Kill(*exec.Cmd)
	Sweep()
}

// Runner runs tests.
type Runner struct {
	Jail Jail
	// Console gets the tests' output as it comes.
	Console io.Writer
	// Uptime is the guest's clock.
	Uptime func() time.Duration
	// CPUs is what "workers=max" means.
	CPUs int
}

// postLimit is for the post-commands, which run also when the test's own time
// is over.
const postLimit = time.Minute

// timeoutError is the cause of a context whose test's time is over.
type timeoutError struct{ limit time.Duration }

func (e *timeoutError) Error() string { return fmt.Sprintf("timed out after %s", e.limit) }

// Run runs one test: pre-commands, its suite's commands, post-commands. It
// always gives at least one row.
func (r *Runner) Run(ctx context.Context, t channel.Test) []channel.Row {
	jobs, why := plan(t, r.CPUs)
	if why != "" {
		return []channel.Row{Miss(t, r.Uptime(), why)}
	}
	return r.Around(ctx, t, func(ctx context.Context) []channel.Row {
		var rows []channel.Row
		for _, j := range jobs {
			rows = append(rows, r.job(ctx, t, j))
		}
		return rows
	})
}

// Around runs body, which gives at least one row, between a test's commands and
// within its time. A pre-command that does not work takes body's place.
func (r *Runner) Around(ctx context.Context, t channel.Test, body func(context.Context) []channel.Row) []channel.Row {
	timed, cancel := ctx, context.CancelFunc(func() {})
	if t.TimeoutS > 0 {
		limit := time.Duration(t.TimeoutS) * time.Second
		timed, cancel = context.WithTimeoutCause(ctx, limit, &timeoutError{limit})
	}
	defer cancel()
	var rows []channel.Row
	if row, ok := r.pre(timed, t); ok {
		rows = body(timed)
	} else {
		rows = append(rows, row)
	}
	r.post(ctx, t, &rows[len(rows)-1])
	return rows
}

// pre runs the pre-commands; false when one did not work, with the row.
func (r *Runner) pre(ctx context.Context, t channel.Test) (channel.Row, bool) {
	for _, c := range t.PreCommands {
		start, out := r.Uptime(), &Capture{}
		if end := r.exec(ctx, out, "/bin/sh", "-c", c); end.err != nil || end.code != 0 {
			row := r.row(t, t.Path, start, "ERROR", fmt.Sprintf("pre-command %q: %s", c, end))
			row.Excerpt = Excerpt(out.String())
			return row, false
		}
	}
	return channel.Row{}, true
}

// post runs the post-commands. They cannot change a verdict, but one that
// failed is told in the row.
func (r *Runner) post(ctx context.Context, t channel.Test, row *channel.Row) {
	timed, cancel := context.WithTimeoutCause(ctx, postLimit, &timeoutError{postLimit})
	defer cancel()
	var failed []string
	for _, c := range t.PostCommands {
		if end := r.exec(timed, &Capture{}, "/bin/sh", "-c", c); end.err != nil || end.code != 0 {
			failed = append(failed, fmt.Sprintf("%q: %s", c, end))
		}
	}
	if len(failed) > 0 {
		note(row, "post_commands_failed", strings.Join(failed, "; "))
	}
}

// job runs one command of a suite.
func (r *Runner) job(ctx context.Context, t channel.Test, j job) channel.Row {
	path := t.Path
	if j.name != "" {
		path += "." + segment(j.name)
	}
	start := r.Uptime()
	argv := j.find(r.Jail)
	if argv == nil {
		row := Miss(t, start, fmt.Sprintf("the root file system has no runner for %s; looked for %s", t.Type, strings.Join(j.looked(), ", ")))
		row.Path = path
		return row
	}
	out, seen := &Capture{}, &tally{}
	end := r.exec(ctx, io.MultiWriter(out, seen), argv[0], argv[1:]...)
	v := r.judge(end, j, argv, out, seen)
	row := r.row(t, path, start, v.status, v.reason)
	if v.status != "PASS" && v.status != "SKIP" {
		row.Excerpt = Excerpt(v.excerpt)
	}
	if row.Status == "FAIL" && strings.TrimSpace(row.Excerpt) == "" {
		row.Excerpt = "(no output) " + v.reason
	}
	note(&row, "runner", argv[0])
	for k, text := range v.facts {
		note(&row, k, text)
	}
	if ignored := j.ignored; len(ignored) > 0 {
		note(&row, "parameters_not_used", strings.Join(ignored, " "))
	}
	return row
}

// verdict of one command.
type verdict struct {
	status, reason, excerpt string
	facts                   map[string]string
}

func (r *Runner) judge(end ended, j job, argv []string, out *Capture, seen *tally) verdict {
	switch {
	case end.err != nil && end.started:
		return verdict{status: "ERROR", reason: end.String(), excerpt: out.String()}
	case end.err != nil:
		return verdict{status: "MISS", reason: end.String()}
	case end.code == 126 || end.code == 127:
		// A shell's or env's way to say that there is no such program.
		return verdict{status: "MISS", reason: argv[0] + " cannot be executed: " + end.String(), excerpt: out.String()}
	}
	v := j.judge(r.Jail, argv, end, seen)
	if v.excerpt == "" {
		v.excerpt = out.String()
	}
	return v
}

func (r *Runner) row(t channel.Test, path string, start time.Duration, status, reason string) channel.Row {
	return channel.Row{
		TestID: t.ID, Path: path, Status: status, Reason: line(reason),
		StartS: start.Seconds(), TookS: (r.Uptime() - start).Seconds(),
	}
}

// Miss is the row of a test that the harness could not run.
func Miss(t channel.Test, now time.Duration, reason string) channel.Row {
	return channel.Row{TestID: t.ID, Path: t.Path, Status: "MISS", StartS: now.Seconds(), Reason: reason}
}

func note(row *channel.Row, key, text string) {
	if row.Misc == nil {
		row.Misc = map[string]string{}
	}
	row.Misc[key] = line(text)
}

// line makes text, which may quote a test, fit for one line of a row.
func line(text string) string {
	const longest = 1000
	runes := []rune(strings.Join(strings.Fields(Excerpt(text)), " "))
	if len(runes) > longest {
		return string(runes[:longest]) + "..."
	}
	return string(runes)
}

// Passed tells whether tests that depend on these rows may run.
func Passed(rows []channel.Row) bool {
	bad := func(row channel.Row) bool {
		return row.Status != "PASS" && row.Status != "DONE" && row.Status != "SKIP"
	}
	good := func(row channel.Row) bool { return row.Status == "PASS" || row.Status == "DONE" }
	return slices.ContainsFunc(rows, good) && !slices.ContainsFunc(rows, bad)
}

// segment makes s one segment of a KCIDB path.
func segment(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '_' || r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, s)
}

// ended says how a command ended: with an exit status, or err.
type ended struct {
	code    int
	err     error
	started bool
}

func (e ended) String() string {
	switch {
	case e.err != nil:
		return e.err.Error()
	case e.code > 128:
		return fmt.Sprintf("killed by signal %d", e.code-128)
	}
	return fmt.Sprintf("exit status %d", e.code)
}

// stuck is how long a killed process may take to die, and its output to end.
const stuck = 10 * time.Second

// exec runs a command with its output on the console and in out. It comes back
// when the command has ended or ctx has, also if the kernel cannot kill it.
func (r *Runner) exec(ctx context.Context, out io.Writer, name string, args ...string) ended {
	if ctx.Err() != nil {
		return ended{err: context.Cause(ctx), started: true}
	}
	read, write, err := os.Pipe()
	if err != nil {
		return ended{err: fmt.Errorf("cannot start %s: %w", name, err)}
	}
	defer read.Close()
	cmd := r.Jail.Command(name, args...)
	cmd.Stdout, cmd.Stderr = write, write
	err = r.Jail.Start(cmd)
	write.Close()
	if err != nil {
		return ended{err: fmt.Errorf("cannot start %s: %w", name, err)}
	}
	copied := make(chan error, 1)
	go func() { copied <- pump(io.MultiWriter(out, r.Console), read) }()
	waited := make(chan ended, 1)
	go func() { waited <- exitOf(r.Jail.Wait(cmd)) }()

	var end ended
	select {
	case end = <-waited:
	case <-ctx.Done():
		r.Jail.Kill(cmd)
		end = ended{err: context.Cause(ctx), started: true}
		select {
		case <-waited:
		case <-time.After(stuck):
			end.err = fmt.Errorf("%w, and the kernel did not kill it within %s", end.err, stuck)
		}
	}
	r.Jail.Kill(cmd)
	r.Jail.Sweep()
	_ = read.SetReadDeadline(time.Now().Add(stuck))
	if err := <-copied; err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && end.err == nil {
		end = ended{err: fmt.Errorf("reading the output: %w", err), started: true}
	}
	return end
}

// pump copies and turns a panic of ours into an error: in PID 1 it would be the
// kernel's.
func pump(w io.Writer, r io.Reader) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the guest program failed: %v", p)
		}
	}()
	_, err = io.Copy(w, r)
	return err
}

func exitOf(err error) ended {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return ended{started: true}
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return ended{code: exit.ExitCode(), started: true}
	case errors.As(err, &exit):
		return ended{code: 128 + signal(exit), started: true}
	}
	return ended{err: err, started: true}
}
