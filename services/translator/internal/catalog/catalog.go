// Package catalog is the lab's list of platforms: what executor and machine each
// KernelCI platform runs on. It is a YAML file that an operator edits; the
// embedded default says what is in it. Unknown keys, values out of range, and
// executors or arches that no runner serves are refused by name and line.
package catalog

import (
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/pullab/pullab/pkg/topology"
)

// maxSize of a catalog file in bytes.
const maxSize = 1 << 20

//go:embed default.yaml
var defaultYAML []byte

// Catalog of platforms.
type Catalog struct {
	// File it was read from; empty for the embedded one.
	File      string
	platforms map[string]Platform
}

// Platform is what one platform runs on.
type Platform struct {
	Name     string
	Executor string
	// Arch in KernelCI's spelling.
	Arch      string
	CPUs      int
	MemoryMiB int
	DiskGiB   int
	// Cmdline is appended to the executor's kernel command line.
	Cmdline string
	// Options mean something to the executor alone.
	Options map[string]string
}

// UnknownPlatformError says that the catalog has no such platform.
type UnknownPlatformError struct {
	Platform string
	Known    []string
	File     string
}

func (e *UnknownPlatformError) Error() string {
	edit := "add it to " + e.File
	if e.File == "" {
		edit = "write a catalog file that has it and name the file in translator.catalog"
	}
	return fmt.Sprintf("platform %q is not in this lab's catalog (it has %s): %s", e.Platform, list(e.Known), edit)
}

// Load reads a catalog file; the embedded catalog when file is empty.
func Load(file string) (*Catalog, error) {
	if file == "" {
		return Decode("", defaultYAML)
	}
	st, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("the platform catalog cannot be read: %w", err)
	}
	if st.Size() > maxSize {
		return nil, fmt.Errorf("the platform catalog %s has %d bytes; at most %d are read", file, st.Size(), maxSize)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("the platform catalog cannot be read: %w", err)
	}
	return Decode(file, data)
}

// Lookup finds a platform; *UnknownPlatformError when there is none.
func (c *Catalog) Lookup(name string) (Platform, error) {
	p, ok := c.platforms[name]
	if !ok {
		return Platform{}, &UnknownPlatformError{Platform: name, Known: c.Names(), File: c.File}
	}
	return p, nil
}

// Names of the platforms, sorted.
func (c *Catalog) Names() []string { return slices.Sorted(maps.Keys(c.platforms)) }

// Limits of a machine's shape: not what is sensible, but what is surely a
// mistake of unit.
const (
	maxCPUs      = 1024
	minMemoryMiB = 128
	maxMemoryMiB = 16 << 20
	maxDiskGiB   = 64 << 10
)

// Shape of a platform that does not say.
const (
	defaultCPUs      = 2
	defaultMemoryMiB = 2048
	defaultDiskGiB   = 8
)

func (p Platform) validate() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	oneOf := func(key, v string, known []string) {
		if !slices.Contains(known, v) {
			complain("%s %q is not one of %s%s", key, v, list(known), suggest(v, known))
		}
	}
	within := func(key string, v, low, high int) {
		if v < low || v > high {
			complain("%s is %d: it must be between %d and %d", key, v, low, high)
		}
	}
	oneOf("executor", p.Executor, topology.Executors)
	oneOf("arch", p.Arch, topology.Arches)
	within("cpus", p.CPUs, 1, maxCPUs)
	within("memory_mib", p.MemoryMiB, minMemoryMiB, maxMemoryMiB)
	within("disk_gib", p.DiskGiB, 1, maxDiskGiB)
	if hasControl(p.Cmdline) {
		complain("cmdline has a line break or another control character")
	}
	return errors.Join(errs...)
}
