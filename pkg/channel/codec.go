package channel

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"unicode/utf8"
)

// A line is
//
//	RS <64 hex digits: HMAC-SHA256(key, JSON)> SP <JSON> LF
//
// RS (0x1e) opens a text as in RFC 7464. Neither hex nor JSON can contain it,
// so it also ends whatever noise or half line came before. The sequence number
// is inside the signed JSON: a line that is copied later is refused as a replay.
const (
	recordStart = 0x1e
	macLen      = 2 * sha256.Size
	prefixLen   = macLen + 1
)

// cutMark stands where the writer took the middle of an excerpt out.
const cutMark = "\n[... cut: longer than a channel line ...]\n"

// Writer signs and numbers messages. It is not safe for concurrent use.
type Writer struct {
	w   io.Writer
	mac hash.Hash
	seq int
}

// NewWriter writes lines signed with key, numbered from 1, to w. Every line is
// one Write call.
func NewWriter(w io.Writer, key string) *Writer {
	return &Writer{w: w, mac: hmac.New(sha256.New, []byte(key))}
}

// Send writes m as the next line; m.Seq is assigned. A row's excerpt loses its
// middle when the line would be longer than MaxLine. A message that is too long
// for another reason is an error and takes no number. After a failed write the
// number is taken: the reader must learn that a line is missing.
func (w *Writer) Send(m Message) error {
	if err := m.check(); err != nil {
		return err
	}
	m.Seq = w.seq + 1
	body, err := m.encode()
	if err != nil {
		return err
	}
	w.seq++
	line := make([]byte, 0, 2+prefixLen+len(body))
	line = append(line, recordStart)
	line = hex.AppendEncode(line, sum(w.mac, body))
	line = append(line, ' ')
	line = append(line, body...)
	line = append(line, '\n')
	if _, err := w.w.Write(line); err != nil {
		return fmt.Errorf("message %d was lost: writing to the channel: %w", m.Seq, err)
	}
	return nil
}

func (m Message) encode() ([]byte, error) {
	for {
		body, err := json.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("message %d cannot be written as JSON: %w", m.Seq, err)
		}
		over := 2 + prefixLen + len(body) - MaxLine
		if over <= 0 {
			return body, nil
		}
		if m.Row == nil || len(m.Row.Excerpt) <= 4*len(cutMark) {
			return nil, fmt.Errorf("message %d is %d bytes longer than a line may be and has no excerpt to cut", m.Seq, over)
		}
		row := *m.Row
		row.Excerpt = middleOut(row.Excerpt, len(row.Excerpt)*3/4-len(cutMark))
		m.Row = &row
	}
}

// middleOut keeps the first and last half of keep bytes of s, on rune borders.
func middleOut(s string, keep int) string {
	head, tail := keep/2, len(s)-(keep-keep/2)
	for head > 0 && !utf8.RuneStart(s[head]) {
		head--
	}
	for tail < len(s) && !utf8.RuneStart(s[tail]) {
		tail++
	}
	return s[:head] + cutMark + s[tail:]
}

func (m Message) check() error {
	set := 0
	for _, is := range []bool{m.Hello != nil, m.Phase != nil, m.Row != nil, m.Refuse != nil, m.Done != nil} {
		if is {
			set++
		}
	}
	if set != 1 {
		return fmt.Errorf("a channel message carries exactly one thing, this one carries %d", set)
	}
	return nil
}

func sum(mac hash.Hash, body []byte) []byte {
	mac.Reset()
	mac.Write(body)
	return mac.Sum(nil)
}

// GapError says that lines are missing before the next message: rows may be
// lost, and a verdict made from the rest would be a guess.
type GapError struct{ Want, Got int }

func (e *GapError) Error() string {
	return fmt.Sprintf("channel messages %d to %d are missing: rows may be lost, do not trust this run's rows as complete", e.Want, e.Got-1)
}

// Noise counts what was on the port and was not taken.
type Noise struct {
	// Bytes outside of any line: firmware, console messages, half lines.
	Bytes int
	// Forged lines: opened like a line, wrong signature or not a message.
	Forged int
	// Replayed lines: well signed, number already seen.
	Replayed int
}

// Decoder takes bytes as they arrive (tailing a growing file) and gives
// messages. It holds at most one line plus the messages not yet taken. The zero
// value is not usable; see NewDecoder.
type Decoder struct {
	mac    hash.Hash
	line   []byte
	inLine bool
	queue  []Message
	last   int
	noise  Noise
}

// NewDecoder takes lines signed with key.
func NewDecoder(key string) *Decoder {
	return &Decoder{mac: hmac.New(sha256.New, []byte(key))}
}

// Write takes the next bytes. It never fails.
func (d *Decoder) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if !d.inLine {
			i := bytes.IndexByte(p, recordStart)
			if i < 0 {
				d.noise.Bytes += len(p)
				break
			}
			d.noise.Bytes += i
			p, d.inLine = p[i+1:], true
			continue
		}
		i := bytes.IndexAny(p, "\n\x1e")
		chunk := p
		if i >= 0 {
			chunk = p[:i]
		}
		if len(d.line)+len(chunk) > MaxLine {
			d.noise.Bytes += len(d.line) + len(chunk)
			d.line, d.inLine = d.line[:0], false
			p = p[len(chunk):]
			continue
		}
		d.line = append(d.line, chunk...)
		p = p[len(chunk):]
		if i < 0 {
			break
		}
		if p[0] == '\n' {
			d.take()
			d.inLine = false
		} else {
			d.noise.Bytes += len(d.line)
		}
		d.line, p = d.line[:0], p[1:]
	}
	return n, nil
}

// take judges one whole line.
func (d *Decoder) take() {
	line := bytes.TrimRight(d.line, "\r\x00")
	if len(line) < prefixLen || line[macLen] != ' ' {
		d.noise.Forged++
		return
	}
	body := line[prefixLen:]
	var m Message
	if got, err := hex.DecodeString(string(line[:macLen])); err != nil || !hmac.Equal(got, sum(d.mac, body)) ||
		json.Unmarshal(body, &m) != nil || m.check() != nil {
		d.noise.Forged++
		return
	}
	if last := d.newest(); m.Seq <= last {
		d.noise.Replayed++
		return
	}
	d.queue = append(d.queue, m)
}

func (d *Decoder) newest() int {
	if n := len(d.queue); n > 0 {
		return d.queue[n-1].Seq
	}
	return d.last
}

// Next gives the next message; ok is false while there is none. A missing
// number is told once as a *GapError; the call after it gives the message that
// came after the gap.
func (d *Decoder) Next() (m Message, ok bool, err error) {
	if len(d.queue) == 0 {
		return Message{}, false, nil
	}
	m = d.queue[0]
	if want := d.last + 1; m.Seq != want {
		d.last = m.Seq - 1
		return Message{}, false, &GapError{Want: want, Got: m.Seq}
	}
	d.last, d.queue = m.Seq, d.queue[1:]
	return m, true, nil
}

// Noise tells what was not taken so far.
func (d *Decoder) Noise() Noise { return d.noise }

// Reader is a Decoder over a stream that ends.
type Reader struct {
	r   io.Reader
	d   *Decoder
	buf []byte
	err error
}

// NewReader reads lines signed with key from r.
func NewReader(r io.Reader, key string) *Reader {
	return &Reader{r: r, d: NewDecoder(key), buf: make([]byte, 16<<10)}
}

// Next gives the next message, a *GapError (reading can go on), or the
// stream's own error; io.EOF is the end, even in the middle of a line.
func (r *Reader) Next() (Message, error) {
	for {
		if m, ok, err := r.d.Next(); ok || err != nil {
			return m, err
		}
		if r.err != nil {
			return Message{}, r.err
		}
		var n int
		n, r.err = r.r.Read(r.buf)
		_, _ = r.d.Write(r.buf[:n]) // never fails
	}
}

// Noise tells what was not taken so far.
func (r *Reader) Noise() Noise { return r.d.Noise() }
