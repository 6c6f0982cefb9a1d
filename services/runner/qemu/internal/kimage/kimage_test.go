package kimage

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

func bzImage(version string, protocol, xloadflags, at uint16) []byte {
	b := make([]byte, 0x2000)
	b[0x1fe], b[0x1ff] = 0x55, 0xaa
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], protocol)
	binary.LittleEndian.PutUint16(b[0x20e:], at)
	binary.LittleEndian.PutUint16(b[0x236:], xloadflags)
	copy(b[int(at)+0x200:], version)
	return b
}

func arm64Image(at int, text string) []byte {
	b := make([]byte, at+len(text)+5000)
	copy(b[56:], "ARM\x64")
	copy(b[at:], text)
	return b
}

func zipped(b []byte) []byte {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(b)
	w.Close()
	return z.Bytes()
}

const armBanner = "Linux version 6.12.3-00012-gdeadbeef (kernelci@host) (gcc) #1 SMP\n"

func TestIdentify(t *testing.T) {
	t.Parallel()
	elf := append([]byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x3e\x00"), arm64Image(4000, armBanner)[64:]...)
	zimage := make([]byte, 4096)
	binary.LittleEndian.PutUint32(zimage[0x24:], 0x016f2818)
	tests := []struct {
		name string
		file []byte
		want Info
		err  bool
	}{
		{"bzImage", bzImage("6.1.0-56-cloud-amd64 (debian) #1 SMP", 0x020f, 1, 0x3c0), Info{BzImage, "x86_64", "6.1.0-56-cloud-amd64"}, false},
		{"bzImage of 32 bit", bzImage("5.10.1+ (x)", 0x020f, 0, 0x3c0), Info{BzImage, "i386", "5.10.1+"}, false},
		{"bzImage without a version", bzImage("", 0x020f, 1, 0), Info{BzImage, "x86_64", ""}, false},
		{"bzImage with a wrong offset", bzImage("", 0x020f, 1, 0x1c00), Info{BzImage, "x86_64", ""}, false},
		{"Image", arm64Image(70_000, armBanner), Info{Image, "arm64", "6.12.3-00012-gdeadbeef"}, false},
		{"Image, banner across blocks", arm64Image(1<<20-20, armBanner), Info{Image, "arm64", "6.12.3-00012-gdeadbeef"}, false},
		{"Image without a banner", arm64Image(0x100, "Linux version %s"), Info{Image, "arm64", ""}, false},
		{"Image.gz", zipped(arm64Image(70_000, armBanner)), Info{ImageGz, "arm64", "6.12.3-00012-gdeadbeef"}, false},
		{"zImage", zimage, Info{ZImage, "arm", ""}, false},
		{"vmlinux", elf, Info{ELF, "x86_64", "6.12.3-00012-gdeadbeef"}, false},
		{"page of HTML", []byte(strings.Repeat("<html>not found</html>", 100)), Info{}, true},
		{"empty", nil, Info{}, true},
		{"gzip of something else", zipped([]byte(strings.Repeat("tar", 100))), Info{}, true},
	}
	for _, tt := range tests {
		got, err := Identify(bytes.NewReader(tt.file), int64(len(tt.file)))
		if got != tt.want || (err != nil) != tt.err || err != nil && !errors.Is(err, ErrNotKernel) {
			t.Errorf("%s: %+v, %v; want %+v", tt.name, got, err, tt.want)
		}
	}
}

func TestTruncatedGzip(t *testing.T) {
	t.Parallel()
	z := zipped(bytes.Join([][]byte{arm64Image(64, ""), []byte(strings.Repeat("abcdefghij", 10_000))}, nil))
	if _, err := Identify(bytes.NewReader(z[:len(z)-20]), int64(len(z)-20)); err == nil {
		t.Error("a truncated kernel was accepted")
	}
}

func FuzzIdentify(f *testing.F) {
	f.Add(bzImage("6.1.0 (x)", 0x020f, 1, 0x3c0))
	f.Add(arm64Image(200, armBanner))
	f.Add(zipped(arm64Image(200, armBanner)))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := Identify(bytes.NewReader(b), int64(len(b)))
		if err == nil && info.Format == "" || len(info.Release) > 90 {
			t.Errorf("%+v, %v", info, err)
		}
	})
}
