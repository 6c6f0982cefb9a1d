// Package console finds in a machine's console what says how its kernel
// failed. It reads untrusted text and knows no machine.
package console

import (
	"bytes"
	"io"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"
)

// maxRead is how much of the console's end is looked at, in bytes.
const maxRead = 1 << 20

// MaxExcerpt is the longest excerpt in code points (KCIDB v5.3,
// log_excerpt).
const MaxExcerpt = 16384

// Empty stands for the excerpt of a console on which nothing was printed.
const Empty = "(the console is empty: the kernel printed nothing)"

// signs in the order of how much they say about the end of a kernel. The full
// classifier of kernel messages is another package's.
var signs = []*regexp.Regexp{
	regexp.MustCompile(`Kernel panic - not syncing`),
	regexp.MustCompile(`Unable to mount root fs`),
	regexp.MustCompile(`\bOops\b.*[:#]|Internal error: Oops`),
	regexp.MustCompile(`\bBUG: |kernel BUG at `),
	regexp.MustCompile(`Unable to handle kernel `),
	regexp.MustCompile(`soft lockup|hard LOCKUP|rcu.*detected stalls|blocked for more than \d+ seconds`),
}

// fatal is how many of signs end a kernel for sure.
const fatal = 2

// Finding is what a console says.
type Finding struct {
	// Line is the most telling one, without its time stamp; empty when there is
	// none.
	Line string
	// Panic is true when the kernel said that it gave up.
	Panic bool
	// Excerpt is the console around Line, else its end: never empty, at most
	// MaxExcerpt code points, no NUL.
	Excerpt string
}

// Read looks at the end of the console in file. A file that is not there is an
// empty console.
func Read(file string) Finding {
	f, err := os.Open(file)
	if err != nil {
		return Find(nil)
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxRead {
		if _, err := f.Seek(-maxRead, io.SeekEnd); err != nil {
			return Find(nil)
		}
	}
	text, err := io.ReadAll(io.LimitReader(f, maxRead))
	if err != nil && len(text) == 0 {
		return Find(nil)
	}
	return Find(text)
}

// Find looks at a console's text.
func Find(raw []byte) Finding {
	text := clean(raw)
	if strings.TrimSpace(text) == "" {
		return Finding{Excerpt: Empty}
	}
	for i, s := range signs {
		at := s.FindStringIndex(text)
		if at == nil {
			continue
		}
		return Finding{Line: lineAt(text, at[0]), Panic: i < fatal, Excerpt: around(text, at[0])}
	}
	return Finding{Excerpt: around(text, len(text))}
}

var (
	stamp = regexp.MustCompile(`^(<\d>)?\[ *\d+\.\d+\](\[ *[CT]\d+\])? ?`)
	// escapes of terminals: colours, cursor movements of firmware.
	escapes = regexp.MustCompile(`\x1b(\[[0-9;?]*[A-Za-z]|[()][A-Za-z0-9]|[=>78cM])`)
)

func lineAt(text string, at int) string {
	start := strings.LastIndexByte(text[:at], '\n') + 1
	line, _, _ := strings.Cut(text[start:], "\n")
	line = stamp.ReplaceAllString(line, "")
	return cutRunes(line, 300)
}

// around gives an excerpt of which three quarters lie before at, from a border
// of lines where there is one.
func around(text string, at int) string {
	const before = MaxExcerpt * 3 / 4
	start := backRunes(text, at, before)
	if nl := strings.IndexByte(text[start:at], '\n'); start > 0 && nl >= 0 {
		start += nl + 1
	}
	excerpt := cutRunes(text[start:], MaxExcerpt)
	if excerpt = strings.Trim(excerpt, "\n"); strings.TrimSpace(excerpt) == "" {
		return Empty
	}
	return excerpt
}

// backRunes is the index n code points before at.
func backRunes(text string, at, n int) int {
	for ; n > 0 && at > 0; n-- {
		_, size := utf8.DecodeLastRuneInString(text[:at])
		at -= size
	}
	return at
}

// cutRunes keeps the first n code points.
func cutRunes(s string, n int) string {
	for i := range s {
		if n == 0 {
			return s[:i]
		}
		n--
	}
	return s
}

// clean makes it text: no terminal escapes, carriage returns or other control
// characters, valid UTF-8.
func clean(raw []byte) string {
	text := escapes.ReplaceAllString(string(bytes.ToValidUTF8(raw, []byte("?"))), "")
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && (r < ' ' || r == 0x7f) {
			return -1
		}
		return r
	}, text)
}
