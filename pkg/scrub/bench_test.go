package scrub_test

import (
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/pullab/pullab/pkg/scrub"
)

// endless repeats a text up to n bytes.
type endless struct {
	text string
	n    int
	off  int
}

func (e *endless) Read(p []byte) (int, error) {
	if e.n == 0 {
		return 0, io.EOF
	}
	m := copy(p[:min(len(p), e.n)], e.text[e.off:])
	e.off, e.n = (e.off+m)%len(e.text), e.n-m
	return m, nil
}

// adverse texts make a rule begin, or nearly match, as often as it can.
func adverse() map[string]string {
	long := func(s string) string { return strings.Repeat(s, 1+(1<<20)/len(s)) }
	return map[string]string{
		"a": long("a"), "dashes": long("-"), "equals": long("="), "colons": long(":"), "quotes": long(`"`), "NUL": long("\x00"), "0xff": long("\xff"),
		"eyJ-": long("eyJ-"), "eyJ.": long("eyJhbGciOiJI.eyJ."), "BEGIN": long("-----BEGIN PRIVATE KEY-----"), "BEGIN alone": long("-----BEGIN PRIVATE KEY-----" + strings.Repeat(" x", 40_000)),
		"BEGIN CERTIFICATE": long("-----BEGIN CERTIFICATE-----"), "BEGIN headers": long("-----BEGIN PRIVATE KEY-----\nA: b\n"),
		"urls": long("a://b:c/"), "urls at": long("a://b:"), "urls slash": long("a://b:x/y/z/w"), "password=": long("password="), "password=\"": long(`password="`),
		"password='\"": long("password='x\" "), "token=,a": "token=" + long(",a"), "token=a,": long("token=a,"), "stars": long("password=" + strings.Repeat("*", 30_000) + " "),
		"cookie": long("cookie: aaaaaaaaa"), "authorization": long("authorization:"), "AKIA": long("AKIA-"), "own": long(own[:len(own)-1]), "marker": long("[REDACTED:"),
		"token marker": long("token=[REDACTED:jwt]"), "flags": long("--password "), "escaped": long(`token=\"a\'`), "bearer": long("bearer bearer "), "spaces": "password" + long(" "),
		"glpat": long("glpat-a "), "xox": long("xoxb-"), "ssh": long("ssh-rsa AAAA "),
	}
}

// TestLinear: a rule that read a batch again for each of its anchors would take
// minutes for 4 MiB.
func TestLinear(t *testing.T) {
	s := scrub.New(own)
	for name, text := range adverse() {
		began := time.Now()
		io.Copy(io.Discard, s.NewReader(&endless{text: text, n: 4 << 20}))
		took := time.Since(began)
		if took > 4*time.Second {
			t.Errorf("%s: %v for 4 MiB", name, took)
		}
		t.Logf("%-18s %8.1f MB/s", name, float64(4<<20)/1e6/took.Seconds())
	}
}

func BenchmarkScrub(b *testing.B) {
	var clean strings.Builder
	for _, text := range logs(b) {
		clean.Write(text)
	}
	secrets, _ := planted(b, 10_000)
	const size = 100 << 20
	for _, c := range []struct{ name, text string }{{"clean", clean.String()}, {"planted", secrets}} {
		b.Run(c.name, func(b *testing.B) {
			s := scrub.New(own)
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := io.Copy(io.Discard, s.NewReader(&endless{text: c.text, n: size})); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	for name, text := range adverse() {
		b.Run("adverse/"+name, func(b *testing.B) {
			s := scrub.New(own)
			b.SetBytes(4 << 20)
			for b.Loop() {
				if _, err := io.Copy(io.Discard, s.NewReader(&endless{text: text, n: 4 << 20})); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestMemory: 100 MB pass through less than one of memory, without newlines
// too.
func TestMemory(t *testing.T) {
	secrets, _ := planted(t, 1000)
	for name, text := range map[string]string{"planted": secrets, "a line": "password=aaaaaaaaaaaaaaaa"} {
		r := scrub.New(own).NewReader(&endless{text: text, n: 100 << 20})
		p := make([]byte, 1<<20)
		var before, m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		most := uint64(0)
		for n := 0; ; n++ {
			_, err := r.Read(p)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if n%100 == 0 {
				runtime.GC()
				runtime.ReadMemStats(&m)
				if m.HeapAlloc > before.HeapAlloc {
					most = max(most, m.HeapAlloc-before.HeapAlloc)
				}
			}
		}
		if most > 4<<20 {
			t.Errorf("%s: %d KiB of memory", name, most>>10)
		}
	}
}
