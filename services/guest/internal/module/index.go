// Package module loads kernel modules from a tree as `make modules_install`
// leaves it: with depmod's files or, where depmod was not there to run, from
// the .modinfo sections of the modules alone.
package module

import (
	"bufio"
	"bytes"
	"path"
	"strings"
)

// Index is what depmod wrote about a tree. Names are as the kernel has them,
// with '_' for '-'.
type Index struct {
	// Path of each module below the tree.
	Path map[string]string
	// Needs are the modules that must be loaded before.
	Needs map[string][]string
	// Aliases in the order of modules.alias.
	Aliases []Alias
	// Builtin modules are part of the kernel.
	Builtin map[string]bool
}

// Alias says which module drives what a pattern describes.
type Alias struct{ Pattern, Module string }

// Name is the module's name for a file name or a path.
func Name(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// isModule tells a module file by its name.
func isModule(file string) bool {
	for _, end := range []string{".ko", ".ko.gz", ".ko.xz", ".ko.zst"} {
		if strings.HasSuffix(file, end) {
			return true
		}
	}
	return false
}

// addDep takes modules.dep: "path: path path", the paths after the colon being
// what the first needs.
func (x *Index) addDep(text []byte) {
	for line := range lines(text) {
		file, needs, ok := strings.Cut(line, ":")
		if !ok || !isModule(file) {
			continue
		}
		name := Name(file)
		x.Path[name] = file
		x.Needs[name] = nil
		for _, need := range strings.Fields(needs) {
			x.Needs[name] = append(x.Needs[name], Name(need))
		}
	}
}

// addAlias takes modules.alias: "alias <pattern> <module>".
func (x *Index) addAlias(text []byte) {
	for line := range lines(text) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "alias" {
			x.Aliases = append(x.Aliases, Alias{Pattern: normal(f[1]), Module: Name(f[2])})
		}
	}
}

// addBuiltin takes modules.builtin: one path a line.
func (x *Index) addBuiltin(text []byte) {
	for line := range lines(text) {
		if isModule(line) {
			x.Builtin[Name(line)] = true
		}
	}
}

// Match gives the modules whose patterns match an alias, best known first come
// first.
func (x *Index) Match(alias string) []string {
	alias = normal(alias)
	var names []string
	for _, a := range x.Aliases {
		// path.Match is fnmatch but for '/', which no alias of a bus has.
		if ok, err := path.Match(a.Pattern, alias); ok && err == nil {
			names = append(names, a.Module)
		}
	}
	return names
}

// order gives name after everything it needs; each once, and a circle is cut.
func (x *Index) order(name string) []string {
	var out []string
	seen := map[string]bool{}
	var visit func(string)
	visit = func(n string) {
		if seen[n] {
			return
		}
		seen[n] = true
		// depmod lists what is needed first last.
		needs := x.Needs[n]
		for i := len(needs) - 1; i >= 0; i-- {
			visit(needs[i])
		}
		out = append(out, n)
	}
	visit(name)
	return out
}

// normal makes '-' and '_' one outside of brackets, as depmod and modprobe do.
func normal(alias string) string {
	b, in := []byte(alias), false
	for i, c := range b {
		switch {
		case c == '[':
			in = true
		case c == ']':
			in = false
		case c == '-' && !in:
			b[i] = '_'
		}
	}
	return string(b)
}

func lines(text []byte) func(func(string) bool) {
	return func(yield func(string) bool) {
		s := bufio.NewScanner(bytes.NewReader(text))
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			line := strings.TrimSpace(s.Text())
			if line != "" && line[0] != '#' && !yield(line) {
				return
			}
		}
	}
}
