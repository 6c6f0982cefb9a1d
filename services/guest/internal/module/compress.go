package module

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxModule bounds what a module may unpack to. The largest in a distribution
// are GPU drivers of some 30 MB with debug information stripped.
const maxModule = 512 << 20

// unpack gives the object in a module file, by the file's ending.
func unpack(file string, b []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch {
	case strings.HasSuffix(file, ".gz"):
		r, err = gzip.NewReader(bytes.NewReader(b))
	case strings.HasSuffix(file, ".xz"):
		r, err = xz.NewReader(bytes.NewReader(b))
	case strings.HasSuffix(file, ".zst"):
		var z *zstd.Decoder
		if z, err = zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1)); err == nil {
			defer z.Close()
			r = z
		}
	default:
		return b, nil
	}
	if err != nil {
		return nil, fmt.Errorf("unpacking %s: %w", file, err)
	}
	object, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err != nil {
		return nil, fmt.Errorf("unpacking %s: %w", file, err)
	}
	if len(object) > maxModule {
		return nil, fmt.Errorf("unpacking %s: it is larger than %d bytes", file, maxModule)
	}
	return object, nil
}
