package suite

import (
	"bytes"
	"strings"
)

// tally counts the top-level results of a KTAP stream
// (Documentation/dev-tools/ktap.rst): "ok 1 name", "not ok 2 name # exit=1",
// "ok 3 name # SKIP". Results inside of a test are indented or behind a '#'.
type tally struct {
	ok, skipped int
	// bad are names of failed tests, as many as are worth naming.
	bad     []string
	moreBad int
	line    []byte
}

// longest line that is looked at, and most names that are kept.
const (
	maxTap   = 4 << 10
	maxNames = 100
)

// Write takes output; it never fails.
func (t *tally) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		chunk, rest, whole := bytes.Cut(p, []byte{'\n'})
		t.line = append(t.line, chunk[:min(len(chunk), maxTap-len(t.line))]...)
		if whole {
			t.take(strings.TrimSuffix(string(t.line), "\r"))
			t.line = t.line[:0]
		}
		p = rest
	}
	return n, nil
}

func (t *tally) take(line string) {
	bad := strings.HasPrefix(line, "not ok ")
	rest, ok := strings.CutPrefix(strings.TrimPrefix(line, "not "), "ok ")
	if !ok {
		return
	}
	number, rest, _ := strings.Cut(rest, " ")
	if number == "" || strings.Trim(number, "0123456789") != "" {
		return
	}
	name, directive, _ := strings.Cut(rest, "#")
	switch {
	case strings.HasPrefix(strings.ToUpper(strings.TrimSpace(directive)), "SKIP"):
		t.skipped++
	case !bad:
		t.ok++
	case len(t.bad) < maxNames:
		name = strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(name), "- "), "selftests: ")
		t.bad = append(t.bad, name)
	default:
		t.moreBad++
	}
}
