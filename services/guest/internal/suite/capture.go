package suite

import (
	"fmt"
	"strings"
	"sync"
	"unicode/utf8"
)

// MaxExcerpt is KCIDB's limit on log_excerpt in code points (schema v5.3).
const MaxExcerpt = 16384

// keep is how many bytes of the begin and of the end of a test's output stay.
const keep = 32 << 10

// Capture keeps the begin and the end of what is written to it, whatever its
// length.
type Capture struct {
	mu    sync.Mutex
	head  []byte
	tail  []byte // a ring once it is full
	at    int
	total int64
}

// Write takes output; it never fails.
func (c *Capture) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(p)
	c.total += int64(n)
	take := min(keep-len(c.head), len(p))
	c.head, p = append(c.head, p[:take]...), p[take:]
	p = p[max(0, len(p)-keep):]
	take = min(keep-len(c.tail), len(p))
	c.tail, p = append(c.tail, p[:take]...), p[take:]
	for len(p) > 0 {
		took := copy(c.tail[c.at:], p)
		c.at, p = (c.at+took)%keep, p[took:]
	}
	return n, nil
}

// String is what was kept, with a note of what was not.
func (c *Capture) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	tail := string(c.tail[c.at:]) + string(c.tail[:c.at])
	if lost := c.total - int64(len(c.head)+len(c.tail)); lost > 0 {
		return fmt.Sprintf("%s\n[... %d bytes left out ...]\n%s", c.head, lost, tail)
	}
	return string(c.head) + tail
}

// Excerpt makes text fit for a row: valid UTF-8 without control characters (a
// NUL is refused by KCIDB's database, kernelci-wire.md 5.4), no longer than
// MaxExcerpt, the middle left out.
func Excerpt(text string) string {
	text = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r >= ' ' && r != 0x7f {
			return r
		}
		return -1
	}, strings.ToValidUTF8(text, "\uFFFD"))
	over := utf8.RuneCountInString(text) - MaxExcerpt
	if over <= 0 {
		return text
	}
	const mark = "\n[...]\n"
	room := MaxExcerpt - len(mark)
	runes := []rune(text)
	return string(runes[:room/2]) + mark + string(runes[len(runes)-(room-room/2):])
}
