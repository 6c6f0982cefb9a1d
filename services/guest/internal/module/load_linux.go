package module

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Load loads a module and what it needs, by name or alias. What is loaded
// already is left alone.
func (t *Tree) Load(name string) error {
	order, err := t.resolve(name)
	if err != nil {
		return err
	}
	for _, n := range order {
		if err := t.insert(n); err != nil {
			return fmt.Errorf("loading the module %s: %w", n, err)
		}
	}
	return nil
}

// insert hands one module to the kernel: the file as it is, which kernels since
// 5.17 may unpack themselves, else the object that we unpacked.
func (t *Tree) insert(name string) error {
	file, ok := t.index.Path[name]
	if !ok {
		return nil // built in, or the kernel says which symbol is missing
	}
	if _, err := os.Stat("/sys/module/" + name + "/initstate"); err == nil {
		return nil
	}
	if !strings.HasSuffix(file, ".ko") {
		if err := finit(filepath.Join(t.dir, file)); err == nil || errors.Is(err, unix.EEXIST) {
			return nil
		}
	}
	object, err := t.read(name)
	if err != nil {
		return err
	}
	if err := unix.InitModule(object, ""); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func finit(path string) error {
	const compressed = 4 // MODULE_INIT_COMPRESSED_FILE, linux/module.h
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", compressed)
}

// Devices loads the wanted drivers of the devices that are there. A driver may
// bring a bus with more devices, so it looks again until nothing is new. It
// gives the modules it loaded; errors do not stop it.
func (t *Tree) Devices() ([]string, error) {
	var loaded []string
	var errs []error
	tried := map[string]bool{}
	for {
		fresh := false
		for _, modalias := range modaliases("/sys/devices") {
			for _, name := range t.drivers(modalias) {
				if tried[name] {
					continue
				}
				tried[name], fresh = true, true
				if err := t.Load(name); err != nil {
					errs = append(errs, err)
					continue
				}
				loaded = append(loaded, name)
			}
		}
		if !fresh {
			return loaded, errors.Join(errs...)
		}
	}
}

// modaliases of the devices below dir. Devices may vanish while we look.
func modaliases(dir string) []string {
	var found []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "modalias" {
			if text, err := os.ReadFile(path); err == nil {
				found = append(found, strings.TrimSpace(string(text)))
			}
		}
		return nil
	})
	return found
}
