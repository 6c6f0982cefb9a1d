package guest

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/pullab/pullab/pkg/channel"
	"github.com/pullab/pullab/services/guest/internal/dmesg"
	"github.com/pullab/pullab/services/guest/internal/machine"
	"github.com/pullab/pullab/services/guest/internal/suite"
)

// bootRows are the rows of a boot test: boot, which passed because we run and
// hello has checked on which kernel, and the kernel's log by level.
func (g *guest) bootRows(t channel.Test) []channel.Row {
	now := machine.Uptime().Seconds()
	row := channel.Row{TestID: t.ID, Path: t.Path, Status: "PASS", TookS: g.upAt.Seconds()}
	if len(g.plan.Releases) == 0 {
		row.Misc = map[string]string{"kernel_release_checked": "no: neither the modules archive nor the kernel image told the release"}
	}
	records, err := dmesg.Read()
	return append([]channel.Row{row}, logRows(t.ID, now, records, err)...)
}

// logRows judges the kernel's log, with the number of lines as KernelCI's
// baseline test has it.
func logRows(id string, now float64, records []dmesg.Record, err error) []channel.Row {
	var rows []channel.Row
	for _, f := range dmesg.Judge(records) {
		row := channel.Row{
			TestID: id, Path: "baseline.dmesg." + f.Level, Status: "PASS", StartS: now,
			Number: &channel.Number{Value: float64(len(f.Lines)), Unit: "lines"},
		}
		if lost := dmesg.Lost(records); lost > 0 {
			row.Misc = map[string]string{"records_lost": strconv.FormatUint(lost, 10)}
		}
		switch {
		case len(f.Lines) > 0:
			row.Status, row.Reason = "FAIL", fmt.Sprintf("the kernel logged %d lines of level %s", len(f.Lines), f.Level)
			row.Excerpt = suite.Excerpt(strings.Join(f.Lines, "\n"))
		case err != nil:
			row.Status, row.Reason, row.Number = "MISS", "the kernel's log cannot be read: "+err.Error(), nil
		}
		rows = append(rows, row)
	}
	return rows
}
