package channel

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

const key = "0123456789abcdef"

// lines is a stream of n rows, one line each.
func lines(t testing.TB, n int) [][]byte {
	t.Helper()
	var out [][]byte
	var buf bytes.Buffer
	w := NewWriter(&buf, key)
	for i := range n {
		if err := w.Send(Message{Row: &Row{TestID: "t", Path: "boot", Status: "PASS", StartS: float64(i)}}); err != nil {
			t.Fatal(err)
		}
		out = append(out, bytes.Clone(buf.Bytes()))
		buf.Reset()
	}
	return out
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	var buf bytes.Buffer
	w := NewWriter(&buf, key)
	sent := []Message{
		{Hello: &Hello{Release: "6.1.0", Match: true, UptimeS: 1.5, Cmdline: `a="b c" <&>`}},
		{Phase: &Phase{Name: "test", Detail: "ltp"}},
		{Row: &Row{TestID: "x", Path: "ltp", Status: "FAIL", Excerpt: "line\r\n\x1e\x00\x1b[31mred", Number: &Number{Value: 1}}},
		{Refuse: &Refuse{Reason: "no"}},
		{Done: &Done{Rows: 1}},
	}
	for _, m := range sent {
		if err := w.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	r := NewReader(iotest.OneByteReader(&buf), key)
	for i, want := range sent {
		got, err := r.Next()
		if err != nil || got.Seq != i+1 {
			t.Fatalf("message %d: seq %d, %v", i+1, got.Seq, err)
		}
		if want.Row != nil && got.Row.Excerpt != want.Row.Excerpt {
			t.Errorf("excerpt came back as %q", got.Row.Excerpt)
		}
		if want.Hello != nil && *got.Hello != *want.Hello {
			t.Errorf("hello came back as %+v", got.Hello)
		}
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	if r.Noise() != (Noise{}) {
		t.Errorf("noise on a clean stream: %+v", r.Noise())
	}
}

func TestNoiseIsSkipped(t *testing.T) {
	t.Parallel()
	l := lines(t, 3)
	forged := lines(t, 1)[0]
	forged = bytes.Replace(forged, []byte("PASS"), []byte("FAIL"), 1)
	var buf bytes.Buffer
	other := NewWriter(&buf, "wrong key")
	if err := other.Send(Message{Done: &Done{}}); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		stream []byte
		want   int
		forged int
		replay int
	}{
		"firmware first":           {join([]byte("SeaBIOS\r\n\x00\x00\xff BdsDxe"), l[0], l[1]), 2, 0, 0},
		"half first line":          {join(l[0][20:], l[0], l[1]), 2, 0, 0},
		"line cut by the next":     {join(l[0][:40], l[0], l[1]), 2, 0, 0},
		"NULs between":             {join(l[0], []byte{0, 0, 0}, l[1]), 2, 0, 0},
		"CR LF":                    {join(bytes.Replace(l[0], []byte("\n"), []byte("\r\n"), 1), l[1]), 2, 0, 0},
		"NUL before the LF":        {join(bytes.Replace(l[0], []byte("\n"), []byte("\x00\r\n"), 1), l[1]), 2, 0, 0},
		"noise without line end":   {join(l[0], []byte("[ 1.0] usb"), l[1]), 2, 0, 0},
		"a megabyte without an LF": {join(l[0], bytes.Repeat([]byte("x"), 1<<20), l[1]), 2, 0, 0},
		"an endless line":          {join(l[0], []byte{recordStart}, bytes.Repeat([]byte("x"), 1<<20), []byte("\n"), l[1]), 2, 0, 0},
		"a forged verdict":         {join(forged, l[0], l[1]), 2, 1, 0},
		"another run's key":        {join(l[0], buf.Bytes(), l[1]), 2, 1, 0},
		"a replay":                 {join(l[0], l[1], l[0], l[1], l[2]), 3, 0, 2},
		"no last line end":         {join(l[0], l[1][:len(l[1])-1]), 1, 0, 0},
		"an opener alone":          {join([]byte{recordStart, '\n'}, l[0]), 1, 1, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := NewReader(iotest.HalfReader(bytes.NewReader(tt.stream)), key)
			for i := range tt.want {
				m, err := r.Next()
				if err != nil || m.Seq != i+1 {
					t.Fatalf("message %d: seq %d, %v", i+1, m.Seq, err)
				}
			}
			if m, err := r.Next(); !errors.Is(err, io.EOF) {
				t.Fatalf("after the last message: %+v, %v", m, err)
			}
			if n := r.Noise(); n.Forged != tt.forged || n.Replayed != tt.replay {
				t.Errorf("noise %+v, want %d forged and %d replayed", n, tt.forged, tt.replay)
			}
		})
	}
}

func TestGapIsToldOnce(t *testing.T) {
	t.Parallel()
	l := lines(t, 5)
	r := NewReader(bytes.NewReader(join(l[1], l[0], l[4])), key)
	var seqs []int
	var gaps []GapError
	for {
		m, err := r.Next()
		var gap *GapError
		switch {
		case errors.Is(err, io.EOF):
			if len(seqs) != 2 || seqs[0] != 2 || seqs[1] != 5 {
				t.Errorf("messages %v, want 2 and 5: number 1 came too late", seqs)
			}
			if len(gaps) != 2 || gaps[0] != (GapError{1, 2}) || gaps[1] != (GapError{3, 5}) {
				t.Errorf("gaps %v", gaps)
			}
			return
		case errors.As(err, &gap):
			gaps = append(gaps, *gap)
		case err != nil:
			t.Fatal(err)
		default:
			seqs = append(seqs, m.Seq)
		}
	}
}

func TestLongExcerptIsCut(t *testing.T) {
	t.Parallel()
	for _, unit := range []string{"x", "\x01", "ä", "\U0001F600", "\xff", "<"} {
		var buf bytes.Buffer
		long := "begin" + strings.Repeat(unit, MaxLine) + "end"
		if err := NewWriter(&buf, key).Send(Message{Row: &Row{Excerpt: long}}); err != nil {
			t.Fatalf("%q: %v", unit, err)
		}
		if buf.Len() > MaxLine {
			t.Errorf("%q: a line of %d bytes", unit, buf.Len())
		}
		m, err := NewReader(&buf, key).Next()
		if err != nil {
			t.Fatalf("%q: %v", unit, err)
		}
		x := m.Row.Excerpt
		if !strings.HasPrefix(x, "begin") || !strings.HasSuffix(x, "end") || !strings.Contains(x, cutMark) || !utf8.ValidString(x) {
			t.Errorf("%q: cut to %.40q ... %.40q", unit, x, x[max(0, len(x)-40):])
		}
		if len(x) < MaxLine/20 {
			t.Errorf("%q: only %d bytes are left", unit, len(x))
		}
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestSendRefuses(t *testing.T) {
	t.Parallel()
	w := NewWriter(io.Discard, key)
	if err := w.Send(Message{}); err == nil {
		t.Error("an empty message was sent")
	}
	if err := w.Send(Message{Done: &Done{}, Phase: &Phase{}}); err == nil {
		t.Error("two things in one message were sent")
	}
	if err := w.Send(Message{Refuse: &Refuse{Reason: strings.Repeat("x", MaxLine)}}); err == nil {
		t.Error("a line without an excerpt to cut was longer than MaxLine and sent")
	}
	if w.seq != 0 {
		t.Errorf("refused messages took %d numbers", w.seq)
	}
	cause := errors.New("port gone")
	w = NewWriter(failing{cause}, key)
	if err := w.Send(Message{Done: &Done{}}); !errors.Is(err, cause) {
		t.Errorf("cause lost: %v", err)
	}
	if w.seq != 1 {
		t.Error("a lost message took no number: its loss would not be seen")
	}
}

func TestPlan(t *testing.T) {
	t.Parallel()
	p := Plan{RunID: "run_x", Attempt: 1, Key: key, Port: "ttyS1", Releases: []string{"6.1"}, DeadlineS: 60,
		Tests: []Test{{ID: "ltp-smoketest", Type: "ltp", Parameters: map[string]string{"a": "b"}}}}
	b, err := EncodePlan(p)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodePlan(b)
	if err != nil || got.RunID != p.RunID || got.Tests[0].Parameters["a"] != "b" {
		t.Fatalf("%+v, %v", got, err)
	}
	for in, want := range map[string]string{
		``:                      "at byte 0",
		`{"key":"k","port":"p"`: "at byte",
		`{"key":"k","port":"p","deadline_s":"9"}`:         "at byte",
		`{"key":"k","port":"p","deadline_s":9,"nukes":1}`: "nukes",
		`{"key":"k","port":"p","deadline_s":9}{}`:         "after its end",
		`{"port":"p","deadline_s":9}`:                     "no key",
		`{"key":"k","deadline_s":9}`:                      "no port",
		`{"key":"k","port":"p"}`:                          "no deadline",
	} {
		if _, err := DecodePlan([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", in, err, want)
		}
	}
	if _, err := EncodePlan(Plan{}); err == nil {
		t.Error("an empty plan was encoded")
	}
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// FuzzDecoder: whatever is on the port, only well signed messages come out, in
// rising order, and how the bytes were cut into writes makes no difference.
func FuzzDecoder(f *testing.F) {
	l := lines(f, 3)
	f.Add(join(l...), 7)
	f.Add(join(l[0], l[2]), 1)
	f.Add(join([]byte("noise\x1e\n\x00"), l[0], l[0]), 3)
	f.Fuzz(func(t *testing.T, in []byte, cut int) {
		whole, parts := NewDecoder(key), NewDecoder(key)
		whole.Write(in)
		cut = max(1, min(cut, 1000))
		for b := in; len(b) > 0; b = b[min(cut, len(b)):] {
			parts.Write(b[:min(cut, len(b))])
		}
		last := 0
		for {
			m, ok, err := whole.Next()
			m2, ok2, err2 := parts.Next()
			if ok != ok2 || (err == nil) != (err2 == nil) || m.Seq != m2.Seq {
				t.Fatalf("cut at %d: %d %v %v, whole: %d %v %v", cut, m2.Seq, ok2, err2, m.Seq, ok, err)
			}
			if !ok && err == nil {
				return
			}
			if ok && (m.Seq <= last || m.check() != nil) {
				t.Fatalf("message %d after %d: %+v", m.Seq, last, m)
			}
			last = max(last, m.Seq)
		}
	})
}

func FuzzDecodePlan(f *testing.F) {
	f.Add([]byte(`{"key":"k","port":"p","deadline_s":9,"tests":[{"id":"a"}]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := DecodePlan(in)
		if err != nil {
			return
		}
		if _, err := EncodePlan(p); err != nil {
			t.Fatalf("decoded, but not encodable: %v", err)
		}
	})
}
