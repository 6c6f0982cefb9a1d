package scrub

import "sync"

// A table of the first two bytes at which something can begin.
type table [1 << 16]bool

func (t *table) add(s string) { t[int(s[0])<<8|int(s[1])] = true }

// addAny is for a first byte that everything may follow.
func (t *table) addAny(b byte) {
	for i := range 256 {
		t[int(b)<<8|i] = true
	}
}

// class is a set of bytes.
type class [256]bool

func newClass(ranges string) *class {
	var c class
	for i := 0; i < len(ranges); i++ {
		if i+2 < len(ranges) && ranges[i+1] == '-' {
			for b := int(ranges[i]); b <= int(ranges[i+2]); b++ {
				c[b] = true
			}
			i += 2
			continue
		}
		c[ranges[i]] = true
	}
	return &c
}

// match is a secret: buf[start:end] is replaced.
type match struct {
	kind       int
	start, end int
	// on, if set, tells which bytes after end still belong to it: it was too long
	// to be seen whole.
	on *class
}

// window is the part of the stream that rules see.
type window struct {
	buf []byte
	// floor is the end of the last secret: rules do not look behind it, and see a
	// marker's last byte there. So they see what a second pass would see.
	floor int
	// final: nothing comes after buf.
	final bool
	// short: a rule looked past the end of buf while more was to come. Whatever
	// it then found or did not find is void.
	short bool
	// noJWT: nothing that begins before it is a JWT.
	noJWT int
}

// at is a byte, and NUL after the end.
func (w *window) at(i int) byte {
	if i < len(w.buf) {
		return w.buf[i]
	}
	w.short = w.short || !w.final
	return 0
}

// back is a byte before the place of a match.
func (w *window) back(i int) byte {
	if i < w.floor {
		return ']'
	}
	return w.buf[i]
}

// has tells whether s is at i.
func (w *window) has(i int, s string) bool {
	for k := range len(s) {
		if w.at(i+k) != s[k] {
			return false
		}
	}
	return true
}

// hasFold is has for a lower-case s, in any case of letters.
func (w *window) hasFold(i int, s string) bool {
	for k := range len(s) {
		if lower(w.at(i+k)) != s[k] {
			return false
		}
	}
	return true
}

// run is the end of the bytes of c from i on, limit at most.
func (w *window) run(i int, c *class, limit int) int {
	end := min(len(w.buf), i+limit)
	e := i
	for e < end && c[w.buf[e]] {
		e++
	}
	if e == len(w.buf) && e < i+limit {
		w.short = w.short || !w.final
	}
	return e
}

// markerAt is the length of a marker at i; 0 without one.
func (w *window) markerAt(i int) int {
	if w.at(i) != '[' {
		return 0
	}
	for _, m := range markers() {
		if w.has(i, m) {
			return len(m)
		}
	}
	return 0
}

// ownAt tells whether the first pass put the marker at i there. The second pass
// makes none of these, so it may look through them and still see the same when
// it is repeated.
func (w *window) ownAt(i int) bool { return w.has(i, marker(kindOwn)) }

var markers = sync.OnceValue(func() []string {
	m := make([]string, len(kinds))
	for i, k := range kinds {
		m[i] = "[REDACTED:" + k + "]"
	}
	return m
})

// stage is one pass over a stream.
type stage struct {
	window
	hot  *table
	find func(w *window, i int) (match, bool)
	// pos: everything before it has been passed on.
	pos    int
	on     *class
	counts [maxKinds]int
	// out is for the next stage.
	out []byte
}

// feed takes input and appends what is decided to dst.
func (s *stage) feed(dst, p []byte, final bool) []byte {
	s.buf = append(s.buf, p...)
	s.final = final
	dst = s.scan(dst)
	if cut := s.pos - lookbehind - 8; cut > 0 {
		s.buf = s.buf[:copy(s.buf, s.buf[cut:])]
		s.pos -= cut
		s.floor, s.noJWT = max(0, s.floor-cut), max(0, s.noJWT-cut)
	}
	return dst
}

func (s *stage) scan(dst []byte) []byte {
	i := s.pos
	for {
		if s.on != nil {
			for i < len(s.buf) && s.on[s.buf[i]] {
				i++
			}
			s.pos, s.floor = i, i
			if i == len(s.buf) {
				return dst
			}
			s.on = nil
		}
		if i = s.next(i); i >= len(s.buf)-1 {
			break
		}
		s.short = false
		m, ok := s.find(&s.window, i)
		if s.short {
			return s.pass(dst, i)
		}
		if !ok {
			i++
			continue
		}
		dst = append(s.pass(dst, m.start), marker(m.kind)...)
		s.counts[m.kind]++
		i, s.on = m.end, m.on
		s.pos, s.floor = i, i
	}
	if s.final {
		return s.pass(dst, len(s.buf))
	}
	return s.pass(dst, i)
}

// next is where something may begin from i on; the last byte at least, which
// cannot be judged without its neighbour.
func (s *stage) next(i int) int {
	if i >= len(s.buf)-1 {
		return i
	}
	hot, prev := s.hot, int(s.buf[i])
	for k, b := range s.buf[i+1:] {
		if hot[(prev<<8|int(b))&0xffff] {
			return i + k
		}
		prev = int(b)
	}
	return len(s.buf) - 1
}

// pass passes on everything before i.
func (s *stage) pass(dst []byte, i int) []byte {
	dst = append(dst, s.buf[s.pos:i]...)
	s.pos = i
	return dst
}

func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		return b + 'a' - 'A'
	}
	return b
}
