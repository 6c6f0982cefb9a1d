package module

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Info is what a module says of itself in its .modinfo section.
type Info struct {
	Needs   []string
	Aliases []string
}

// ParseInfo reads the .modinfo section of a module, an ELF64 little-endian
// object (x86_64, arm64): NUL-separated "key=value" texts.
func ParseInfo(object []byte) (Info, error) {
	text, err := section(object, ".modinfo")
	if err != nil {
		return Info{}, err
	}
	var info Info
	for field := range bytes.SplitSeq(text, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		switch key {
		case "depends":
			for need := range strings.SplitSeq(value, ",") {
				if need != "" {
					info.Needs = append(info.Needs, Name(need))
				}
			}
		case "alias":
			info.Aliases = append(info.Aliases, normal(value))
		}
	}
	return info, nil
}

// Offsets in an ELF64 file header and section header (elf(5)). debug/elf knows
// them too, and weighs a third of this program.
const (
	ehSize     = 64
	ehShOff    = 0x28
	ehShEnt    = 0x3a
	ehShNum    = 0x3c
	ehShStrNdx = 0x3e
	shSize     = 64
	shOffset   = 0x18
	shLength   = 0x20
)

var errELF = errors.New("not an ELF64 object")

// section gives the bytes of the section with the given name.
func section(b []byte, name string) ([]byte, error) {
	if len(b) < ehSize || string(b[:6]) != "\x7fELF\x02\x01" {
		return nil, errELF
	}
	le := binary.LittleEndian
	table, count := le.Uint64(b[ehShOff:]), int(le.Uint16(b[ehShNum:]))
	if le.Uint16(b[ehShEnt:]) != shSize {
		return nil, errELF
	}
	header := func(i int) ([]byte, error) { return cut(b, table+uint64(i)*shSize, shSize) }
	body := func(h []byte) ([]byte, error) {
		return cut(b, le.Uint64(h[shOffset:]), le.Uint64(h[shLength:]))
	}
	h, err := header(int(le.Uint16(b[ehShStrNdx:])))
	if err != nil {
		return nil, err
	}
	names, err := body(h)
	if err != nil {
		return nil, err
	}
	for i := range count {
		if h, err = header(i); err != nil {
			return nil, err
		}
		at := le.Uint32(h)
		if int64(at) < int64(len(names)) && bytes.HasPrefix(names[at:], append([]byte(name), 0)) {
			return body(h)
		}
	}
	return nil, fmt.Errorf("no section %s", name)
}

// cut is b[off:off+n] when that is inside.
func cut(b []byte, off, n uint64) ([]byte, error) {
	if size := uint64(len(b)); off > size || n > size-off {
		return nil, errELF
	}
	return b[off : off+n], nil
}
