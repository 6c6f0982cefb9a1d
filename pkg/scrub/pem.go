package scrub

import "bytes"

var (
	pemLabel  = newClass("A-Z0-9 ")
	pemSpace  = newClass(" \t\r\n")
	pemBody   = newClass("A-Za-z0-9+/=")
	pemOn     = newClass("A-Za-z0-9+/=\r\n")
	pemHeader = newClass("A-Za-z-")
	notEOL    = func() *class {
		c := newClass("")
		for i := range c {
			c[i] = i != '\n' && i != '\r' && i != 0
		}
		return c
	}()
)

// pem is a private key in PEM armour, of OpenSSH, OpenSSL, PGP and ssh.com, also
// with its newlines written as \n. Without its end, as when the machine died in
// it, what looks like its body goes.
func (w *window) pem(i int) (match, bool) {
	body, ok := w.pemLine(i, "BEGIN ")
	if !ok {
		return match{}, false
	}
	if e := w.pemEnd(body); e > 0 {
		return match{kind: kindPEM, start: i, end: e}, true
	}
	if e := w.pemRest(body); e > body {
		// One that ends so near to the end of sight may go on.
		return w.long(match{kind: kindPEM, start: i, end: e}, body+lookahead-256, pemOn), true
	}
	return match{}, false
}

// pemLine is the end of -----BEGIN ... PRIVATE KEY ...-----.
func (w *window) pemLine(i int, verb string) (int, bool) {
	dashes := "-----"
	switch {
	case w.has(i, dashes+verb):
		i += len(dashes + verb)
	case w.has(i, "---- "+verb):
		i, dashes = i+len("---- "+verb), "----"
	default:
		return 0, false
	}
	const label = 48
	e := w.run(i, pemLabel, label)
	if !bytes.Contains(w.buf[i:e], []byte("PRIVATE KEY")) || !w.has(e, dashes) {
		return 0, false
	}
	return e + len(dashes), true
}

// pemEnd is the end of the armour; 0 when none is in sight, or another begins
// first. Bodies have no dashes, so what is looked at between two BEGINs is
// looked at once.
func (w *window) pemEnd(i int) int {
	limit := i + lookahead
	if limit > len(w.buf) {
		limit = len(w.buf)
	}
	region := w.buf[i:limit]
	for from := 0; ; {
		n := bytes.Index(region[from:], []byte("----"))
		if n < 0 {
			w.short = w.short || limit < i+lookahead && !w.final
			return 0
		}
		// What was taken out there may have begun a key of its own.
		if bytes.Contains(region[from:from+n], []byte("[REDACTED:")) {
			return 0
		}
		if e, ok := w.pemLine(i+from+n, "END "); ok {
			return e
		}
		if _, ok := w.pemLine(i+from+n, "BEGIN "); ok {
			return 0
		}
		from += n + 1
	}
}

// pemRest is the end of what looks like a body: long lines of base64 and a last
// one of any length, after headers like Proc-Type.
func (w *window) pemRest(i int) int {
	const line = 40
	limit := i + lookahead
	end := i
	for at := i; at < limit; {
		at = w.pemGap(at, limit)
		e := w.run(at, pemBody, limit-at)
		switch {
		case e >= at+line:
			end = e
		case e > at && end > i && w.lineEnds(e):
			return e
		default:
			h := w.run(at, pemHeader, 32)
			if end > i || h == at || !w.has(h, ": ") {
				return end
			}
			e = w.run(h, notEOL, 256)
		}
		at = e
	}
	return end
}

// pemGap skips ends of lines, real and written, and the times that printk and
// the guest put before lines.
func (w *window) pemGap(i, limit int) int {
	for i < limit {
		e := w.run(i, pemSpace, limit-i)
		switch {
		case w.has(e, `\n`) || w.has(e, `\r`):
			e += 2
		case w.at(e) == '[':
			if t := w.run(e+1, printkTime, 24); t > e+1 && w.at(t) == ']' {
				e = t + 1
			}
		}
		if e == i {
			break
		}
		i = e
	}
	return i
}

var printkTime = newClass("0-9. ")

func (w *window) lineEnds(i int) bool {
	switch w.at(i) {
	case 0, '\r', '\n', '\\', '"', '\'':
		return true
	}
	return false
}
