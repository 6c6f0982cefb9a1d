package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"

	"github.com/pullab/pullab/pkg/config"
)

// platformName is what KernelCI's own names look like; anything else is a
// slip of the pen.
var platformName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$`)

// Decode reads a catalog; file is for messages. All complaints come joined.
func Decode(file string, data []byte) (*Catalog, error) {
	c := &Catalog{File: file, platforms: map[string]Platform{}}
	d := &decoder{file: file}
	if file == "" {
		d.file = "the built-in catalog"
	}
	d.document(data, c)
	if len(d.errs) == 0 && len(c.platforms) == 0 {
		d.errs = append(d.errs, fmt.Errorf("%s has no platforms: no job could run", d.file))
	}
	if err := errors.Join(d.errs...); err != nil {
		return nil, err
	}
	return c, nil
}

type decoder struct {
	file string
	errs []error
}

func (d *decoder) complain(n *yaml.Node, format string, args ...any) {
	const most = 20
	if len(d.errs) < most {
		d.errs = append(d.errs, fmt.Errorf("%s line %d: %w", d.file, n.Line, fmt.Errorf(format, args...)))
	}
}

func (d *decoder) document(data []byte, c *Catalog) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if !errors.Is(err, io.EOF) {
			d.errs = append(d.errs, fmt.Errorf("%s is not YAML: %w", d.file, err))
		}
		return
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		d.errs = append(d.errs, fmt.Errorf("%s has more than one YAML document", d.file))
		return
	}
	if len(doc.Content) == 0 {
		return
	}
	d.mapping(doc.Content[0], map[string]func(*yaml.Node){
		"platforms": func(n *yaml.Node) { d.platforms(n, c) },
	})
}

// entries calls f for each key of a mapping, once.
func (d *decoder) entries(n *yaml.Node, f func(key, v *yaml.Node)) {
	if n.Kind == yaml.AliasNode {
		d.complain(n, "aliases are not supported: write the value out")
		return
	}
	if n.Kind != yaml.MappingNode {
		if n.Tag != "!!null" {
			d.complain(n, "want keys and values here")
		}
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			d.complain(k, "a key must be plain text")
			continue
		}
		if seen[k.Value] {
			d.complain(k, "key %q is given twice", k.Value)
			continue
		}
		seen[k.Value] = true
		f(k, v)
	}
}

func (d *decoder) mapping(n *yaml.Node, known map[string]func(*yaml.Node)) {
	var keys []string
	for k := range known {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	d.entries(n, func(k, v *yaml.Node) {
		if read, ok := known[k.Value]; ok {
			read(v)
			return
		}
		d.complain(k, "unknown key %q%s (known: %s)", k.Value, suggest(k.Value, keys), list(keys))
	})
}

func (d *decoder) platforms(n *yaml.Node, c *Catalog) {
	d.entries(n, func(k, v *yaml.Node) {
		if !platformName.MatchString(k.Value) {
			d.complain(k, "platform name %q has characters other than letters, digits, '_', '-' and '.'", k.Value)
			return
		}
		c.platforms[k.Value] = d.platform(k, v)
	})
}

func (d *decoder) platform(name, n *yaml.Node) Platform {
	p := Platform{
		Name: name.Value, CPUs: defaultCPUs, MemoryMiB: defaultMemoryMiB, DiskGiB: defaultDiskGiB,
		Options: map[string]string{},
	}
	before := len(d.errs)
	d.mapping(n, map[string]func(*yaml.Node){
		"executor":   func(n *yaml.Node) { p.Executor = d.text(n) },
		"arch":       func(n *yaml.Node) { p.Arch = d.text(n) },
		"cpus":       func(n *yaml.Node) { p.CPUs = d.number(n) },
		"memory_mib": func(n *yaml.Node) { p.MemoryMiB = d.number(n) },
		"disk_gib":   func(n *yaml.Node) { p.DiskGiB = d.number(n) },
		"cmdline":    func(n *yaml.Node) { p.Cmdline = d.text(n) },
		"options": func(n *yaml.Node) {
			d.entries(n, func(k, v *yaml.Node) { p.Options[k.Value] = d.text(v) })
		},
	})
	if len(d.errs) > before {
		return p
	}
	if err := p.validate(); err != nil {
		for line := range strings.Lines(err.Error()) {
			d.complain(name, "platform %s: %s", p.Name, strings.TrimSpace(line))
		}
	}
	return p
}

// text takes any scalar as it is written: `yes` in options is the text "yes".
func (d *decoder) text(n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode {
		d.complain(n, "want a single value here")
		return ""
	}
	if n.Tag == "!!null" {
		return ""
	}
	return n.Value
}

func (d *decoder) number(n *yaml.Node) int {
	v, err := strconv.Atoi(d.text(n))
	if err != nil {
		d.complain(n, "want a whole number, not %q", n.Value)
	}
	return v
}

func hasControl(s string) bool { return strings.ContainsFunc(s, unicode.IsControl) }

func list(ss []string) string {
	if len(ss) == 0 {
		return "none"
	}
	return strings.Join(ss, ", ")
}

// suggest names the known word that a misspelled one is nearest to, if one is
// near.
func suggest(word string, known []string) string {
	if best := config.Nearest(word, known); best != "" {
		return fmt.Sprintf(": did you mean %q?", best)
	}
	return ""
}
