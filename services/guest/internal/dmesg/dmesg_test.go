package dmesg

import (
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]Record{
		"6,339,5140900,-;NET: Registered PF_INET6\n": {6, true, 339, 5140900, "NET: Registered PF_INET6"},
		"2,1,0,-;x\n":                {2, true, 1, 0, "x"},
		"10,2,7,-;from user space\n": {2, false, 2, 7, "from user space"},
		"4,3,9,-,caller=T1;with more flags; and a semicolon\n KEY=value\n":  {4, true, 3, 9, "with more flags; and a semicolon"},
		"0,4,9,c;two\\x0alines \\xzz \\x4\n":                                {0, true, 4, 9, "two\nlines \\xzz \\x4"},
		"3,5,9,-;":                                                          {3, true, 5, 9, ""},
		"6,18446744073709551615,9,-;DEVICE name\n SUBSYSTEM=acpi\n X=y;z\n": {6, true, 1<<64 - 1, 9, "DEVICE name"},
	} {
		got, err := Parse([]byte(in))
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", ";", "6,1;x", "a,b,c,-;x", "6,1,-1,-;x", "no record"} {
		if _, err := Parse([]byte(in)); err == nil {
			t.Errorf("%q: no error", in)
		}
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	records := []Record{
		{Level: 6, Kernel: true, Seq: 12, Text: "fine"},
		{Level: 2, Kernel: true, Seq: 13, Micros: 1500042, Text: "Out of memory"},
		{Level: 0, Kernel: false, Seq: 14, Text: "a program says panic"},
		{Level: 3, Kernel: true, Seq: 15, Text: "an error"},
		{Level: 1, Kernel: true, Seq: 16, Micros: 12000000, Text: "BUG"},
	}
	got := Judge(records)
	want := []Finding{{Level: "emerg"}, {Level: "alert", Lines: []string{"[   12.000000] BUG"}}, {Level: "crit", Lines: []string{"[    1.500042] Out of memory"}}}
	if !slices.EqualFunc(got, want, func(a, b Finding) bool { return a.Level == b.Level && slices.Equal(a.Lines, b.Lines) }) {
		t.Errorf("%+v", got)
	}
	if Lost(records) != 12 || Lost(nil) != 0 {
		t.Errorf("lost %d", Lost(records))
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("6,339,5140900,-;NET: Registered\n SUBSYSTEM=acpi\n"))
	f.Add([]byte(`0,4,9,c;\x0a\x`))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := Parse(in)
		if err == nil && (r.Level < 0 || r.Level > 7 || len(r.Text) > len(in) || strings.Contains(r.Text, "\n") && !strings.Contains(string(in), `\x0`)) {
			t.Errorf("%+v", r)
		}
	})
}
