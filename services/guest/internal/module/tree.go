package module

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Tree is a module tree, usually /lib/modules/<release>.
type Tree struct {
	dir   string
	index Index
	// bare: depmod was not run, so what a module needs and drives is read from
	// the module itself.
	bare, scanned bool
	learned       map[string]bool
}

// Open reads the tree's index. A tree that is not there is empty: a kernel
// without modules is a legal kernel.
func Open(dir string) (*Tree, error) {
	t := &Tree{dir: dir, learned: map[string]bool{}, index: Index{Path: map[string]string{}, Needs: map[string][]string{}, Builtin: map[string]bool{}}}
	for _, f := range []struct {
		name string
		take func([]byte)
	}{
		{"modules.dep", t.index.addDep}, {"modules.alias", t.index.addAlias}, {"modules.builtin", t.index.addBuiltin},
	} {
		text, err := os.ReadFile(filepath.Join(dir, f.name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("the module tree's index is not readable: %w", err)
		}
		f.take(text)
	}
	if len(t.index.Path) > 0 && len(t.index.Aliases) > 0 {
		return t, nil
	}
	t.bare = true
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && isModule(path) {
			t.index.Path[Name(path)] = strings.TrimPrefix(path, dir+"/")
		}
		return nil
	})
	return t, err
}

// Len is how many modules the tree has.
func (t *Tree) Len() int { return len(t.index.Path) }

// read gives the object of a module in the tree.
func (t *Tree) read(name string) ([]byte, error) {
	file := t.index.Path[name]
	b, err := os.ReadFile(filepath.Join(t.dir, file))
	if err != nil {
		return nil, err
	}
	return unpack(file, b)
}

// learn reads what a module of a bare tree needs and drives, once.
func (t *Tree) learn(name string) error {
	if !t.bare || t.learned[name] {
		return nil
	}
	t.learned[name] = true
	object, err := t.read(name)
	if err != nil {
		return err
	}
	info, err := ParseInfo(object)
	if err != nil {
		return fmt.Errorf("%s: %w", t.index.Path[name], err)
	}
	t.index.Needs[name] = info.Needs
	for _, a := range info.Aliases {
		t.index.Aliases = append(t.index.Aliases, Alias{Pattern: a, Module: name})
	}
	for _, need := range info.Needs {
		if _, ok := t.index.Path[need]; ok {
			if err := t.learn(need); err != nil {
				return err
			}
		}
	}
	return nil
}

// wanted are the drivers that a machine needs to reach its disk and its report
// port. Nothing else is loaded unasked: the less of the lab runs in the kernel
// under test, the more its faults are its own.
var wanted = []string{
	"drivers/block/", "drivers/virtio/", "drivers/nvme/", "drivers/ata/", "drivers/scsi/", "drivers/tty/",
	"drivers/char/virtio_console", "drivers/char/hw_random/",
}

func (t *Tree) isWanted(name string) bool {
	file := t.index.Path[name]
	for _, w := range wanted {
		if strings.Contains("/"+file, "/"+w) {
			return true
		}
	}
	return false
}

// drivers gives the wanted modules for a device's modalias. In a bare tree the
// wanted modules are read for their aliases first; one that cannot be read
// drives nothing.
func (t *Tree) drivers(modalias string) []string {
	if t.bare && !t.scanned {
		t.scanned = true
		for name := range t.index.Path {
			if t.isWanted(name) {
				_ = t.learn(name)
			}
		}
	}
	var names []string
	for _, name := range t.index.Match(modalias) {
		if t.isWanted(name) {
			names = append(names, name)
		}
	}
	return names
}

// resolve gives the modules to load for a name or an alias, in order; nothing
// when it is built in.
func (t *Tree) resolve(name string) ([]string, error) {
	plain := strings.ReplaceAll(name, "-", "_")
	found := []string{plain}
	if _, ok := t.index.Path[plain]; !ok {
		if t.index.Builtin[plain] {
			return nil, nil
		}
		found = t.index.Match(name)
	}
	// What request_module asks for by alias; in a bare tree the aliases are not
	// known before the module is read.
	for _, prefix := range []string{"fs-", "crypto-"} {
		if rest, ok := strings.CutPrefix(name, prefix); ok && len(found) == 0 {
			if _, ok := t.index.Path[strings.ReplaceAll(rest, "-", "_")]; ok {
				found = []string{strings.ReplaceAll(rest, "-", "_")}
			}
		}
	}
	if len(found) == 0 {
		return nil, &NotFoundError{Name: name, Dir: t.dir}
	}
	var order []string
	for _, f := range found {
		if err := t.learn(f); err != nil {
			return nil, err
		}
		order = append(order, t.index.order(f)...)
	}
	return order, nil
}

// NotFoundError: the tree has no module of that name and the kernel has it not
// built in, as far as modules.builtin tells.
type NotFoundError struct{ Name, Dir string }

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("%s is neither a module in %s nor built into the kernel", e.Name, e.Dir)
}
