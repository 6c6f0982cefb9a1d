package scrub

import "io"

// Unbatched feeds pieces as they are, so that every border of a piece is one
// that rules see.
func Unbatched(s *Scrubber, w io.Writer) func(p []byte, final bool) {
	f := s.filter()
	return func(p []byte, final bool) {
		f.out = f.out[:0]
		f.feed(p, final)
		w.Write(f.out)
	}
}
