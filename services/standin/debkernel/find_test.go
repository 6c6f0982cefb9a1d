package debkernel_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/pullab/pullab/services/standin/debkernel"
)

// bzImage is the head of an x86 kernel image of a release.
func bzImage(release string) []byte {
	b := make([]byte, 0x1000)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x20e:], 0x300)
	copy(b[0x500:], release+" (builder@host) #1 SMP\x00")
	return b
}

// module is an ELF file with a .modinfo section and nothing else.
func module(depends string) []byte {
	const names = "\x00.modinfo\x00.shstrtab\x00"
	info := "license=GPL\x00depends=" + depends + "\x00"
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01")
	b.Write(make([]byte, 9))
	le := func(vs ...any) {
		for _, v := range vs {
			binary.Write(&b, binary.LittleEndian, v)
		}
	}
	data := 64
	sections := data + len(info) + len(names)
	le(uint16(1), uint16(62), uint32(1), uint64(0), uint64(0), uint64(sections), uint32(0), uint16(64), uint16(0), uint16(0), uint16(64), uint16(3), uint16(2))
	b.WriteString(info + names)
	b.Write(make([]byte, 64))
	section := func(name, typ uint32, off, size int) {
		le(name, typ, uint64(0), uint64(0), uint64(off), uint64(size), uint32(0), uint32(0), uint64(1), uint64(0))
	}
	section(1, 1, data, len(info))
	section(10, 3, data+len(info), len(names))
	return b.Bytes()
}

func xzip(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := xz.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func zstdzip(t *testing.T, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

// fakeApt has packages in memory.
type fakeApt struct {
	fresh    bool
	resolves map[string][]string
	packages map[string]map[string][]byte
	opened   int
}

func (f *fakeApt) Resolve(_ context.Context, meta string) ([]string, error) {
	if l := f.resolves[meta]; f.fresh && l != nil {
		return l, nil
	}
	return nil, errors.New("no such package")
}

func (f *fakeApt) Refresh(context.Context) error { f.fresh = true; return nil }

func (f *fakeApt) Open(_ context.Context, pkg, _ string) (io.ReadCloser, error) {
	f.opened++
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(f.packages[pkg])) {
		body := f.packages[pkg][name]
		w.WriteHeader(&tar.Header{Name: "./" + name, Mode: 0o644, Size: int64(len(body)), Typeflag: tar.TypeReg})
		w.Write(body)
	}
	w.Close()
	return io.NopCloser(&b), nil
}

// archive is the files of a modules archive.
func archive(t *testing.T, name string) map[string]string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	gz, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	tr := tar.NewReader(gz)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = string(b)
	}
}

const tree = "lib/modules/6.1.0-1-cloud-amd64/"

// A package becomes an image and an archive in KernelCI's shape, once.
func TestPackage(t *testing.T) {
	t.Parallel()
	apt := &fakeApt{
		resolves: map[string][]string{"linux-image-virtual": {"linux-image-6.1.0-1-cloud-amd64", "linux-modules-6.1.0-1-cloud-amd64"}},
		packages: map[string]map[string][]byte{
			"linux-image-6.1.0-1-cloud-amd64": {"boot/vmlinuz-6.1.0-1-cloud-amd64": bzImage("6.1.0-1-cloud-amd64"), "boot/config": []byte("x")},
			"linux-modules-6.1.0-1-cloud-amd64": {
				"usr/" + tree + "kernel/a.ko.xz":  xzip(t, module("b-c,d")),
				tree + "kernel/b_c.ko.zst":        zstdzip(t, module("d")),
				tree + "kernel/drivers/d.ko":      module(""),
				tree + "kernel/e.ko":              []byte("not ELF"),
				tree + "modules.dep":              []byte("stale"),
				tree + "modules.builtin":          []byte("kernel/f.ko\n"),
				"lib/modules/another/kernel/g.ko": module(""),
			},
		},
	}
	var lines []string
	o := debkernel.Options{Dir: filepath.Join(t.TempDir(), "k"), Arch: "x86_64", Apt: apt, Progress: func(l string) { lines = append(lines, l) }}
	k, err := debkernel.Find(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if k.Release != "6.1.0-1-cloud-amd64" || !strings.Contains(k.From, "linux-image-6.1.0-1") {
		t.Errorf("%+v", k)
	}
	got := archive(t, k.Modules)
	want := "kernel/a.ko: kernel/b_c.ko kernel/drivers/d.ko\nkernel/b_c.ko: kernel/drivers/d.ko\nkernel/drivers/d.ko:\nkernel/e.ko:\n"
	if got[tree+"modules.dep"] != want {
		t.Errorf("modules.dep:\n%s\nwant\n%s", got[tree+"modules.dep"], want)
	}
	if got[tree+"kernel/a.ko"] != string(module("b-c,d")) || got[tree+"modules.builtin"] == "" || len(got) != 6 {
		t.Errorf("files: %v", slices.Sorted(maps.Keys(got)))
	}
	if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "downloading linux-image") }) {
		t.Errorf("progress: %q", lines)
	}
	again, err := debkernel.Find(t.Context(), o)
	if err != nil || again != k || apt.opened != 2 {
		t.Errorf("second time: %+v, %v, %d downloads", again, err, apt.opened)
	}
	if left, _ := filepath.Glob(filepath.Join(o.Dir, "*")); len(left) != 3 {
		t.Errorf("left behind: %v", left)
	}
}

func TestBoot(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	write := func(name string, b []byte) {
		t.Helper()
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := debkernel.Options{Dir: t.TempDir(), Root: root, Apt: &fakeApt{}}
	_, err := debkernel.Find(t.Context(), o)
	if err == nil {
		t.Fatal("a kernel out of nothing")
	}
	for _, want := range []string{"linux-image-virtual", "/boot", "--kernel FILE|URL", "apt-get update"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %q: %v", want, err)
		}
	}
	write("boot/vmlinuz-5.10.0-x", bzImage("5.10.0-x"))
	write("lib/modules/5.10.0-x/kernel/a.ko", module(""))
	k, err := debkernel.Find(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if k.Release != "5.10.0-x" || archive(t, k.Modules)["lib/modules/5.10.0-x/modules.dep"] != "kernel/a.ko:\n" {
		t.Errorf("%+v", k)
	}
	o.Arch = "riscv64"
	if _, err := debkernel.Find(t.Context(), o); err == nil {
		t.Error("a kernel of another architecture")
	}
}

type handler func(*http.Request) *http.Response

func (h handler) RoundTrip(r *http.Request) (*http.Response, error) { return h(r), nil }

func TestGiven(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "my-kernel")
	if err := os.WriteFile(file, bzImage("6.9.0-mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := debkernel.Find(t.Context(), debkernel.Options{Source: file, Dir: dir})
	if err != nil || k.Release != "6.9.0-mine" || k.Image != file || k.Modules != "" {
		t.Errorf("%+v, %v", k, err)
	}
	asked := 0
	web := debkernel.Options{Source: "https://h.example/bzImage", Dir: dir, Transport: handler(func(*http.Request) *http.Response {
		asked++
		return &http.Response{StatusCode: 200, Body: io.NopCloser(bytes.NewReader(bzImage("6.9.1")))}
	})}
	for range 2 {
		if k, err := debkernel.Find(t.Context(), web); err != nil || k.Release != "6.9.1" {
			t.Errorf("%+v, %v", k, err)
		}
	}
	if asked != 1 {
		t.Errorf("downloaded %d times", asked)
	}
	web.Source = "https://h.example/none"
	web.Transport = handler(func(*http.Request) *http.Response {
		return &http.Response{StatusCode: 404, Status: "404 Not Found", Body: http.NoBody}
	})
	if _, err := debkernel.Find(t.Context(), web); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a 404: %v", err)
	}
	if _, err := debkernel.Find(t.Context(), debkernel.Options{Source: filepath.Join(dir, "none"), Dir: dir}); err == nil {
		t.Error("a file that is not there")
	}
}
