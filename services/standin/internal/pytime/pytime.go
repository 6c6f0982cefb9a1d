// Package pytime reads and writes timestamps the way the original's Python 3.11
// does (kernelci-wire.md 1.3, 1.4).
package pytime

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Format writes t as naive UTC: no offset, six digits of fraction, and no
// fraction at all when it is zero. BSON keeps milliseconds, so the last three
// digits are always 0.
func Format(t time.Time) string {
	t = Truncate(t)
	if t.Nanosecond() == 0 {
		return t.Format("2006-01-02T15:04:05")
	}
	return t.Format("2006-01-02T15:04:05.000000")
}

// Truncate cuts t to what the database keeps.
func Truncate(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// Parse reads what CPython 3.11's datetime.fromisoformat accepts; a naive time
// is UTC. ok is false for everything else, Unix epoch numbers included.
func Parse(s string) (t time.Time, ok bool) {
	date, rest, ok := parseDate(s)
	if !ok || rest == "" {
		return date, ok
	}
	// Any one character may stand between date and time.
	_, n := utf8.DecodeRuneInString(rest)
	rest = rest[n:]
	clock, zone := rest, ""
	if i := strings.IndexAny(rest, "Z+-"); i >= 0 {
		clock, zone = rest[:i], rest[i:]
	}
	d, ok := parseClock(clock)
	if !ok {
		return time.Time{}, false
	}
	off, ok := parseZone(zone)
	if !ok {
		return time.Time{}, false
	}
	return date.Add(d - off), true
}

func parseDate(s string) (t time.Time, rest string, ok bool) {
	layout := "20060102"
	if len(s) > 4 && s[4] == '-' {
		layout = "2006-01-02"
	}
	if len(s) > 5 && (s[4] == 'W' || s[4] == '-' && s[5] == 'W') {
		return parseWeekDate(s)
	}
	if len(s) < len(layout) {
		return time.Time{}, "", false
	}
	t, err := time.Parse(layout, s[:len(layout)])
	return t, s[len(layout):], err == nil && t.Year() >= 1
}

// parseWeekDate reads YYYY-Www[-D] and YYYYWww[D].
func parseWeekDate(s string) (t time.Time, rest string, ok bool) {
	dash := s[4] == '-'
	year, ok1 := digits(s, 0, 4)
	i := 5
	if dash {
		i = 6
	}
	week, ok2 := digits(s, i, 2)
	i += 2
	if !ok1 || !ok2 {
		return time.Time{}, "", false
	}
	day := 1
	if j := i + btoi(dash); j < len(s) && (!dash || s[i] == '-') && s[j] >= '0' && s[j] <= '9' {
		day, i = int(s[j]-'0'), j+1
	}
	if year < 1 || week < 1 || week > 53 || day < 1 || day > 7 {
		return time.Time{}, "", false
	}
	jan4 := time.Date(year, 1, 4, 0, 0, 0, 0, time.UTC)
	monday := jan4.AddDate(0, 0, -int((jan4.Weekday()+6)%7))
	t = monday.AddDate(0, 0, (week-1)*7+day-1)
	if _, w := t.ISOWeek(); w != week {
		return time.Time{}, "", false
	}
	return t, s[i:], true
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func digits(s string, from, n int) (int, bool) {
	if len(s) < from+n {
		return 0, false
	}
	for i := from; i < from+n; i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	v, err := strconv.Atoi(s[from : from+n])
	return v, err == nil
}

// parseClock reads HH[:MM[:SS[.f+]]] and HHMMSS[.f+]; digits of the fraction
// beyond the sixth are dropped.
func parseClock(s string) (time.Duration, bool) {
	units := []time.Duration{time.Hour, time.Minute, time.Second}
	limits := []int{24, 60, 60}
	colon := len(s) > 2 && s[2] == ':'
	var d time.Duration
	i := 0
	for n, unit := range units {
		v, ok := digits(s, i, 2)
		if !ok || v >= limits[n] {
			return 0, false
		}
		d += time.Duration(v) * unit
		i += 2
		switch {
		case i == len(s):
			return d, true
		case n == 2:
		case colon && s[i] == ':':
			i++
		case colon:
			return 0, false
		}
	}
	if s[i] != '.' && s[i] != ',' {
		return 0, false
	}
	f := s[i+1:]
	if f == "" {
		return 0, false
	}
	for _, c := range f {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	micro, _ := strconv.Atoi((f + "000000")[:6])
	return d + time.Duration(micro)*time.Microsecond, true
}

func parseZone(s string) (time.Duration, bool) {
	if s == "" || s == "Z" {
		return 0, true
	}
	if s[0] == 'Z' {
		return 0, false
	}
	d, ok := parseClock(s[1:])
	if s[0] == '-' {
		d = -d
	}
	return d, ok
}
