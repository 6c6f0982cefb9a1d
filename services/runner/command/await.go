package command

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/executor"
)

const (
	// tailBytes of a console or log go into an excerpt or an error.
	tailBytes = 16 << 10
	errBytes  = 500
)

// Await reads the program's output until it says done, fails, or ends.
func (x *Executor) Await(ctx context.Context, run executor.Run, h executor.Handle, progress executor.Progress) (executor.Outcome, error) {
	if ctx.Err() != nil {
		return executor.Outcome{}, context.Cause(ctx)
	}
	id := h.ID
	if h.Executor != Name || !legalID.MatchString(id) {
		return executor.Outcome{}, &executor.LabError{Reason: "lost", Err: fmt.Errorf("%q is no machine of the command executor", id)}
	}
	m, err := x.record(id)
	if err != nil {
		return executor.Outcome{}, failure(ctx, "lost", err, "The state of the program is gone from runner.data_dir")
	}
	out, err := os.Open(x.path(id, outputFile))
	if err != nil {
		return executor.Outcome{}, failure(ctx, "lost", err, "The program was never started")
	}
	defer out.Close()
	t := &tail{r: bufio.NewReaderSize(out, 64<<10)}
	for {
		// Asked before reading: what it wrote before it ended is then read.
		alive, err := locked(x.path(id, aliveLock))
		if err != nil {
			return executor.Outcome{}, failure(ctx, "lost", err, "")
		}
		if err := t.read(!alive, progress); err != nil {
			return executor.Outcome{}, &executor.LabError{Reason: "protocol", Permanent: true,
				Err: fmt.Errorf("the program's output: %w", err), Fix: "Correct " + x.settings.Path}
		}
		if t.over {
			return x.outcome(ctx, t, m, out)
		}
		if !alive {
			x.reap(id)
			return x.ended(ctx, t, id, m, out)
		}
		if time.Since(m.Deadline) > killAfter+settle {
			return executor.Outcome{}, &executor.LabError{Reason: "deadline", Err: errors.New("the program survived its deadline")}
		}
		if err := backoff.Sleep(ctx, tick); err != nil {
			return executor.Outcome{}, err
		}
	}
}

// tail reads a growing file by lines.
type tail struct {
	report
	r    *bufio.Reader
	part []byte
}

// read takes in what is there; last says that no more will come, so that the
// last line counts even without its end.
func (t *tail) read(last bool, progress executor.Progress) error {
	for !t.over {
		b, err := t.r.ReadSlice('\n')
		t.part = append(t.part, b...)
		switch {
		case len(t.part) > maxLine+1:
			return fmt.Errorf("line %d, at byte %d: longer than %d bytes", t.lines+1, t.bytes, maxLine)
		case t.bytes+len(t.part) > maxOutput:
			return fmt.Errorf("line %d: more than %d bytes in all", t.lines+1, maxOutput)
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && (!last || len(t.part) == 0):
			return nil
		case err != nil && !errors.Is(err, io.EOF):
			return err
		}
		text := bytes.TrimSuffix(t.part, []byte("\n"))
		t.part = nil
		if err := t.take(text, progress); err != nil {
			return err
		}
	}
	return nil
}

// outcome is what the program said.
func (x *Executor) outcome(ctx context.Context, t *tail, m machine, out *os.File) (executor.Outcome, error) {
	if t.lab != nil {
		return executor.Outcome{}, t.lab
	}
	t.blame(func(name string) string { return lastOf(filepath.Join(m.Dir, name), tailBytes) })
	o := t.outcome
	if info, err := out.Stat(); err == nil {
		o.Finished = info.ModTime()
	}
	o.Started = m.Started
	if o.Finished.Before(o.Started) {
		o.Finished = o.Started
	}
	if o.Device == "" {
		o.Device = x.host
	}
	for _, r := range o.Rows {
		if r.StartTime == nil {
			r.StartTime = timestamppb.New(o.Started)
		}
	}
	o.Files = slices.DeleteFunc(o.Files, func(f executor.File) bool {
		_, err := os.Lstat(filepath.Join(m.Dir, f.Name))
		if err != nil {
			zerolog.Ctx(ctx).Error().Err(err).Str("run", m.RunID).Msg("the program named a file that is not there")
		}
		return err != nil
	})
	if log := logName(m.Attempt); !slices.ContainsFunc(o.Files, func(f executor.File) bool { return f.Name == log }) {
		o.Files = append(o.Files, executor.File{Name: log})
	}
	return o, nil
}

// ended decides about a program that ended without a last word.
func (x *Executor) ended(ctx context.Context, t *tail, id string, m machine, out *os.File) (executor.Outcome, error) {
	if _, err := os.Stat(x.path(id, stoppedFile)); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return executor.Outcome{}, &executor.LabError{Reason: "lost", Err: errors.New("the program was stopped before it was done")}
	}
	// What it said of the kernel is enough when that failed.
	if k := t.outcome.Kernel; k == executor.KernelFailed || k == executor.KernelHung {
		return x.outcome(ctx, t, m, out)
	}
	log := filepath.Join(m.Dir, logName(m.Attempt))
	if !time.Now().Before(m.Deadline) {
		return executor.Outcome{}, &executor.LabError{Reason: "deadline",
			Err: fmt.Errorf("the program was not done at its deadline, %s", m.Deadline.Format(time.RFC3339)), Fix: "See " + log}
	}
	err := errors.New("the program ended without done")
	if last := strings.TrimSpace(lastOf(log, errBytes)); last != "" {
		err = fmt.Errorf("%w; its last words: %q", err, last)
	}
	return executor.Outcome{}, &executor.LabError{Reason: "program", Err: err, Fix: "See " + log}
}

// lastOf is the end of a file, as text; empty when it cannot be read.
func lastOf(path string, n int64) string {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() {
		return ""
	}
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, max(0, info.Size()-n), n))
	if err != nil {
		return ""
	}
	return strings.ReplaceAll(strings.ToValidUTF8(string(b), "\uFFFD"), "\x00", "")
}
