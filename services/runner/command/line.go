package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pullab/pullab/pkg/executor"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

const (
	// maxLine of the program's output, in bytes: an excerpt of 16,384 code points
	// with room for JSON's escapes.
	maxLine = 256 << 10
	// maxOutput in bytes and maxRows of a run: LTP has some 2,000 rows, kselftest
	// 10,000.
	maxOutput = 128 << 20
	maxRows   = 100_000
	maxFiles  = 1000
)

// Input is what the program reads.
type Input struct {
	RunID    string          `json:"run_id"`
	Attempt  int             `json:"attempt"`
	Deadline time.Time       `json:"deadline"`
	Dir      string          `json:"dir"`
	Plan     json.RawMessage `json:"plan"`
}

// line is one line of the program's output: exactly one of the pointers is set.
type line struct {
	Progress *struct {
		Phase  string `json:"phase"`
		Detail string `json:"detail"`
	} `json:"progress"`
	Kernel *struct {
		Fate    string `json:"fate"`
		Release string `json:"release"`
		Reason  string `json:"reason"`
	} `json:"kernel"`
	Row  *row `json:"row"`
	File *struct {
		Name string `json:"name"`
		Log  bool   `json:"log"`
	} `json:"file"`
	LabError *struct {
		Reason    string `json:"reason"`
		Permanent bool   `json:"permanent"`
		Fix       string `json:"fix"`
		Message   string `json:"message"`
	} `json:"lab_error"`
	Done *struct {
		Device string            `json:"device"`
		Facts  map[string]string `json:"facts"`
	} `json:"done"`
}

type row struct {
	Path      string            `json:"path"`
	Status    string            `json:"status"`
	TestID    string            `json:"test_id"`
	StartTime time.Time         `json:"start_time"`
	DurationS float64           `json:"duration_s"`
	Excerpt   string            `json:"log_excerpt"`
	Reason    string            `json:"reason"`
	Misc      map[string]string `json:"misc"`
	Number    *struct {
		Value  float64 `json:"value"`
		Unit   string  `json:"unit"`
		Prefix string  `json:"prefix"`
	} `json:"number"`
}

// report is what the program has said so far. It is a function of the bytes
// alone, so that every reader of the same output comes to the same outcome.
type report struct {
	// lines and bytes taken in.
	lines, bytes int
	outcome      executor.Outcome
	lab          *executor.LabError
	// over is set by done and lab_error; what follows is not read.
	over bool
}

var phases = map[string]pullabv1.RunPhase{
	"fetching": pullabv1.RunPhase_RUN_PHASE_FETCHING,
	"booting":  pullabv1.RunPhase_RUN_PHASE_BOOTING,
	"testing":  pullabv1.RunPhase_RUN_PHASE_TESTING,
}

var fates = map[string]executor.KernelFate{
	"booted": executor.KernelBooted, "failed": executor.KernelFailed, "hung": executor.KernelHung,
}

// take reads one line without its end.
func (r *report) take(text []byte, progress executor.Progress) error {
	r.lines++
	at := r.bytes
	r.bytes += len(text) + 1
	if len(bytes.TrimSpace(text)) == 0 {
		return nil
	}
	if err := r.read(text, progress); err != nil {
		return fmt.Errorf("line %d, at byte %d: %w", r.lines, at, err)
	}
	return nil
}

func (r *report) read(text []byte, progress executor.Progress) error {
	l, err := decode(text)
	if err != nil {
		return err
	}
	switch {
	case l.Progress != nil:
		p, ok := phases[l.Progress.Phase]
		if !ok {
			return fmt.Errorf("progress.phase %q is none of fetching, booting, testing", l.Progress.Phase)
		}
		progress(p, l.Progress.Detail)
	case l.Kernel != nil:
		fate, ok := fates[l.Kernel.Fate]
		if !ok {
			return fmt.Errorf("kernel.fate %q is none of booted, failed, hung", l.Kernel.Fate)
		}
		o := &r.outcome
		o.Kernel, o.KernelReason = fate, l.Kernel.Reason
		if l.Kernel.Release != "" {
			o.Release = l.Kernel.Release
		}
	case l.Row != nil:
		return r.row(l.Row)
	case l.File != nil:
		f := executor.File{Name: l.File.Name, Log: l.File.Log}
		if f.Name == "" || f.Name != filepath.Base(f.Name) || f.Name == "." || f.Name == ".." {
			return fmt.Errorf("file.name %q is not a plain file name in dir", f.Name)
		}
		if len(r.outcome.Files) == maxFiles {
			return fmt.Errorf("more than %d files", maxFiles)
		}
		r.outcome.Files = append(r.outcome.Files, f)
	case l.LabError != nil:
		e := l.LabError
		if e.Reason == "" || e.Message == "" && e.Fix == "" {
			return errors.New("lab_error needs a reason and a message or a fix")
		}
		r.over, r.lab = true, &executor.LabError{Reason: e.Reason, Permanent: e.Permanent, Fix: e.Fix}
		if e.Message != "" {
			r.lab.Err = errors.New(e.Message)
		}
	default:
		r.over, r.outcome.Device, r.outcome.Facts = true, l.Done.Device, l.Done.Facts
	}
	return nil
}

func decode(text []byte) (line, error) {
	var l line
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return l, fmt.Errorf("not a line that pullab knows: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return l, errors.New("something follows the object on its line")
	}
	set := 0
	for _, is := range []bool{l.Progress != nil, l.Kernel != nil, l.Row != nil, l.File != nil, l.LabError != nil, l.Done != nil} {
		if is {
			set++
		}
	}
	if set != 1 {
		return l, fmt.Errorf("a line has exactly one of progress, kernel, row, file, lab_error, done, not %d", set)
	}
	return l, nil
}

func (r *report) row(in *row) error {
	if len(r.outcome.Rows) == maxRows {
		return fmt.Errorf("more than %d rows", maxRows)
	}
	status, ok := pullabv1.Status_value["STATUS_"+in.Status]
	if !ok || status == 0 {
		return fmt.Errorf("row.status %q is none of PASS, FAIL, SKIP, ERROR, MISS, DONE", in.Status)
	}
	if in.Path == "" {
		return errors.New("row.path is empty")
	}
	// A duration beyond this overflows time.Duration.
	if in.DurationS < 0 || in.DurationS > math.MaxInt64/1e9/2 {
		return fmt.Errorf("row.duration_s %v is no duration", in.DurationS)
	}
	if y := in.StartTime.Year(); !in.StartTime.IsZero() && (y < 1970 || y > 9999) {
		return fmt.Errorf("row.start_time %v is no time of a test", in.StartTime)
	}
	out := &pullabv1.TestRow{
		Path: in.Path, Status: pullabv1.Status(status), TestId: in.TestID, LogExcerpt: in.Excerpt, Reason: in.Reason, Misc: in.Misc,
	}
	if !in.StartTime.IsZero() {
		out.StartTime = timestamppb.New(in.StartTime)
	}
	if in.DurationS > 0 {
		out.Duration = durationpb.New(time.Duration(in.DurationS * float64(time.Second)))
	}
	if n := in.Number; n != nil {
		out.Number = &pullabv1.Number{Value: n.Value, Unit: n.Unit, Prefix: n.Prefix}
	}
	r.outcome.Rows = append(r.outcome.Rows, out)
	return nil
}

// blame gives a failed kernel its FAIL of boot where the program gave none, with
// the end of its console.
func (r *report) blame(console func(name string) string) {
	o := &r.outcome
	if o.Kernel != executor.KernelFailed && o.Kernel != executor.KernelHung {
		return
	}
	if o.KernelReason == "" {
		o.KernelReason = "the program says that the kernel under test " + map[bool]string{true: "hung", false: "failed"}[o.Kernel == executor.KernelHung]
	}
	var boot *pullabv1.TestRow
	for _, row := range o.Rows {
		if row.GetPath() == "boot" && row.GetStatus() == pullabv1.Status_STATUS_FAIL {
			boot = row
		}
	}
	if boot == nil {
		boot = &pullabv1.TestRow{Path: "boot", Status: pullabv1.Status_STATUS_FAIL, Reason: o.KernelReason}
		o.Rows = append(o.Rows, boot)
	}
	if boot.GetLogExcerpt() != "" {
		return
	}
	for _, f := range o.Files {
		if f.Log && boot.GetLogExcerpt() == "" {
			boot.LogExcerpt = console(f.Name)
		}
	}
	if strings.TrimSpace(boot.GetLogExcerpt()) == "" {
		boot.LogExcerpt = o.KernelReason
	}
}
