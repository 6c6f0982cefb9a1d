// Package rootdisk makes a disk image with a writable ext4 file system from
// the tar archives of a root file system and of the kernel's tests, without root rights, a mount, or any
// tool of the host.
//
// hcsshim's tar2ext4 writes a compact file system: every block up to its end
// is in use and it is marked read-only. grow adds block groups of free blocks
// and inodes behind it. There is no journal: a machine's disk is thrown away.
package rootdisk

import (
	"archive/tar"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"github.com/pullab/pullab/services/runner/qemu/internal/archive"
)

const (
	blockSize      = 4096
	groupBlocks    = 8 * blockSize
	groupBytes     = groupBlocks * blockSize
	descSize       = 32
	descPerBlock   = blockSize / descSize
	superOffset    = 1024
	superSize      = 1024
	inodeSize      = 256
	roCompatROnly  = 0x1000 // RO_COMPAT_READONLY
	logGroupsFlex  = 4
	maxGiB         = 2048
	maxHeadersSize = 64 << 20
)

// ErrTooSmall is given when the archive does not fit on the disk.
var ErrTooSmall = errors.New("the root file system does not fit on the disk")

// ErrKselftest is given when the archive of the kernel's tests is at fault.
var ErrKselftest = errors.New("the archive of kselftests")

// KselftestDir is where the guest looks first for run_kselftest.sh.
const KselftestDir = "opt/kselftests"

// Archives are what a disk is made from.
type Archives struct {
	// Root is the root file system's.
	Root string
	// Kselftest holds the kernel's own tests as make gen_tar packs them
	// (tools/testing/selftests/Makefile), run_kselftest.sh at the top, or all of
	// it in one directory, as older kernels packed it. It takes the place of
	// KselftestDir. Empty without one.
	Kselftest string
}

// Convert writes the archives to file, a new empty file, as a disk of size
// bytes, rounded up to 128 MiB. Free blocks are holes.
func Convert(ctx context.Context, file *os.File, from Archives, size int64) error {
	size = (size + groupBytes - 1) / groupBytes * groupBytes
	if size > maxGiB<<30 {
		return fmt.Errorf("a root disk of %d GiB is larger than %d GiB", size>>30, maxGiB)
	}
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := pour(ctx, pw, from, size)
		pw.CloseWithError(err)
		done <- err
	}()
	err := tar2ext4.ConvertTarToExt4(pr, file, tar2ext4.MaximumDiskSize(size))
	pr.CloseWithError(errEnded)
	if read := <-done; read != nil && !errors.Is(read, errEnded) {
		return read
	}
	if err != nil {
		return fmt.Errorf("writing the ext4 file system: %w", err)
	}
	return grow(file, size)
}

// errEnded is what pour sees when the other side gave up; the reason is there.
var errEnded = errors.New("conversion ended")

// pour makes one archive of all, without what tar2ext4 does not know, in plain
// headers.
func pour(ctx context.Context, w io.Writer, from Archives, size int64) error {
	// A twentieth is kept for inodes, maps and directories.
	p := &pourer{out: tar.NewWriter(w), size: size, room: size - size/20}
	keep := func(name string) (string, bool) { return strings.TrimPrefix(name, "./"), true }
	if from.Kselftest == "" {
		if err := p.add(ctx, from.Root, keep); err != nil {
			return err
		}
		return p.out.Close()
	}
	top, err := kselftestTop(ctx, from.Kselftest, size)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKselftest, err)
	}
	// tar2ext4 cannot write a file twice.
	err = p.add(ctx, from.Root, func(name string) (string, bool) {
		if _, inside := below(KselftestDir, name); inside {
			return "", false
		}
		return keep(name)
	})
	if err != nil {
		return err
	}
	err = p.add(ctx, from.Kselftest, func(name string) (string, bool) {
		rest, ok := below(top, name)
		return path.Join(KselftestDir, rest), ok
	})
	if err != nil && !errors.Is(err, ErrTooSmall) && !errors.Is(err, errEnded) {
		return fmt.Errorf("%w: %w", ErrKselftest, err)
	}
	return errors.Join(err, p.out.Close())
}

// below gives the rest of name if it is dir or in it.
func below(dir, name string) (rest string, ok bool) {
	clean := path.Clean("/" + name)
	rest, ok = strings.CutPrefix(clean, path.Clean("/"+dir))
	return strings.TrimPrefix(rest, "/"), ok && (rest == "" || rest[0] == '/' || dir == "")
}

// errFound ends a walk early.
var errFound = errors.New("found")

// kselftestTop finds the directory of the archive that holds run_kselftest.sh.
// A name cannot tell: the tests have a directory kselftest of their own.
func kselftestTop(ctx context.Context, file string, size int64) (string, error) {
	top := ""
	err := archive.Walk(ctx, file, size+maxHeadersSize, func(h *tar.Header, _ io.Reader) error {
		dir, base := path.Split(path.Clean("/" + h.Name))
		if dir = strings.Trim(dir, "/"); base != "run_kselftest.sh" || strings.Contains(dir, "/") {
			return nil
		}
		top = dir
		return errFound
	})
	switch {
	case errors.Is(err, errFound):
		return top, nil
	case errors.Is(err, archive.ErrTooLarge):
		return "", fmt.Errorf("%w of %d MiB", ErrTooSmall, size>>20)
	case err != nil:
		return "", err
	}
	return "", errors.New("there is no run_kselftest.sh at its top or in a directory there")
}

// pourer writes members as long as they fit.
type pourer struct {
	out        *tar.Writer
	size, room int64
}

// add copies an archive. place gives a member's name on the disk, false for one
// that is to be left out.
func (p *pourer) add(ctx context.Context, file string, place func(string) (string, bool)) error {
	err := archive.Walk(ctx, file, p.size+maxHeadersSize, func(h *tar.Header, r io.Reader) error {
		return p.member(h, r, place)
	})
	if errors.Is(err, archive.ErrTooLarge) {
		return fmt.Errorf("%w of %d MiB", ErrTooSmall, p.size>>20)
	}
	return err
}

func (p *pourer) member(h *tar.Header, r io.Reader, place func(string) (string, bool)) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	case tar.TypeLink:
		// Names a member; a symbolic link's is text.
		h.Linkname, _ = place(h.Linkname)
	case tar.TypeGNUSparse, tar.TypeCont:
		h.Typeflag = tar.TypeReg
	default:
		return nil
	}
	name, ok := place(h.Name)
	if !ok {
		return nil
	}
	if h.Name = name; h.Name == "" {
		h.Name = "/"
	}
	if p.room -= (h.Size + blockSize - 1) &^ (blockSize - 1); p.room < 0 {
		return fmt.Errorf("%w of %d MiB", ErrTooSmall, p.size>>20)
	}
	h.Format = tar.FormatPAX
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			delete(h.PAXRecords, k)
		}
	}
	if err := p.out.WriteHeader(h); err != nil {
		return fmt.Errorf("archive member %q: %w", h.Name, err)
	}
	_, err := io.Copy(p.out, r)
	return err
}

// super holds the fields of an ext4 super block that grow needs
// (Linux Documentation/filesystems/ext4/super.rst).
type super []byte

func (s super) u32(at int) uint32       { return binary.LittleEndian.Uint32(s[at:]) }
func (s super) put32(at int, v uint32)  { binary.LittleEndian.PutUint32(s[at:], v) }
func (s super) inodesPerGroup() uint32  { return s.u32(0x28) }
func (s super) blocks() uint32          { return s.u32(0x04) }
func (s super) add(at int, more uint32) { s.put32(at, s.u32(at)+more) }

// grow makes the file system in file, of less than size bytes, size bytes
// large and writable.
func grow(file *os.File, size int64) error {
	sb := make(super, superSize)
	if _, err := file.ReadAt(sb, superOffset); err != nil {
		return err
	}
	oldGroups := (sb.blocks() + groupBlocks - 1) / groupBlocks
	newGroups := uint32(size / groupBytes)
	if newGroups*groupBlocks < sb.blocks() {
		return fmt.Errorf("%w of %d MiB", ErrTooSmall, size>>20)
	}
	gdBlocks := (newGroups + descPerBlock - 1) / descPerBlock
	table := make([]byte, gdBlocks*blockSize)
	if _, err := file.ReadAt(table, blockSize); err != nil {
		return err
	}
	if err := file.Truncate(size); err != nil {
		return err
	}
	g := &grower{file: file, sb: sb, table: table}
	if err := g.reserveTable((oldGroups+descPerBlock-1)/descPerBlock, gdBlocks); err != nil {
		return err
	}
	if err := g.freeTail(oldGroups - 1); err != nil {
		return err
	}
	for i := range oldGroups {
		if err := g.padInodes(i); err != nil {
			return err
		}
	}
	for i := oldGroups; i < newGroups; i++ {
		if err := g.addGroup(i); err != nil {
			return err
		}
	}
	return g.finish(newGroups)
}

type grower struct {
	file  *os.File
	sb    super
	table []byte
}

func (g *grower) desc(i uint32) super { return super(g.table[i*descSize:][:descSize]) }

// change edits a group's block bitmap and counts what became free.
func (g *grower) change(group uint32, edit func(bitmap []byte)) error {
	at := int64(g.desc(group).u32(0)) * blockSize
	bitmap := make([]byte, blockSize)
	if _, err := g.file.ReadAt(bitmap, at); err != nil {
		return err
	}
	edit(bitmap)
	free := uint16(0)
	for i := range groupBlocks {
		if bitmap[i/8]&(1<<(i%8)) == 0 {
			free++
		}
	}
	d := g.desc(group)
	was := binary.LittleEndian.Uint16(d[0x0c:])
	binary.LittleEndian.PutUint16(d[0x0c:], free)
	g.sb.put32(0x0c, g.sb.u32(0x0c)+uint32(free)-uint32(was))
	_, err := g.file.WriteAt(bitmap, at)
	return err
}

// reserveTable marks blocks of the descriptor table that were free before.
func (g *grower) reserveTable(from, to uint32) error {
	return g.change(0, func(bitmap []byte) {
		for b := 1 + from; b < 1+to; b++ {
			bitmap[b/8] |= 1 << (b % 8)
		}
	})
}

// freeTail frees the blocks of the last group that were beyond the end.
func (g *grower) freeTail(last uint32) error {
	used := g.sb.blocks() - last*groupBlocks
	return g.change(last, func(bitmap []byte) {
		for b := used; b < groupBlocks; b++ {
			bitmap[b/8] &^= 1 << (b % 8)
		}
	})
}

// padInodes sets the bits beyond the last inode of a group that tar2ext4 made
// and left clear.
func (g *grower) padInodes(i uint32) error {
	at := int64(g.desc(i).u32(4)) * blockSize
	bitmap := make([]byte, blockSize)
	if _, err := g.file.ReadAt(bitmap, at); err != nil {
		return err
	}
	for n := g.sb.inodesPerGroup(); n < groupBlocks; n++ {
		bitmap[n/8] |= 1 << (n % 8)
	}
	_, err := g.file.WriteAt(bitmap, at)
	return err
}

// addGroup lays an empty group out: block bitmap, inode bitmap, inode table.
// The inode table is a hole of zeros.
func (g *grower) addGroup(i uint32) error {
	inodes := g.sb.inodesPerGroup()
	start := i * groupBlocks
	used := 2 + (inodes*inodeSize+blockSize-1)/blockSize
	maps := make([]byte, 2*blockSize)
	for b := range used {
		maps[b/8] |= 1 << (b % 8)
	}
	// Bits beyond the last inode are set.
	for n := inodes; n < groupBlocks; n++ {
		maps[blockSize+n/8] |= 1 << (n % 8)
	}
	if _, err := g.file.WriteAt(maps, int64(start)*blockSize); err != nil {
		return err
	}
	d := g.desc(i)
	d.put32(0x00, start)
	d.put32(0x04, start+1)
	d.put32(0x08, start+2)
	binary.LittleEndian.PutUint16(d[0x0c:], uint16(groupBlocks-used))
	binary.LittleEndian.PutUint16(d[0x0e:], uint16(inodes))
	g.sb.add(0x0c, groupBlocks-used)
	g.sb.add(0x00, inodes)
	g.sb.add(0x10, inodes)
	return nil
}

func (g *grower) finish(groups uint32) error {
	g.sb.put32(0x04, groups*groupBlocks)
	g.sb.put32(0x64, g.sb.u32(0x64)&^roCompatROnly)
	g.sb[0x174] = logGroupsFlex
	if _, err := g.file.WriteAt(g.table, blockSize); err != nil {
		return err
	}
	if _, err := g.file.WriteAt(g.sb, superOffset); err != nil {
		return err
	}
	return g.file.Sync()
}
