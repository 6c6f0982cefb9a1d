package scrub

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
)

// MinSecret is the length in bytes from which a secret of the lab's own is
// taken out by value.
const MinSecret = 6

// minForm is the shortest encoded part worth looking for, in bytes.
const minForm = 8

// secrets finds the lab's own by value.
type secrets struct {
	hot table
	// by the first two bytes; the longest first.
	by map[[2]byte][]string
}

func newSecrets(own []string) *secrets {
	var all []string
	for _, s := range own {
		for _, v := range []string{s, strings.TrimSpace(s)} {
			if len(v) >= MinSecret {
				all = append(all, forms(v)...)
			}
		}
	}
	// What is part of a marker would be found in every marker.
	all = slices.DeleteFunc(all, func(s string) bool {
		return slices.ContainsFunc(markers(), func(m string) bool { return strings.Contains(m, s) || strings.Contains(s, m) })
	})
	if len(all) == 0 {
		return nil
	}
	slices.SortFunc(all, func(a, b string) int { return len(b) - len(a) })
	s := &secrets{by: map[[2]byte][]string{}}
	for _, f := range all {
		k := [2]byte{f[0], f[1]}
		if !slices.Contains(s.by[k], f) {
			s.by[k] = append(s.by[k], f)
			s.hot.add(f)
		}
	}
	return s
}

// forms are the ways in which a secret is written.
func forms(s string) []string {
	f := []string{s}
	for _, e := range []string{url.QueryEscape(s), url.PathEscape(s), (&url.URL{User: url.UserPassword("", s)}).User.String()[1:]} {
		f = append(f, e, lowerHex(e))
	}
	if b, err := json.Marshal(s); err == nil {
		q := string(b[1 : len(b)-1])
		f = append(f, q, strings.ReplaceAll(q, "/", `\/`))
	}
	f = append(f, strings.ReplaceAll(s, "\n", "\r\n"), strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), `"`, `\"`))
	for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for before := range 3 {
			if b := inBase64(e, s, before); len(b) >= minForm {
				f = append(f, b)
			}
		}
		if b := e.EncodeToString([]byte(s)); len(b) >= minForm {
			f = append(f, b, b+strings.Repeat("=", (4-len(b)%4)%4))
		}
	}
	return f
}

// inBase64 is what s always looks like within the base64 of a longer text, when
// the number of bytes before it leaves the given remainder by 3: as in
// Authorization: Basic, where a name stands before it.
func inBase64(e *base64.Encoding, s string, before int) string {
	b := e.EncodeToString([]byte(strings.Repeat("\x00", before) + s))
	// The first characters hold bits of what stands before.
	b = b[[]int{0, 2, 3}[before]:]
	if (before+len(s))%3 != 0 {
		// The last one holds bits of what stands behind.
		b = b[:len(b)-1]
	}
	return b
}

// lowerHex is a URL-encoded text with %2f instead of %2F.
func lowerHex(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			b[i+1], b[i+2] = lower(b[i+1]), lower(b[i+2])
		}
	}
	return string(b)
}

func (s *secrets) find(w *window, i int) (match, bool) {
	for _, f := range s.by[[2]byte{w.buf[i], w.buf[i+1]}] {
		if w.has(i, f) {
			return match{kind: kindOwn, start: i, end: i + len(f)}, true
		}
		if w.short {
			break
		}
	}
	return match{}, false
}
