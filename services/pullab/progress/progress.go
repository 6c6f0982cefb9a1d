// Package progress shows a person how far runs are: a bar that stays on one
// line of a terminal, plain lines everywhere else.
package progress

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

// share is how much of a run lies behind each phase, in percent: a rough
// picture of a boot job under TCG, where booting takes longest.
var share = map[pullabv1.RunPhase]int{
	pullabv1.RunPhase_RUN_PHASE_RESERVED:   2,
	pullabv1.RunPhase_RUN_PHASE_FETCHING:   5,
	pullabv1.RunPhase_RUN_PHASE_LAUNCHING:  15,
	pullabv1.RunPhase_RUN_PHASE_RUNNING:    20,
	pullabv1.RunPhase_RUN_PHASE_BOOTING:    25,
	pullabv1.RunPhase_RUN_PHASE_TESTING:    75,
	pullabv1.RunPhase_RUN_PHASE_COLLECTING: 90,
	pullabv1.RunPhase_RUN_PHASE_FINISHED:   100,
}

// Name is a phase as people read it.
func Name(p pullabv1.RunPhase) string {
	return strings.ToLower(strings.TrimPrefix(p.String(), "RUN_PHASE_"))
}

// Display shows one run at a time, the one that moved last.
type Display struct {
	w        io.Writer
	terminal bool

	mu      sync.Mutex
	started time.Time
	last    *pullabv1.RunProgress
	said    string
}

// New writes to w, which may be a terminal.
func New(w io.Writer, terminal bool) *Display {
	return &Display{w: w, terminal: terminal, started: time.Now()}
}

// Note prints a line of its own: something that is not a run's phase.
func (d *Display) Note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clear()
	fmt.Fprintf(d.w, format+"\n", args...)
}

// Show takes a phase change.
func (d *Display) Show(p *pullabv1.RunProgress) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = p
	if d.terminal {
		d.draw()
		return
	}
	if line := strings.TrimSpace(Name(p.GetPhase()) + " " + p.GetDetail()); line != d.said {
		d.said = line
		fmt.Fprintf(d.w, "%4ds  %s  %s\n", int(time.Since(d.started).Seconds()), p.GetNodeId(), line)
	}
}

// Run redraws the bar every second until ctx ends, then leaves the line free.
func (d *Display) Run(ctx context.Context) {
	if !d.terminal {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			d.mu.Lock()
			d.clear()
			d.mu.Unlock()
			return
		case <-tick.C:
			d.mu.Lock()
			d.draw()
			d.mu.Unlock()
		}
	}
}

const width = 30

func (d *Display) draw() {
	if d.last == nil {
		return
	}
	full := share[d.last.GetPhase()] * width / 100
	detail := []rune(d.last.GetDetail())
	if len(detail) > 40 {
		detail = append(detail[:39], '…')
	}
	d.clear()
	fmt.Fprintf(d.w, "[%s%s] %4ds %s %s", strings.Repeat("#", full), strings.Repeat("-", width-full),
		int(time.Since(d.started).Seconds()), Name(d.last.GetPhase()), string(detail))
}

// clear returns to the start of an empty line (ECMA-48: CR, EL).
func (d *Display) clear() {
	if d.terminal {
		fmt.Fprint(d.w, "\r\x1b[K")
	}
}
