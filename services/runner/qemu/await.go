package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/channel"
	"github.com/pullab/pullab/pkg/executor"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/runner/qemu/internal/console"
	"github.com/pullab/pullab/services/runner/qemu/internal/proc"
)

// poll is how often a machine is looked at. The looks are a few system calls;
// what a run waits for after its machine's end is half of it on average.
const poll = 20 * time.Millisecond

// maxLog is the most that a console or channel may grow to, in bytes: a kernel
// that prints for ever must not fill the host's disk.
const maxLog = 512 << 20

// Await implements executor.Executor.
func (e *Executor) Await(ctx context.Context, run executor.Run, h executor.Handle, progress executor.Progress) (executor.Outcome, error) {
	if ctx.Err() != nil {
		return executor.Outcome{}, context.Cause(ctx)
	}
	if !legalID.MatchString(h.ID) {
		return executor.Outcome{}, labError("lost", true, fmt.Errorf("machine id %q is not one of ours", h.ID), "Look at the ledger entry.")
	}
	dir := e.dir(h.ID)
	st, err := load(dir)
	p, found := proc.Find(dir)
	if err != nil || !found {
		return executor.Outcome{}, labError("lost", false, fmt.Errorf("machine %s is not on host %s", h.ID, e.host),
			"It was stopped, or it runs on host "+h.Host+" until its deadline.")
	}
	w := &watch{dir: dir, st: st, proc: p, seen: evidence{started: p.Started, state: st}, decoder: channel.NewDecoder(st.Key), progress: progress}
	progress(pullabv1.RunPhase_RUN_PHASE_BOOTING, "")
	if err := w.run(ctx); err != nil {
		return executor.Outcome{}, e.failed(ctx, err)
	}
	w.collect()
	outcome, err := w.seen.judge(run.Plan)
	if err != nil {
		return executor.Outcome{}, err
	}
	outcome.Device = fmt.Sprintf("%s qemu pid %d", st.Host, p.PID())
	outcome.Files, err = w.files(run.Dir)
	if err != nil {
		return executor.Outcome{}, e.failed(ctx, err)
	}
	return outcome, nil
}

// ending is how a machine's life ended.
type ending string

const (
	// exited: QEMU ended by itself, or somebody ended it; the exit status tells.
	exited ending = "exited"
	// bootTimeout: no sign of user space in time; we ended it.
	bootTimeout ending = "boot timeout"
	// deadline: the watchdog or we ended it at the run's deadline.
	deadline ending = "deadline"
	// flood: it printed more than maxLog; we ended it.
	flood ending = "flood"
	// finished: it said Done and then did not power off in time; we ended it.
	finished ending = "finished"
	// lost: it is gone and nobody wrote down how.
	lost ending = "lost"
)

// ended is kept in the machine's directory when we end it, so that another
// Await comes to the same outcome.
type ended struct {
	How ending    `json:"how"`
	At  time.Time `json:"at"`
}

// watch follows one machine.
type watch struct {
	dir      string
	st       state
	proc     proc.Process
	progress executor.Progress
	decoder  *channel.Decoder
	read     int64
	doneAt   time.Time
	seen     evidence
}

func (w *watch) path(name string) string { return filepath.Join(w.st.RunDir, name) }

// run returns when the machine is gone.
func (w *watch) run(ctx context.Context) error {
	for {
		// Alive is asked first: what it wrote before it ended is read after.
		alive := w.proc.Alive()
		if err := w.readChannel(); err != nil {
			return err
		}
		if !alive {
			return nil
		}
		if how := w.due(time.Now()); how != "" {
			if err := w.end(ctx, how); err != nil {
				return err
			}
			continue
		}
		if err := backoff.Sleep(ctx, poll); err != nil {
			return err
		}
	}
}

// due says whether a running machine has to be ended now.
func (w *watch) due(now time.Time) ending {
	switch {
	case !w.doneAt.IsZero():
		if now.Sub(w.doneAt) > w.st.Grace {
			return finished
		}
	case w.seen.hello == nil && now.Sub(w.proc.Started) > w.st.BootTimeout:
		return bootTimeout
	case size(w.path(w.st.Console)) > maxLog || w.read > maxLog:
		return flood
	}
	// The watchdog is at it at this moment; we are the second to try.
	if now.After(w.st.Deadline.Add(2 * time.Second)) {
		return deadline
	}
	return ""
}

func (w *watch) end(ctx context.Context, how ending) error {
	if err := writeJSON(filepath.Join(w.dir, endedFile), ended{How: how, At: time.Now()}); err != nil {
		return err
	}
	return w.proc.Kill(ctx)
}

// readChannel takes what is new.
func (w *watch) readChannel() error {
	info, err := os.Stat(w.path(w.st.Channel))
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() <= w.read {
		return nil
	}
	if err != nil {
		return err
	}
	f, err := os.Open(w.path(w.st.Channel))
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(w.decoder, io.NewSectionReader(f, w.read, maxLog+1-min(w.read, maxLog)))
	w.read += n
	if err != nil {
		return err
	}
	for {
		m, ok, err := w.decoder.Next()
		if err != nil {
			w.seen.gap = err
			continue
		}
		if !ok {
			return nil
		}
		w.take(m)
	}
}

func (w *watch) take(m channel.Message) {
	switch {
	case m.Hello != nil:
		w.seen.hello = m.Hello
		w.progress(pullabv1.RunPhase_RUN_PHASE_TESTING, "kernel "+m.Hello.Release+" is in user space")
	case m.Phase != nil:
		w.seen.phase = m.Phase
		w.progress(pullabv1.RunPhase_RUN_PHASE_TESTING, strings.TrimSpace(m.Phase.Name+" "+m.Phase.Detail))
	case m.Row != nil:
		w.seen.rows = append(w.seen.rows, m.Row)
	case m.Refuse != nil:
		w.seen.refuse = m.Refuse
		w.doneAt = time.Now()
	case m.Done != nil:
		w.seen.done = m.Done
		w.doneAt = time.Now()
	}
}

// collect adds what is known once the machine is gone.
func (w *watch) collect() {
	s := &w.seen
	s.console = console.Read(w.path(w.st.Console))
	s.log = tail(w.path(w.st.Log), 4096)
	s.noise = w.decoder.Noise()
	s.how, s.finished = lost, w.lastSign()
	if exit, ok := proc.Status(w.dir); ok {
		s.how, s.exit, s.finished = exited, exit.Code, exit.At
		// 124 is the watchdog's word, 137 its last one.
		if exit.Code == 124 || exit.Code == 137 && exit.At.After(w.st.Deadline.Add(-2*time.Second)) {
			s.how = deadline
		}
	}
	var by ended
	if b, err := os.ReadFile(filepath.Join(w.dir, endedFile)); err == nil && json.Unmarshal(b, &by) == nil {
		s.how, s.finished = by.How, by.At
	}
	if s.finished.Before(s.started) {
		s.finished = s.started
	}
}

// lastSign is when the machine wrote last.
func (w *watch) lastSign() time.Time {
	var last time.Time
	for _, name := range []string{w.st.Console, w.st.Channel} {
		if info, err := os.Stat(w.path(name)); err == nil && info.ModTime().After(last) {
			last = info.ModTime()
		}
	}
	return last
}

// files lists the logs, and brings them to dir where the run was adopted by a
// runner with another log directory.
func (w *watch) files(dir string) ([]executor.File, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	var all []executor.File
	for _, name := range []string{w.st.Console, w.st.Channel, w.st.Log} {
		if _, err := os.Stat(w.path(name)); err != nil {
			continue
		}
		if dir != w.st.RunDir {
			if err := copyFile(w.path(name), filepath.Join(dir, name)); err != nil {
				return nil, err
			}
		}
		all = append(all, executor.File{Name: name, Log: name == w.st.Console})
	}
	return all, nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// tail is the end of a small file, without the command line in its first line.
func tail(path string, n int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(text), "\n")
	if int64(len(rest)) > n {
		rest = rest[int64(len(rest))-n:]
	}
	return strings.TrimSpace(strings.ToValidUTF8(rest, "?"))
}
