package scrub

import (
	"bytes"
	"io"
	"slices"
)

const (
	// batch is how much input is gathered before it is looked at, and the largest
	// piece looked at, in bytes. A rule that waits for more starts again with
	// every batch, so batches must not be much smaller than lookahead.
	batch = 64 << 10
	// lookahead is how far a rule sees, in bytes. A PEM key has up to 13 KB; only
	// PGP keys with many subkeys come near.
	lookahead = 64 << 10
	// lookbehind is how far before a separator its key may begin, in bytes.
	lookbehind = 96
)

// Counts is how many secrets of each kind were taken out.
type Counts map[string]int

// Add adds those of other.
func (c Counts) Add(other Counts) {
	for kind, n := range other {
		c[kind] += n
	}
}

// Total over all kinds.
func (c Counts) Total() int {
	n := 0
	for _, k := range c {
		n += k
	}
	return n
}

// Kinds lists every kind that can be counted, in alphabetical order.
func Kinds() []string { return slices.Sorted(slices.Values(kinds)) }

// Scrubber knows what to take out. It may be used by many goroutines.
type Scrubber struct {
	own *secrets
}

// New makes a scrubber that also takes out these secrets by value. Those shorter
// than MinSecret bytes are ignored: taking them out would shred every log.
func New(own ...string) *Scrubber {
	return &Scrubber{own: newSecrets(own)}
}

// String scrubs a text.
func (s *Scrubber) String(text string) (string, Counts) {
	f := s.filter()
	for p := []byte(text); ; {
		n := min(len(p), batch)
		f.feed(p[:n], n == len(p))
		if p = p[n:]; len(p) == 0 {
			return string(f.out), f.counts()
		}
	}
}

// filter is the two passes over one stream.
type filter struct {
	stages []*stage
	out    []byte
}

func (s *Scrubber) filter() *filter {
	f := &filter{}
	if s.own != nil {
		f.stages = append(f.stages, &stage{hot: &s.own.hot, find: s.own.find})
	}
	f.stages = append(f.stages, &stage{hot: anchors(), find: find})
	return f
}

// feed takes input and appends to out. Of nothing but final it may be called
// with nothing.
func (f *filter) feed(p []byte, final bool) {
	for _, s := range f.stages[:len(f.stages)-1] {
		s.out = s.feed(s.out[:0], p, final)
		p = s.out
	}
	f.out = f.stages[len(f.stages)-1].feed(f.out, p, final)
}

func (f *filter) counts() Counts {
	c := Counts{}
	for _, s := range f.stages {
		for kind, name := range kinds {
			if n := s.counts[kind]; n > 0 {
				c[name] += n
			}
		}
	}
	return c
}

// Writer scrubs what is written through it. It is not safe for concurrent use.
type Writer struct {
	w  io.Writer
	f  *filter
	in []byte
	// err is the first of w, and the answer to everything after it.
	err    error
	closed bool
}

// NewWriter writes to w. Close writes the rest.
func (s *Scrubber) NewWriter(w io.Writer) *Writer {
	return &Writer{w: w, f: s.filter(), in: make([]byte, 0, batch)}
}

// Write takes all of p. What it passes on lags behind by up to two batches.
func (w *Writer) Write(p []byte) (int, error) {
	if w.closed && w.err == nil {
		return 0, io.ErrClosedPipe
	}
	total := len(p)
	for len(p) > 0 && w.err == nil {
		n := min(len(p), batch-len(w.in))
		w.in = append(w.in, p[:n]...)
		p = p[n:]
		if len(w.in) == batch {
			w.pass(false)
		}
	}
	return total - len(p), w.err
}

// Close writes what is held back. It does not close the writer below, and may
// be called again.
func (w *Writer) Close() error {
	if w.closed || w.err != nil {
		return w.err
	}
	w.closed = true
	w.pass(true)
	return w.err
}

func (w *Writer) pass(final bool) {
	w.f.feed(w.in, final)
	w.in = w.in[:0]
	_, w.err = w.w.Write(w.f.out)
	w.f.out = w.f.out[:0]
}

// Counts of what was taken out up to now; of everything after Close.
func (w *Writer) Counts() Counts { return w.f.counts() }

// Reader scrubs what is read through it. It is not safe for concurrent use.
type Reader struct {
	r   io.Reader
	f   *filter
	in  []byte
	out bytes.Reader
	err error
}

// NewReader reads from r.
func (s *Scrubber) NewReader(r io.Reader) *Reader {
	return &Reader{r: r, f: s.filter(), in: make([]byte, batch)}
}

// Read reads scrubbed text. An error of the reader below, io.EOF too, comes
// after all that was read before it.
func (r *Reader) Read(p []byte) (int, error) {
	for r.out.Len() == 0 {
		if r.err != nil {
			return 0, r.err
		}
		n := 0
		for n < len(r.in) && r.err == nil {
			var m int
			m, r.err = r.r.Read(r.in[n:])
			n += m
		}
		r.f.out = r.f.out[:0]
		r.f.feed(r.in[:n], r.err != nil)
		r.out.Reset(r.f.out)
	}
	return r.out.Read(p)
}

// Counts of what was taken out up to now; of everything after io.EOF.
func (r *Reader) Counts() Counts { return r.f.counts() }

// marker is what stands for a secret.
func marker(kind int) string { return markers()[kind] }

// kindOf is a kind's number; it panics for one that is not in the list, which
// the first use of the package would show.
func kindOf(name string) int {
	i := slices.Index(kinds, name)
	if i < 0 {
		panic("scrub: no kind " + name)
	}
	return i
}
