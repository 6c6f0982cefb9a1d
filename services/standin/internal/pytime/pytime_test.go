package pytime_test

import (
	"testing"
	"time"

	"github.com/pullab/pullab/services/standin/internal/pytime"
)

// The table was made with CPython 3.11's datetime.fromisoformat.
func TestParse(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"2026-08-20":                    "2026-08-20T00:00:00Z",
		"20260820":                      "2026-08-20T00:00:00Z",
		"2026-W34-4":                    "2026-08-20T00:00:00Z",
		"2026W344":                      "2026-08-20T00:00:00Z",
		"2026-W34":                      "2026-08-17T00:00:00Z",
		"2026-08-20T10":                 "2026-08-20T10:00:00Z",
		"2026-08-20T10:05":              "2026-08-20T10:05:00Z",
		"2026-08-20T10:05:12":           "2026-08-20T10:05:12Z",
		"2026-08-20 10:05:12.874000":    "2026-08-20T10:05:12.874Z",
		"2026-08-20x10:05:12,8":         "2026-08-20T10:05:12.8Z",
		"2026-08-20T10:05:12.874000123": "2026-08-20T10:05:12.874Z",
		"20260820T100512.874":           "2026-08-20T10:05:12.874Z",
		"2026-08-20T10:05:12Z":          "2026-08-20T10:05:12Z",
		"2026-08-20T10:05:12+00:00":     "2026-08-20T10:05:12Z",
		"2026-08-20T10:05:12-0130":      "2026-08-20T11:35:12Z",
		"2026-08-20T10:05:12+02":        "2026-08-20T08:05:12Z",
		"1753000000":                    "",
		"1753000000.5":                  "",
		"":                              "",
		"2026-08":                       "",
		"2026-08-20T":                   "",
		"2026-08-20T24:00":              "",
		"2026-08-20T10:05:60":           "",
		"2026-08-20T1005:12":            "",
		"2026-08-20T10:0512":            "",
		"2026-08-20T10:05:12.":          "",
		"2026-08-20T10:05:12 00:00":     "",
		"2026-08-20T10:05:12z":          "",
		"2026-08-20T10:05:12Z+01":       "",
		"2026-02-30":                    "",
		"2026-W54":                      "",
		"0000-01-01":                    "",
		"now":                           "",
	} {
		got, ok := pytime.Parse(in)
		text := ""
		if ok {
			text = got.Format(time.RFC3339Nano)
		}
		if text != want {
			t.Errorf("%q: %q, want %q", in, text, want)
		}
	}
}

func TestFormat(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"2026-08-20T10:05:12.874999Z":   "2026-08-20T10:05:12.874000",
		"2026-08-20T10:05:15.000999Z":   "2026-08-20T10:05:15",
		"2026-08-20T12:05:15.405+02:00": "2026-08-20T10:05:15.405000",
	} {
		v, err := time.Parse(time.RFC3339Nano, in)
		if err != nil {
			t.Fatal(err)
		}
		if got := pytime.Format(v); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"2026-08-20T10:05:12.874000+01:00", "2026W344T10", "1753000000", "2026-W34-4T10:05Z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, ok := pytime.Parse(s)
		if !ok {
			return
		}
		v = pytime.Truncate(v)
		if again, ok := pytime.Parse(pytime.Format(v)); ok && !again.Equal(v) {
			t.Errorf("%q is %v, and written and read again %v", s, v, again)
		}
	})
}
