// Package dmesg judges the kernel's log as KernelCI's baseline test does:
// `dmesg --level=<level> -k` must print nothing for emerg, alert and crit
// (test-definitions, kernelci dmesg.sh). Only the kernel's own records count:
// what a program writes to /dev/kmsg has another facility, which the kernel
// sees to.
package dmesg

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// Record is one record of /dev/kmsg (Documentation/ABI/testing/dev-kmsg).
type Record struct {
	// Level 0 (emerg) to 7 (debug).
	Level int
	// Kernel is true for facility 0.
	Kernel bool
	// Seq counts from 0; a first record that is later means that the ring
	// buffer has lost what came before.
	Seq uint64
	// Micros since boot.
	Micros uint64
	Text   string
}

// Parse reads "prio,seq,micros,flags[,...];text" and leaves out the
// continuation lines (" KEY=value") after it.
func Parse(b []byte) (Record, error) {
	head, rest, ok := bytes.Cut(b, []byte{';'})
	f := strings.Split(string(head), ",")
	if !ok || len(f) < 3 {
		return Record{}, fmt.Errorf("not a kernel log record: %.40q", b)
	}
	var n [3]uint64
	for i := range n {
		v, err := strconv.ParseUint(f[i], 10, 64)
		if err != nil {
			return Record{}, fmt.Errorf("not a kernel log record: %.40q: %w", b, err)
		}
		n[i] = v
	}
	text, _, _ := bytes.Cut(rest, []byte{'\n'})
	return Record{Level: int(n[0] & 7), Kernel: n[0]>>3 == 0, Seq: n[1], Micros: n[2], Text: unescape(string(text))}, nil
}

// unescape undoes \xNN, by which the kernel shows bytes that are not printable,
// among them the line ends of a multi-line message.
func unescape(s string) string {
	var b strings.Builder
	for {
		before, after, ok := strings.Cut(s, `\x`)
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		v, err := strconv.ParseUint(after[:min(2, len(after))], 16, 8)
		if err != nil || len(after) < 2 {
			b.WriteString(`\x`)
			s = after
			continue
		}
		b.WriteByte(byte(v))
		s = after[2:]
	}
}

// Finding is what there is of one level.
type Finding struct {
	// Level's name: emerg, alert, crit.
	Level string
	Lines []string
}

// Judge gives a finding for each of the three levels, with or without lines.
func Judge(records []Record) []Finding {
	found := []Finding{{Level: "emerg"}, {Level: "alert"}, {Level: "crit"}}
	for _, r := range records {
		if r.Kernel && r.Level < len(found) {
			f := &found[r.Level]
			f.Lines = append(f.Lines, fmt.Sprintf("[%5d.%06d] %s", r.Micros/1e6, r.Micros%1e6, r.Text))
		}
	}
	return found
}

// Lost is how many records the ring buffer had dropped before the first one.
func Lost(records []Record) uint64 {
	if len(records) == 0 {
		return 0
	}
	return records[0].Seq
}
