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
// variable NAME may be given as NAME_FILE, a path to read it from. A section, or
// the whole struct, may have Validate() error. docs/configuration.md is made from the tags.
package config

import (
	"errors"
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

// Reveal gives the value, for the one place that sends it.
func (s Secret) Reveal() string { return string(s) }

// Source is where Load looks.
type Source struct {
	// File is JSON or YAML; empty for none.
	File string
	// Env looks a variable up, as os.LookupEnv does.
	Env func(name string) (string, bool)
	// Set are assignments section.key=value from the command line.
	Set []string
}

// Load fills dst, a pointer to a struct of sections, and returns warnings: what
// was accepted but has no meaning in pullab. Sections of other services are
// left alone when dst lacks them.
func Load(dst any, src Source) (warnings []string, err error) {
	return nil, errors.ErrUnsupported
}
