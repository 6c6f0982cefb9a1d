package module

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

const depText = `kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/net/snd-dummy.ko.zst: kernel/a.ko
kernel/a.ko: kernel/b.ko
kernel/b.ko: kernel/a.ko

# a comment
not a module: kernel/a.ko
`

const aliasText = `# Aliases extracted from modules themselves.
alias virtio:d00000002v* virtio_blk
alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci
alias of:N*T*Cvirtio,mmio-x virtio_pci
alias pci:v00008086d0000[0-9]Fsv* snd-dummy
alias crypto-crc32c b
alias fs-ext4 a
alias broken
`

// tree writes a module tree.
func tree(t *testing.T, files map[string][]byte) *Tree {
	t.Helper()
	dir := t.TempDir()
	for name, b := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tr, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestResolve(t *testing.T) {
	t.Parallel()
	tr := tree(t, map[string][]byte{
		"modules.dep": []byte(depText), "modules.alias": []byte(aliasText), "modules.builtin": []byte("kernel/fs/ext-x/ext-x.ko\n"),
	})
	for name, want := range map[string]string{
		"virtio_blk":                 "virtio virtio_ring virtio_blk",
		"virtio-blk":                 "virtio virtio_ring virtio_blk",
		"snd_dummy":                  "b a snd_dummy", // the circle a-b is cut
		"crypto-crc32c":              "a b",
		"fs-ext4":                    "b a",
		"virtio:d00000002v00001AF4":  "virtio virtio_ring virtio_blk",
		"ext-x":                      "",
		"of:NxTyCvirtio,mmio_x":      "virtio virtio_ring virtio_pci",
		"pci:v00008086d00003Fsv0000": "b a snd_dummy",
	} {
		got, err := tr.resolve(name)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %v, %v, want %s", name, got, err, want)
		}
	}
	var missing *NotFoundError
	if _, err := tr.resolve("nothing"); !errors.As(err, &missing) || missing.Name != "nothing" {
		t.Errorf("%v", err)
	}
	if got := tr.drivers("pci:v00001AF4d00001001sv00001AF4sd00000002bc01sc00i00"); !slices.Equal(got, []string{"virtio_pci"}) {
		t.Errorf("drivers %v", got)
	}
	if got := tr.drivers("pci:v00008086d00003Fsv0000"); got != nil {
		t.Errorf("loads %v, which nobody needs", got)
	}
}

func TestNoTree(t *testing.T) {
	t.Parallel()
	tr, err := Open(filepath.Join(t.TempDir(), "none"))
	if err != nil || tr.Len() != 0 {
		t.Fatalf("%d modules, %v", tr.Len(), err)
	}
	if got := tr.drivers("virtio:d00000002v00001AF4"); got != nil {
		t.Errorf("drivers %v", got)
	}
}

// object is an ELF64 object with a .modinfo section.
func object(modinfo string) []byte {
	names := "\x00.shstrtab\x00.modinfo\x00"
	le := binary.LittleEndian
	b := make([]byte, ehSize)
	copy(b, "\x7fELF\x02\x01\x01")
	b = append(b, names...)
	b = append(b, modinfo...)
	le.PutUint64(b[ehShOff:], uint64(len(b)))
	le.PutUint16(b[ehShEnt:], shSize)
	le.PutUint16(b[ehShNum:], 3)
	le.PutUint16(b[ehShStrNdx:], 1)
	section := func(name, off, n int) {
		h := make([]byte, shSize)
		le.PutUint32(h, uint32(name))
		le.PutUint64(h[shOffset:], uint64(off))
		le.PutUint64(h[shLength:], uint64(n))
		b = append(b, h...)
	}
	section(0, 0, 0)
	section(1, ehSize, len(names))
	section(11, ehSize+len(names), len(modinfo))
	return b
}

const modinfoText = "license=GPL\x00alias=virtio:d00000002v*\x00\x00depends=virtio-ring,virtio\x00name=virtio_blk\x00"

func TestParseInfo(t *testing.T) {
	t.Parallel()
	info, err := ParseInfo(object(modinfoText))
	if err != nil || !slices.Equal(info.Needs, []string{"virtio_ring", "virtio"}) || !slices.Equal(info.Aliases, []string{"virtio:d00000002v*"}) {
		t.Errorf("%+v, %v", info, err)
	}
	if info, err := ParseInfo(object("depends=\x00")); err != nil || info.Needs != nil {
		t.Errorf("%+v, %v", info, err)
	}
	whole := object(modinfoText)
	for n := range whole {
		if _, err := ParseInfo(whole[:n]); err == nil {
			t.Errorf("cut at %d of %d: no error", n, len(whole))
		}
	}
}

// TestBareTree: depmod never ran, and the modules are packed.
func TestBareTree(t *testing.T) {
	t.Parallel()
	pack := func(end string, b []byte) []byte {
		var out bytes.Buffer
		var w interface {
			Write([]byte) (int, error)
			Close() error
		}
		var err error
		switch end {
		case "gz":
			w = gzip.NewWriter(&out)
		case "xz":
			w, err = xz.NewWriter(&out)
		case "zst":
			w, err = zstd.NewWriter(&out)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	files := func() map[string][]byte {
		return map[string][]byte{
			"kernel/drivers/block/virtio_blk.ko.xz":    pack("xz", object(modinfoText)),
			"kernel/drivers/virtio/virtio-ring.ko.zst": pack("zst", object("depends=virtio\x00")),
			"kernel/drivers/virtio/virtio.ko.gz":       pack("gz", object("depends=\x00")),
			"kernel/crypto/crc32c-generic.ko":          object("depends=\x00alias=crypto-crc32c\x00"),
			"kernel/fs/ext4/ext4.ko":                   object("depends=crc32c-generic,builtin\x00alias=fs-ext4\x00"),
			"kernel/fs/broken.ko":                      []byte("no object"),
			"kernel/drivers/block/broken_blk.ko.xz":    []byte("no xz"),
		}
	}
	for name, tr := range map[string]*Tree{
		"no index": tree(t, files()),
		"no aliases": tree(t, func() map[string][]byte {
			f := files()
			f["modules.dep"] = []byte("kernel/drivers/virtio/virtio.ko.gz:\n")
			return f
		}()),
	} {
		if got := tr.drivers("virtio:d00000002v00001AF4"); !slices.Equal(got, []string{"virtio_blk"}) {
			t.Errorf("%s: drivers %v", name, got)
		}
		if got, err := tr.resolve("virtio_blk"); err != nil || strings.Join(got, " ") != "virtio virtio_ring virtio_blk" {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if got, err := tr.resolve("fs-ext4"); err != nil || strings.Join(got, " ") != "builtin crc32c_generic ext4" {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if _, err := tr.resolve("broken"); err == nil || !strings.Contains(err.Error(), "kernel/fs/broken.ko") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUnpackRefuses(t *testing.T) {
	t.Parallel()
	for _, end := range []string{".ko.gz", ".ko.xz", ".ko.zst"} {
		if _, err := unpack("x"+end, []byte("garbage that is none of these")); err == nil || !strings.Contains(err.Error(), "x"+end) {
			t.Errorf("%s: %v", end, err)
		}
	}
}

func FuzzParseInfo(f *testing.F) {
	f.Add(object(modinfoText))
	f.Add(object(""))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = ParseInfo(b)
	})
}

// FuzzIndex: any index can be read, and an order ends with what was asked for,
// each module once.
func FuzzIndex(f *testing.F) {
	f.Add([]byte(depText), []byte(aliasText), "virtio:d00000002v00001AF4")
	f.Add([]byte("a.ko: a.ko"), []byte("alias [ a\nalias * a"), "[")
	f.Fuzz(func(t *testing.T, dep, alias []byte, ask string) {
		x := Index{Path: map[string]string{}, Needs: map[string][]string{}, Builtin: map[string]bool{}}
		x.addDep(dep)
		x.addAlias(alias)
		x.addBuiltin(dep)
		x.Match(ask)
		for name := range x.Path {
			order := x.order(name)
			if order[len(order)-1] != name {
				t.Fatalf("%q comes not last in %q", name, order)
			}
			slices.Sort(order)
			if len(slices.Compact(slices.Clone(order))) != len(order) {
				t.Fatalf("twice: %q", order)
			}
		}
	})
}
