// Package config reads one documented struct per service from a file, the
// environment and flags, in that order of growing precedence, and refuses by
// name what it does not know.
//
// A configuration struct has one field per section, tagged `section:"name"`;
// a section is a struct whose fields are tagged
//
//	key     name in the file
//	env     environment variables, comma separated, first one set wins
//	default value when nothing else gives one
//	help    what it is, its unit, and what happens at the default
//
// Types: string, Secret, bool, int, float64, time.Duration ("90s"), []string (a
// list or a comma-separated string) and map[string]string. For a Secret each
// variable NAME may be given as NAME_FILE, a path to read it from. A variable
// that is set but empty counts as unset, as compose files leave them. A
// section, or the whole struct, may have Validate() error.
// docs/configuration.md is made from the tags.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
)

// Secret is a string that no log and no `config show` prints.
type Secret string

// String hides the value.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "********"
}

// MarshalText hides the value.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Format hides the value from every verb of package fmt, %#v included.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// Reveal gives the value, for the one place that sends it.
func (s Secret) Reveal() string { return string(s) }

// Source is where Load looks.
type Source struct {
	// File is JSON or YAML; empty for none.
	File string
	// Env looks a variable up, as os.LookupEnv does; nil for no environment.
	Env func(name string) (string, bool)
	// Set are assignments section.key=value from the command line.
	Set []string
	// Defaults are assignments that stand in for the tags' defaults: what a
	// command knows better.
	Defaults []string
}

// Report tells where each value came from.
type Report struct {
	// Warnings name what was accepted but has no meaning in pullab.
	Warnings []string
	Values   []Value
}

// Value is one key after loading.
type Value struct {
	Section, Key string
	// Text is the value as a person would write it; secrets are masked.
	Text string
	// From is "default", "file", the environment variable's name, or "--set".
	From string
}

// validator is a section, or a whole struct, with rules of its own.
type validator interface{ Validate() error }

// Load fills dst, a pointer to a struct of sections, or of such structs: then a
// section that several of them share is filled in each. Sections of other
// services in the same file are left alone when dst lacks them. All complaints come
// back joined, each naming its key.
func Load(dst any, src Source) (Report, error) {
	l := &loader{src: src, from: map[*field]string{}}
	l.sections = sectionsOf(dst)
	l.defaults()
	l.file()
	l.environment()
	l.assignments(l.src.Set, "--set")
	if len(l.errs) == 0 {
		l.validate(dst)
	}
	l.report.Values = l.values()
	return l.report, errors.Join(l.errs...)
}

type loader struct {
	src      Source
	sections []section
	from     map[*field]string
	report   Report
	errs     []error
}

func (l *loader) complain(format string, args ...any) { l.fail(fmt.Errorf(format, args...)) }

// fail keeps an error once: sections that several services share are read, and
// complained about, once for each.
func (l *loader) fail(err error) {
	if !slices.ContainsFunc(l.errs, func(e error) bool { return e.Error() == err.Error() }) {
		l.errs = append(l.errs, err)
	}
}

func (l *loader) named(name string) []section {
	var mine []section
	for _, s := range l.sections {
		if s.name == name {
			mine = append(mine, s)
		}
	}
	return mine
}

func (l *loader) set(s section, f *field, v any, from string) {
	if err := assign(f.value, v); err != nil {
		l.complain("%s.%s (from %s): %w", s.name, f.key, from, err)
		return
	}
	l.from[f] = from
}

func (l *loader) defaults() {
	for _, s := range l.sections {
		for _, f := range s.fields {
			if f.def != "" {
				l.set(s, f, f.def, "default")
			}
		}
	}
	l.assignments(l.src.Defaults, "default")
}

func (l *loader) file() {
	if l.src.File == "" {
		return
	}
	doc, err := parseFile(l.src.File)
	if err != nil {
		l.fail(err)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(doc)) {
		mine := l.named(name)
		switch {
		case len(mine) > 0:
			for _, s := range mine {
				l.section(s, doc[name])
			}
		case slices.Contains(Sections, name):
		case slices.Contains(predecessorSections, name):
			l.report.Warnings = append(l.report.Warnings, fmt.Sprintf(
				"%s: section %q belongs to the predecessor's AWS pipeline and has no effect in pullab", l.src.File, name))
		default:
			l.complain("%s: unknown section %q%s", l.src.File, name, suggest(name, Sections))
		}
	}
}

func (l *loader) section(s section, v any) {
	keys, ok := v.(map[string]any)
	if !ok {
		if v != nil {
			l.complain("%s: section %q must be an object of keys, not %T", l.src.File, s.name, v)
		}
		return
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		f := s.field(key)
		if f == nil {
			l.complain("%s: unknown key %s.%s%s", l.src.File, s.name, key, suggest(key, s.keys()))
			continue
		}
		if keys[key] != nil {
			l.set(s, f, keys[key], "file")
		}
	}
}

func (l *loader) environment() {
	if l.src.Env == nil {
		return
	}
	for _, s := range l.sections {
		for _, f := range s.fields {
			for _, name := range f.env {
				v, from, err := lookup(l.src.Env, name, f.secret())
				if err != nil {
					l.fail(err)
				}
				if v != "" {
					l.set(s, f, v, from)
					break
				}
			}
		}
	}
}

// lookup reads NAME, or for a secret the file that NAME_FILE names.
func lookup(env func(string) (string, bool), name string, secret bool) (value, from string, err error) {
	v, _ := env(name)
	if !secret {
		return v, name, nil
	}
	path, _ := env(name + "_FILE")
	switch {
	case path == "":
		return v, name, nil
	case v != "":
		return "", "", fmt.Errorf("%s and %s_FILE are both set: unset one of them", name, name)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", "", fmt.Errorf("%s_FILE: %w. Make the file readable for this user, or unset the variable", name, err)
	}
	if strings.TrimSpace(string(b)) == "" {
		return "", "", fmt.Errorf("%s_FILE: %s is empty: write the secret into it, or unset the variable", name, path)
	}
	return strings.TrimSpace(string(b)), name + "_FILE", nil
}

// LookupSecret reads an environment variable or the file that NAME_FILE names,
// with the rules of Load.
func LookupSecret(env func(string) (string, bool), name string) (Secret, error) {
	v, _, err := lookup(env, name, true)
	return Secret(v), err
}

func (l *loader) assignments(list []string, from string) {
	for _, a := range list {
		path, v, ok := strings.Cut(a, "=")
		name, key, dotted := strings.Cut(path, ".")
		if !ok || !dotted {
			l.complain("--set %q: write it as section.key=value", path)
			continue
		}
		mine := l.named(name)
		if len(mine) == 0 {
			l.complain("--set %s: this command has no section %q; it has %s", path, name, strings.Join(names(l.sections), ", "))
		}
		for _, s := range mine {
			if f := s.field(key); f != nil {
				l.set(s, f, v, from)
			} else {
				l.complain("--set %s: unknown key %q%s", path, key, suggest(key, s.keys()))
			}
		}
	}
}

func (l *loader) validate(dst any) {
	for _, s := range l.sections {
		if v, ok := s.value.Interface().(validator); ok {
			if err := v.Validate(); err != nil {
				l.fail(err)
			}
		}
	}
	if len(l.errs) > 0 {
		return
	}
	for _, g := range groupsOf(reflect.ValueOf(dst).Elem()) {
		if v, ok := g.Interface().(validator); ok {
			if err := v.Validate(); err != nil {
				l.fail(err)
			}
		}
	}
}

func (l *loader) values() []Value {
	var vs []Value
	seen := map[string]bool{}
	for _, s := range l.sections {
		for _, f := range s.fields {
			if seen[s.name+"."+f.key] {
				continue
			}
			seen[s.name+"."+f.key] = true
			vs = append(vs, Value{Section: s.name, Key: f.key, Text: format(f.value), From: cmp.Or(l.from[f], "default")})
		}
	}
	return vs
}
