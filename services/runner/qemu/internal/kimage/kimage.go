// Package kimage tells what a kernel file is and how the kernel in it calls
// itself (uname -r), without running it. It reads untrusted bytes.
//
// Formats: x86 bzImage (Linux Documentation/arch/x86/boot.rst), arm64 Image
// (Documentation/arch/arm64/booting.rst), plain or gzip, arm zImage, and ELF
// vmlinux.
package kimage

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"regexp"
)

// Format of a kernel file.
type Format string

// Formats.
const (
	BzImage Format = "bzImage"
	Image   Format = "Image"
	ImageGz Format = "Image.gz"
	ZImage  Format = "zImage"
	ELF     Format = "vmlinux"
)

// Info is what a kernel file says about itself.
type Info struct {
	Format Format
	// Arch is KernelCI's name: x86_64, i386, arm64, arm; empty when the file does
	// not say.
	Arch string
	// Release is uname -r; empty when the file does not say.
	Release string
}

// ErrNotKernel is given for a file of no known format.
var ErrNotKernel = errors.New("not a Linux kernel image (bzImage, Image, Image.gz, zImage or vmlinux)")

// maxScan is how much of a kernel is searched for its version, in bytes after
// decompression. The largest distribution kernels are near 100 MB.
const maxScan = 512 << 20

// Identify reads the kernel file r of size bytes.
func Identify(r io.ReaderAt, size int64) (Info, error) {
	head := make([]byte, min(size, 4096))
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, size), head); err != nil {
		return Info{}, fmt.Errorf("reading the kernel: %w", err)
	}
	all := io.NewSectionReader(r, 0, size)
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return identifyGzip(all)
	case isBzImage(head):
		return identifyBzImage(head, r, size), nil
	case isArm64(head):
		release, err := scan(all)
		return Info{Format: Image, Arch: "arm64", Release: release}, err
	case len(head) >= 0x28 && binary.LittleEndian.Uint32(head[0x24:]) == 0x016f2818:
		return Info{Format: ZImage, Arch: "arm"}, nil
	case bytes.HasPrefix(head, []byte("\x7fELF")) && len(head) >= 20:
		release, err := scan(all)
		return Info{Format: ELF, Arch: elfArch(head), Release: release}, err
	}
	return Info{}, ErrNotKernel
}

// isArm64: magic "ARM\x64" at offset 56 of the header.
func isArm64(head []byte) bool {
	return len(head) >= 64 && bytes.Equal(head[56:60], []byte("ARM\x64"))
}

func isBzImage(head []byte) bool {
	return len(head) >= 0x240 && head[0x1fe] == 0x55 && head[0x1ff] == 0xaa && bytes.Equal(head[0x202:0x206], []byte("HdrS"))
}

// identifyBzImage follows kernel_version, the offset of a string less 0x200.
func identifyBzImage(head []byte, r io.ReaderAt, size int64) Info {
	info := Info{Format: BzImage, Arch: "i386"}
	protocol := binary.LittleEndian.Uint16(head[0x206:])
	// xloadflags bit 0, XLF_KERNEL_64, since protocol 2.12.
	if protocol >= 0x020c && binary.LittleEndian.Uint16(head[0x236:])&1 != 0 {
		info.Arch = "x86_64"
	}
	at := int64(binary.LittleEndian.Uint16(head[0x20e:]))
	if protocol < 0x0200 || at == 0 || at+0x200 >= size {
		return info
	}
	text := make([]byte, min(256, size-at-0x200))
	if _, err := r.ReadAt(text, at+0x200); err != nil && !errors.Is(err, io.EOF) {
		return info
	}
	text, _, _ = bytes.Cut(text, []byte{0})
	if m := releaseForm.Find(text); m != nil {
		info.Release = string(m)
	}
	return info
}

func identifyGzip(r io.Reader) (Info, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return Info{}, fmt.Errorf("%w: %w", ErrNotKernel, err)
	}
	head := make([]byte, 64)
	if _, err := io.ReadFull(z, head); err != nil {
		return Info{}, fmt.Errorf("decompressing the kernel: %w", err)
	}
	if !isArm64(head) {
		return Info{}, ErrNotKernel
	}
	release, err := scan(z)
	return Info{Format: ImageGz, Arch: "arm64", Release: release}, err
}

// elfArch reads e_machine, which lies at 18 in both classes.
func elfArch(head []byte) string {
	switch binary.LittleEndian.Uint16(head[18:]) {
	case 62:
		return "x86_64"
	case 3:
		return "i386"
	case 183:
		return "arm64"
	case 40:
		return "arm"
	}
	return ""
}

var (
	// releaseForm is what UTS_RELEASE may look like: at most 64 characters.
	releaseForm = regexp.MustCompile(`^[0-9]{1,5}\.[0-9]{1,5}[A-Za-z0-9._+~-]{0,58}`)
	// banner is linux_banner (init/version.c).
	banner = regexp.MustCompile(`Linux version ([0-9]{1,5}\.[0-9]{1,5}[A-Za-z0-9._+~-]{0,58}) \(`)
)

// scan finds the banner. Blocks overlap, so that one that lies across two is
// found too.
func scan(r io.Reader) (string, error) {
	const overlap = 128
	buf := make([]byte, 1<<20)
	kept := 0
	for read := 0; read < maxScan; {
		n, err := fill(r, buf[kept:])
		read += n
		if m := banner.FindSubmatch(buf[:kept+n]); m != nil {
			return string(m[1]), nil
		}
		if errors.Is(err, io.EOF) {
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("decompressing the kernel: %w", err)
		}
		kept = copy(buf, buf[kept+n-overlap:kept+n])
	}
	return "", nil
}

// fill reads until b is full. Unlike io.ReadFull it leaves io.EOF apart from
// the io.ErrUnexpectedEOF of a truncated stream.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}
