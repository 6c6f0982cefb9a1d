package debkernel

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxModule is the largest module that is packed, uncompressed, in bytes.
const maxModule = 256 << 20

// packer writes a modules archive and learns what depends on what.
type packer struct {
	release string
	tw      *tar.Writer
	paths   map[string]string   // module name -> path below lib/modules/<release>
	needs   map[string][]string // module name -> names
	order   []string
}

// packFile makes the archive name out of what fill adds.
func packFile(name, release string, fill func(*packer) error) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.Create(name + ".part")
	if err != nil {
		return err
	}
	// What a failure leaves is overwritten by the next try.
	defer f.Close()
	gz, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return err
	}
	p := &packer{release: release, tw: tar.NewWriter(gz), paths: map[string]string{}, needs: map[string][]string{}}
	if err := fill(p); err != nil {
		return err
	}
	if err := p.finish(); err != nil {
		return err
	}
	if err := errors.Join(p.tw.Close(), gz.Close(), f.Close()); err != nil {
		return err
	}
	return os.Rename(name+".part", name)
}

// add puts one file of the tree, at rel below lib/modules/<release>, in. Modules
// are stored plain whatever compression they came in.
func (p *packer) add(rel string, r io.Reader) error {
	body, err := io.ReadAll(io.LimitReader(r, maxModule))
	if err != nil {
		return fmt.Errorf("%s: %w", rel, err)
	}
	if plainName, ok := moduleName(rel); ok {
		if body, err = expand(rel, body); err != nil {
			return fmt.Errorf("%s: %w", rel, err)
		}
		rel = plainName
		p.learn(rel, body)
	} else if strings.HasPrefix(path.Base(rel), "modules.dep") {
		return nil // made anew, since the names may have changed
	}
	return p.write(rel, body)
}

func (p *packer) write(rel string, body []byte) error {
	h := &tar.Header{Name: path.Join("lib/modules", p.release, rel), Mode: 0o644, Size: int64(len(body)), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
	if err := p.tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := p.tw.Write(body)
	return err
}

// moduleName is rel without the extension of its compression, if it is a module.
func moduleName(rel string) (string, bool) {
	for _, ext := range []string{"", ".xz", ".zst", ".gz"} {
		if s, ok := strings.CutSuffix(rel, ".ko"+ext); ok {
			return s + ".ko", true
		}
	}
	return "", false
}

func expand(name string, body []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch path.Ext(name) {
	case ".xz":
		r, err = xz.NewReader(bytes.NewReader(body))
	case ".gz":
		r, err = gzip.NewReader(bytes.NewReader(body))
	case ".zst":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(bytes.NewReader(body)); err == nil {
			defer d.Close()
			r = d
		}
	default:
		return body, nil
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, maxModule))
}

// learn reads what a module says of itself. One that says nothing depends on
// nothing.
func (p *packer) learn(rel string, body []byte) {
	name := canonical(strings.TrimSuffix(path.Base(rel), ".ko"))
	p.paths[name] = rel
	p.order = append(p.order, name)
	f, err := elf.NewFile(bytes.NewReader(body))
	if err != nil {
		return
	}
	s := f.Section(".modinfo")
	if s == nil {
		return
	}
	info, err := s.Data()
	if err != nil {
		return
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(field), "depends="); ok && list != "" {
			for dep := range strings.SplitSeq(list, ",") {
				p.needs[name] = append(p.needs[name], canonical(dep))
			}
		}
	}
}

// canonical is a module's name as the kernel has it.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// finish writes modules.dep as depmod does: after each module the ones it needs,
// those that others need last.
func (p *packer) finish() error {
	slices.Sort(p.order)
	var b strings.Builder
	for _, name := range p.order {
		var deps []string
		p.closure(name, map[string]bool{name: true}, &deps)
		slices.Reverse(deps)
		b.WriteString(p.paths[name] + ":")
		for _, d := range deps {
			b.WriteString(" " + p.paths[d])
		}
		b.WriteByte('\n')
	}
	return p.write("modules.dep", []byte(b.String()))
}

// closure appends what name needs, each after what it needs itself.
func (p *packer) closure(name string, seen map[string]bool, out *[]string) {
	for _, dep := range p.needs[name] {
		if _, here := p.paths[dep]; !here || seen[dep] {
			continue
		}
		seen[dep] = true
		p.closure(dep, seen, out)
		*out = append(*out, dep)
	}
}

// packTree packs an installed tree /lib/modules/<release>.
func packTree(tree, release, name string) error {
	return packFile(name, release, func(p *packer) error {
		return filepath.WalkDir(tree, func(file string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			rel, err := filepath.Rel(tree, file)
			if err != nil {
				return err
			}
			f, err := os.Open(file)
			if err != nil {
				return err
			}
			defer f.Close()
			return p.add(filepath.ToSlash(rel), f)
		})
	})
}
