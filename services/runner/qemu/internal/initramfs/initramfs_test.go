package initramfs

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

type member struct {
	name, body string
	typ        byte
}

func tarOf(t testing.TB, ms ...member) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range ms {
		h := &tar.Header{Name: m.name, Typeflag: m.typ, Mode: 0o644}
		switch m.typ {
		case tar.TypeReg:
			h.Size = int64(len(m.body))
		case tar.TypeSymlink:
			h.Linkname = m.body
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if m.typ == tar.TypeReg {
			io.WriteString(w, m.body)
		}
	}
	w.Close()
	return b.Bytes()
}

var tree = []member{
	{"./", "", tar.TypeDir},
	{"./lib/modules/6.1.0-x/", "", tar.TypeDir},
	{"./lib/modules/6.1.0-x/build", "/usr/src/x", tar.TypeSymlink},
	{"./lib/modules/6.1.0-x/modules.builtin", "kernel/drivers/nvme/host/nvme.ko\nkernel/fs/ext4/ext4.ko\n", tar.TypeReg},
	{"./lib/modules/6.1.0-x/kernel/drivers/block/virtio_blk.ko.xz", "module", tar.TypeReg},
	{"./lib/modules/6.1.0-x/kernel/drivers/virtio/virtio-pci.ko", "module", tar.TypeReg},
	{"./etc/passwd", "root", tar.TypeReg},
	{"./lib/modules/../../../etc/shadow", "x", tar.TypeReg},
}

func compress(t testing.TB, kind string, b []byte) []byte {
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch kind {
	case "gz":
		w = gzip.NewWriter(&out)
	case "xz":
		w, err = xz.NewWriter(&out)
	case "zst":
		w, err = zstd.NewWriter(&out)
	default:
		return b
	}
	if err != nil {
		t.Fatal(err)
	}
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func names(t testing.TB, r io.Reader) (all []string) {
	c := cpio.NewReader(r)
	for {
		h, err := c.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h.Name)
	}
}

func TestConvertModules(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"tar", "gz", "xz", "zst"} {
		file := filepath.Join(t.TempDir(), "modules")
		if err := os.WriteFile(file, compress(t, kind, tarOf(t, tree...)), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		m, err := ConvertModules(t.Context(), &out, file)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		want := Modules{
			Releases: []string{"6.1.0-x"}, Builtin: []string{"nvme", "ext4"},
			Loadable: []string{"virtio_blk", "virtio_pci"}, Bytes: 3 * 4096,
		}
		if !reflect.DeepEqual(m, want) {
			t.Errorf("%s: %+v", kind, m)
		}
		wantNames := []string{
			"lib/modules", "lib/modules/6.1.0-x", "lib/modules/6.1.0-x/modules.builtin",
			"lib/modules/6.1.0-x/kernel", "lib/modules/6.1.0-x/kernel/drivers", "lib/modules/6.1.0-x/kernel/drivers/block",
			"lib/modules/6.1.0-x/kernel/drivers/block/virtio_blk.ko.xz", "lib/modules/6.1.0-x/kernel/drivers/virtio",
			"lib/modules/6.1.0-x/kernel/drivers/virtio/virtio-pci.ko",
		}
		if got := names(t, &out); !reflect.DeepEqual(got, wantNames) {
			t.Errorf("%s: members %q", kind, got)
		}
	}
}

func TestNotModules(t *testing.T) {
	t.Parallel()
	for name, content := range map[string][]byte{
		"no modules": tarOf(t, member{"etc/passwd", "x", tar.TypeReg}),
		"not a tar":  []byte("<html>" + string(make([]byte, 2000))),
		"truncated":  compress(t, "gz", tarOf(t, tree...))[:100],
	} {
		file := filepath.Join(t.TempDir(), "modules")
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if m, err := ConvertModules(t.Context(), io.Discard, file); err == nil {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

// Each archive must begin at a multiple of 4 with at least four zeros before
// it, or the kernel does not find it.
func TestBuild(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put := func(name, body string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	ramdisk, modules := "\x1f\x8bramdisk", "070701modules"
	var out bytes.Buffer
	err := Build(&out, Parts{
		Guest: put("guest", "#!guest"), Plan: []byte(`{"run_id":"r"}`),
		Ramdisks: []string{put("rd", ramdisk)}, Modules: put("m", modules),
	})
	if err != nil {
		t.Fatal(err)
	}
	b := out.Bytes()
	if got := names(t, bytes.NewReader(b)); !reflect.DeepEqual(got, []string{"dev", "dev/console", "dev/null", "lib", "pullab", GuestPath, PlanPath}) {
		t.Errorf("first archive holds %q", got)
	}
	checkDevices(t, b)
	last := 0
	for _, part := range []string{ramdisk, modules} {
		at := bytes.Index(b, []byte(part))
		if at < last || at%4 != 0 || !bytes.Equal(b[at-4:at], make([]byte, 4)) {
			t.Errorf("%q lies at %d after %q", part, at, b[max(0, at-4):at])
		}
		last = at
	}
	if len(b)%align != 0 {
		t.Errorf("length %d", len(b))
	}
}

// checkDevices looks at the raw headers (Linux
// Documentation/driver-api/early-userspace/buffer-format.rst): the reader of
// package cpio leaves the numbers out.
func checkDevices(t *testing.T, b []byte) {
	t.Helper()
	for name, want := range map[string]struct{ mode, major, minor string }{
		"dev/console": {"00002180", "00000005", "00000001"}, // 020600
		"dev/null":    {"000021b6", "00000001", "00000003"}, // 020666
	} {
		at := bytes.Index(b, []byte(name+"\x00")) - 110
		if at < 0 || at%4 != 0 || string(b[at:at+6]) != "070701" {
			t.Errorf("no header of %s", name)
			continue
		}
		field := func(i int) string { return string(b[at+6+8*i:][:8]) }
		if field(1) != want.mode || field(9) != want.major || field(10) != want.minor || field(6) != "00000000" {
			t.Errorf("%s: %s", name, b[at:at+110])
		}
	}
}

func FuzzConvertModules(f *testing.F) {
	for _, kind := range []string{"tar", "gz", "xz", "zst"} {
		f.Add(compress(f, kind, tarOf(f, tree...)))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		file := filepath.Join(dir, "m")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := ConvertModules(t.Context(), io.Discard, file)
		if err == nil && len(m.Releases) == 0 {
			t.Errorf("%+v", m)
		}
	})
}
