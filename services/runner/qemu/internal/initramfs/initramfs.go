// Package initramfs makes the initial file system that carries the guest
// program, its plan and the job's modules beside the job's own ramdisk.
//
// The kernel unpacks several archives one after the other
// (Documentation/driver-api/early-userspace/buffer-format.rst). They lie in
// this order, each at a multiple of 512 bytes with zeros between:
//
//  1. ours: the guest program, its plan, an empty /lib, and /dev with the two
//     devices that a program needs before it can mount anything: Go's runtime
//     opens /dev/null, and the kernel gives /dev/console to its first process;
//  2. the job's ramdisk, in whatever compression it came;
//  3. the module tree below /lib/modules.
//
// An uncompressed archive may follow only at a multiple of 4, and one
// compressed with lz4 ends properly only before four zero bytes. /lib is made
// before the ramdisk and never named after it, because the kernel replaces a
// symbolic link of that name (/lib -> usr/lib) by a directory that a later
// archive names, and with it would take away the ramdisk's libraries.
package initramfs

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"

	"github.com/pullab/pullab/services/runner/qemu/internal/archive"
)

// Where the guest program and its plan lie; the kernel command line and the
// guest name the same paths.
const (
	GuestPath = "pullab-guest"
	PlanPath  = "pullab/plan.json"
)

// maxModules bounds what a modules archive may unpack to, in bytes.
const maxModules = 4 << 30

const align = 512

// Modules is what a modules archive holds.
type Modules struct {
	// Releases are the directories below lib/modules, sorted.
	Releases []string `json:"releases"`
	// Builtin and Loadable are base names of modules without .ko, with _ for -,
	// as far as a machine's devices depend on them (see interesting).
	Builtin  []string `json:"builtin"`
	Loadable []string `json:"loadable"`
	// Bytes that the tree takes up when it is unpacked.
	Bytes int64 `json:"bytes"`
}

// interesting are drivers of which the machine has devices or may choose them.
var interesting = []string{"virtio_blk", "virtio_pci", "nvme", "ahci", "ext4", "8250_pci", "virtio_console"}

// ErrNoModules is given for an archive without lib/modules/<release>.
var ErrNoModules = errors.New("the modules archive has no lib/modules/<release> directory")

// ConvertModules writes the module tree of the tar archive at path to w as a
// cpio archive.
func ConvertModules(ctx context.Context, w io.Writer, path string) (Modules, error) {
	// Package cpio writes headers and padding in small pieces.
	buffered := bufio.NewWriterSize(w, 1<<20)
	c := &converter{out: cpio.NewWriter(buffered), made: map[string]bool{"lib": true}}
	if err := archive.Walk(ctx, path, maxModules, c.member); err != nil {
		return Modules{}, err
	}
	if err := errors.Join(c.out.Close(), buffered.Flush()); err != nil {
		return Modules{}, err
	}
	if len(c.found.Releases) == 0 {
		return Modules{}, ErrNoModules
	}
	slices.Sort(c.found.Releases)
	return c.found, nil
}

type converter struct {
	out   *cpio.Writer
	made  map[string]bool
	found Modules
}

func (c *converter) member(h *tar.Header, r io.Reader) error {
	name, release, ok := modulePath(h.Name)
	if !ok {
		return nil
	}
	if !slices.Contains(c.found.Releases, release) {
		c.found.Releases = append(c.found.Releases, release)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return c.parents(name)
	case tar.TypeReg:
		return c.file(name, h.Size, r)
	case tar.TypeSymlink:
		// build and source lead to the build host.
		if base := path.Base(name); base == "build" || base == "source" {
			return nil
		}
		return c.link(name, h.Linkname)
	}
	return nil
}

// modulePath finds lib/modules/<release>/... in a member's name and leaves out
// what is before it (./, usr/).
func modulePath(name string) (clean, release string, ok bool) {
	clean = path.Clean("/" + name)
	i := strings.Index(clean, "/lib/modules/")
	if i < 0 {
		return "", "", false
	}
	clean = clean[i+1:]
	release, _, _ = strings.Cut(strings.TrimPrefix(clean, "lib/modules/"), "/")
	return clean, release, release != "" && len(release) <= 64
}

func (c *converter) parents(dir string) error {
	if dir == "." || c.made[dir] {
		return nil
	}
	if err := c.parents(path.Dir(dir)); err != nil {
		return err
	}
	c.made[dir] = true
	return c.out.WriteHeader(&cpio.Header{Name: dir, Mode: cpio.TypeDir | 0o755, Links: 2})
}

func (c *converter) file(name string, size int64, r io.Reader) error {
	if err := c.parents(path.Dir(name)); err != nil {
		return err
	}
	c.note(name)
	if path.Base(name) == "modules.builtin" && size <= 1<<20 {
		text, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		c.builtin(string(text))
		r = strings.NewReader(string(text))
	}
	// The size in memory is in pages.
	c.found.Bytes += (size + 4095) &^ 4095
	if err := c.out.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeReg | 0o644, Size: size, Links: 1}); err != nil {
		return err
	}
	_, err := io.Copy(c.out, r)
	return err
}

func (c *converter) link(name, target string) error {
	if err := c.parents(path.Dir(name)); err != nil {
		return err
	}
	h := &cpio.Header{Name: name, Mode: cpio.TypeSymlink | 0o777, Size: int64(len(target)), Links: 1}
	if err := c.out.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.WriteString(c.out, target)
	return err
}

// note remembers a loadable module that matters.
func (c *converter) note(name string) {
	if m, ok := moduleName(name); ok && slices.Contains(interesting, m) {
		c.found.Loadable = append(c.found.Loadable, m)
	}
}

// builtin reads modules.builtin: one path per line.
func (c *converter) builtin(text string) {
	for line := range strings.Lines(text) {
		if m, ok := moduleName(strings.TrimSpace(line)); ok && slices.Contains(interesting, m) {
			c.found.Builtin = append(c.found.Builtin, m)
		}
	}
}

// moduleName is the module's name for kernel/drivers/nvme/host/nvme-core.ko.xz.
func moduleName(file string) (string, bool) {
	base, rest, ok := strings.Cut(path.Base(file), ".ko")
	if !ok || rest != "" && !strings.HasPrefix(rest, ".") {
		return "", false
	}
	return strings.ReplaceAll(base, "-", "_"), true
}

// Parts are the archives of one machine's initial file system.
type Parts struct {
	// Guest is the guest program's file.
	Guest string
	// Plan is plan.json.
	Plan []byte
	// Ramdisks are the job's, in order.
	Ramdisks []string
	// Modules is a file that ConvertModules wrote, empty without one.
	Modules string
}

// Build writes the initial file system to w.
func Build(w io.Writer, p Parts) error {
	out := &padder{to: w, w: bufio.NewWriterSize(w, 1<<20)}
	if err := ours(out, p); err != nil {
		return err
	}
	files := slices.Clone(p.Ramdisks)
	if p.Modules != "" {
		files = append(files, p.Modules)
	}
	for _, f := range files {
		if err := out.pad(); err != nil {
			return err
		}
		if err := appendFile(out, f); err != nil {
			return err
		}
	}
	if err := out.pad(); err != nil {
		return err
	}
	return out.w.Flush()
}

func ours(w io.Writer, p Parts) error {
	guest, err := os.ReadFile(p.Guest)
	if err != nil {
		return fmt.Errorf("reading the guest program: %w", err)
	}
	if err := devices(w); err != nil {
		return err
	}
	c := cpio.NewWriter(w)
	for _, m := range []struct {
		name string
		mode cpio.FileMode
		body []byte
	}{
		{"lib", cpio.TypeDir | 0o755, nil},
		{path.Dir(PlanPath), cpio.TypeDir | 0o700, nil},
		{GuestPath, cpio.TypeReg | 0o755, guest},
		{PlanPath, cpio.TypeReg | 0o600, p.Plan},
	} {
		if err := c.WriteHeader(&cpio.Header{Name: m.name, Mode: m.mode, Size: int64(len(m.body)), Links: 1}); err != nil {
			return err
		}
		if _, err := c.Write(m.body); err != nil {
			return err
		}
	}
	return c.Close()
}

// devices writes /dev with the numbers of Linux's
// Documentation/admin-guide/devices.txt. Package cpio has no field for them, so
// these are headers by hand: ino, mode, uid, gid, nlink, mtime, filesize,
// major, minor, rmajor, rminor, namesize, check.
func devices(w io.Writer) error {
	for _, d := range []struct {
		name         string
		mode         cpio.FileMode
		major, minor int
	}{
		{"dev", cpio.TypeDir | 0o755, 0, 0},
		{"dev/console", cpio.TypeChar | 0o600, 5, 1},
		{"dev/null", cpio.TypeChar | 0o666, 1, 3},
	} {
		head := "070701"
		for _, field := range []int{0, int(d.mode), 0, 0, 1, 0, 0, 0, 0, d.major, d.minor, len(d.name) + 1, 0} {
			head += fmt.Sprintf("%08x", field)
		}
		head += d.name + "\x00"
		// The next header begins at a multiple of 4.
		head += strings.Repeat("\x00", -len(head)&3)
		if _, err := io.WriteString(w, head); err != nil {
			return err
		}
	}
	return nil
}

func appendFile(w *padder, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = w.ReadFrom(f)
	return err
}

// padder counts, so that each archive begins where it may.
type padder struct {
	to io.Writer
	w  *bufio.Writer
	n  int64
}

func (p *padder) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	p.n += int64(n)
	return n, err
}

// ReadFrom copies a file past the buffer: from file to file the kernel does it.
func (p *padder) ReadFrom(r io.Reader) (int64, error) {
	if err := p.w.Flush(); err != nil {
		return 0, err
	}
	n, err := io.Copy(p.to, r)
	p.n += n
	return n, err
}

// pad writes at least four zeros, up to the next multiple of align.
func (p *padder) pad() error {
	gap := align - p.n%align
	if gap < 4 {
		gap += align
	}
	_, err := p.Write(make([]byte, gap))
	return err
}
