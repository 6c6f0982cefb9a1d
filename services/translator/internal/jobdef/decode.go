package jobdef

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Decode reads a definition. Every error is a *DecodeError.
func Decode(data []byte) (*Definition, error) {
	root, err := parse(data)
	if err != nil {
		return nil, err
	}
	d := &decoder{reader: &reader{data: data}}
	sum := sha256.Sum256(data)
	def := &Definition{
		Artifacts: map[string]string{}, Checksums: map[string]string{}, Parameters: map[string]string{},
		SHA256: hex.EncodeToString(sum[:]),
	}
	d.fields(root, map[string]func(value){
		"artifacts":   func(v value) { d.artifacts(v, def) },
		"tests":       func(v value) { d.tests(v, def) },
		"environment": func(v value) { d.environment(v, def) },
		"parameters":  func(v value) { def.Parameters = d.pairs(v) },
		"integrity":   func(v value) { d.integrity(v, def) },
		// callback leads to a service that reads LAVA's format only
		// (kernelci-wire.md 2.7); results go to the node instead.
		"callback": func(v value) { d.is(v, isObject) },
	})
	if d.err != nil {
		return nil, d.err
	}
	def.Unknown = d.unknown
	return def, nil
}

// decoder keeps the first error and goes on, so that readers of one field need
// not pass errors.
type decoder struct {
	*reader
	err     error
	unknown []string
}

func (d *decoder) refuse(v value, reason string, args ...any) {
	if d.err == nil {
		d.err = d.fail(v.offset, v.path, fmt.Sprintf(reason, args...))
	}
}

// note remarks on what has no meaning here; a hostile definition cannot make
// the list long.
func (d *decoder) note(path, remark string) {
	const most = 32
	if len(d.unknown) < most {
		d.unknown = append(d.unknown, path+" "+remark)
	}
}

// is tells whether v is of the kind; null counts as absent.
func (d *decoder) is(v value, k kind) bool {
	if v.kind == k {
		return true
	}
	if v.kind != isNull {
		d.refuse(v, "must be %s, not %s", k, v.kind)
	}
	return false
}

func (d *decoder) fields(v value, known map[string]func(value)) {
	if v.kind == isNull && v.path == "" {
		d.refuse(v, "must be an object, not null")
	}
	if !d.is(v, isObject) {
		return
	}
	for _, m := range v.object {
		if read, ok := known[m.key]; ok {
			read(m.value)
		} else {
			d.note(m.path, "is unknown to this version and was ignored")
		}
	}
}

func (d *decoder) text(v value) string {
	if !d.is(v, isString) {
		return ""
	}
	return v.scalar.(string)
}

func (d *decoder) texts(v value) []string {
	if !d.is(v, isList) {
		return nil
	}
	var ss []string
	for _, e := range v.list {
		if e.kind != isString {
			d.refuse(e, "must be a string, not %s", e.kind)
			return nil
		}
		ss = append(ss, e.scalar.(string))
	}
	return ss
}

// pairs reads an object of scalars; numbers and booleans are taken as written.
func (d *decoder) pairs(v value) map[string]string {
	m := map[string]string{}
	if !d.is(v, isObject) {
		return m
	}
	for _, e := range v.object {
		switch e.kind {
		case isString:
			m[e.key] = e.scalar.(string)
		case isNumber, isBool:
			m[e.key] = string(e.raw)
		case isNull:
		default:
			d.refuse(e.value, "must be a string, not %s", e.kind)
		}
	}
	return m
}

func (d *decoder) artifacts(v value, def *Definition) {
	known := map[string]func(value){}
	for _, name := range artifactNames {
		known[name] = func(v value) {
			if s := d.text(v); s != "" {
				def.Artifacts[name] = s
			}
		}
	}
	d.fields(v, known)
}

func (d *decoder) environment(v value, def *Definition) {
	d.fields(v, map[string]func(value){
		"platform": func(v value) { def.Platform = d.text(v) },
		"arch":     func(v value) { def.Arch = d.text(v) },
		// console is the same constant in every definition (kernelci-wire.md
		// 3.4, 10).
		"console": func(v value) { d.is(v, isObject) },
		"requirements": func(v value) {
			if empty := v.kind == isNull || len(v.object)+len(v.list) == 0 && v.scalar == nil; !empty {
				d.note(v.path, "is not supported and was ignored")
			}
		},
	})
}

var hex64 = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)

// integrity reads integrity.sha256. Keys that begin with an underscore are
// remarks: upstream writes a _comment and no checksum.
func (d *decoder) integrity(v value, def *Definition) {
	d.fields(v, map[string]func(value){"sha256": func(v value) {
		if !d.is(v, isObject) {
			return
		}
		for _, m := range v.object {
			if strings.HasPrefix(m.key, "_") || !d.is(m.value, isString) {
				continue
			}
			sum := m.scalar.(string)
			if !hex64.MatchString(sum) {
				d.refuse(m.value, "must be 64 hex digits, not %q", clip(sum))
				return
			}
			if !slices.Contains(artifactNames, m.key) {
				d.note(m.path, "is a checksum of no known artifact and was ignored")
				continue
			}
			def.Checksums[m.key] = strings.ToLower(sum)
		}
	}})
}

func (d *decoder) tests(v value, def *Definition) {
	const most = 256
	if !d.is(v, isList) {
		return
	}
	if len(v.list) > most {
		d.refuse(v, "has %d elements; at most %d are allowed", len(v.list), most)
		return
	}
	for _, e := range v.list {
		if e.kind != isObject {
			d.refuse(e, "must be an object, not %s", e.kind)
			return
		}
		def.Tests = append(def.Tests, d.test(e))
	}
}

func (d *decoder) test(v value) Test {
	t := Test{Parameters: map[string]string{}}
	d.fields(v, map[string]func(value){
		"id":            func(v value) { t.ID = d.text(v) },
		"type":          func(v value) { t.Type = d.text(v) },
		"depends":       func(v value) { t.Depends = d.texts(v) },
		"timeout_s":     func(v value) { t.Timeout = d.seconds(v) },
		"subset":        func(v value) { t.Subset = d.compact(v) },
		"parameters":    func(v value) { t.Parameters = d.parameters(v) },
		"pre-commands":  func(v value) { t.Pre = d.texts(v) },
		"post-commands": func(v value) { t.Post = d.texts(v) },
	})
	if t.Timeout == 0 {
		t.Timeout = DefaultTimeout
		d.note(v.path, fmt.Sprintf("has no timeout_s; %s is used", DefaultTimeout))
	}
	return t
}

func (d *decoder) seconds(v value) time.Duration {
	if !d.is(v, isNumber) {
		return 0
	}
	n, err := v.scalar.(json.Number).Int64()
	switch {
	case err != nil:
		d.refuse(v, "must be a whole number of seconds, not %s", clip(string(v.raw)))
		return 0
	case n <= 0:
		d.refuse(v, "must be more than 0 seconds, not %d", n)
		return 0
	case n > int64(maxTimeout/time.Second):
		d.refuse(v, "is %d seconds, more than the %d that any test may take", n, int64(maxTimeout/time.Second))
		return 0
	}
	return time.Duration(n) * time.Second
}

func (d *decoder) compact(v value) string {
	if v.kind == isNull {
		return ""
	}
	var b bytes.Buffer
	if err := json.Compact(&b, v.raw); err != nil {
		d.refuse(v, "is not valid JSON: %v", err)
	}
	return b.String()
}

// parameters is a string of blank-separated k=v upstream; an object says the
// same.
func (d *decoder) parameters(v value) map[string]string {
	if v.kind == isObject {
		return d.pairs(v)
	}
	m := map[string]string{}
	for _, word := range strings.Fields(d.text(v)) {
		k, val, ok := strings.Cut(word, "=")
		if !ok || k == "" {
			d.refuse(v, "has %q, which is not key=value", clip(word))
			return m
		}
		if _, twice := m[k]; twice {
			d.refuse(v, "gives %q twice", clip(k))
			return m
		}
		m[k] = val
	}
	return m
}

func clip(s string) string {
	const longest = 80
	if len(s) > longest {
		return strings.ToValidUTF8(s[:longest], "") + "..."
	}
	return s
}
