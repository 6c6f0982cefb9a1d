package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// Sections are all that a pullab configuration may have, whichever service
// reads it.
var Sections = []string{
	"command", "kernelci", "logs", "nats", "poller", "qemu", "report", "runner", "submitter", "translator",
}

// predecessorSections are what the Python predecessor's config.json has beside
// the kernelci block (predecessor.md 1.5).
var predecessorSections = []string{
	"auth_credentials", "cloudwatch", "docker", "ecr", "ecs", "external_storage", "force_recreate_roles",
	"provider", "region", "roles", "storage", "test_config",
}

type section struct {
	name   string
	value  reflect.Value
	fields []*field
}

type field struct {
	key, def, help string
	env            []string
	value          reflect.Value
}

func (f *field) secret() bool { return f.value.Type() == reflect.TypeFor[Secret]() }

func (s section) field(key string) *field {
	i := slices.IndexFunc(s.fields, func(f *field) bool { return f.key == key })
	if i < 0 {
		return nil
	}
	return s.fields[i]
}

func (s section) keys() []string {
	var ks []string
	for _, f := range s.fields {
		ks = append(ks, f.key)
	}
	return ks
}

func names(ss []section) []string {
	var ns []string
	for _, s := range ss {
		ns = append(ns, s.name)
	}
	return ns
}

// sectionsOf reads the tags. A struct that is not of the documented form is a
// programmer's mistake and panics.
func sectionsOf(dst any) []section {
	v := reflect.ValueOf(dst)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("config: want a pointer to a struct, not %T", dst))
	}
	var ss []section
	for _, g := range groupsOf(v.Elem()) {
		ss = append(ss, groupSections(g)...)
	}
	return ss
}

// groupsOf gives the structs below v that have sections, v itself first.
func groupsOf(v reflect.Value) []reflect.Value {
	gs := []reflect.Value{v}
	for i := range v.NumField() {
		t := v.Type().Field(i)
		if t.Tag.Get("section") == "" && t.IsExported() && t.Type.Kind() == reflect.Struct {
			gs = append(gs, groupsOf(v.Field(i))...)
		}
	}
	return gs
}

func groupSections(v reflect.Value) []section {
	var ss []section
	for i := range v.NumField() {
		t := v.Type().Field(i)
		name := t.Tag.Get("section")
		if name == "" {
			continue
		}
		s := section{name: name, value: v.Field(i)}
		for j := range s.value.NumField() {
			ft := s.value.Type().Field(j)
			key := ft.Tag.Get("key")
			if key == "" {
				continue
			}
			f := &field{key: key, def: ft.Tag.Get("default"), help: ft.Tag.Get("help"), value: s.value.Field(j)}
			if e := ft.Tag.Get("env"); e != "" {
				f.env = strings.Split(e, ",")
			}
			s.fields = append(s.fields, f)
		}
		ss = append(ss, s)
	}
	return ss
}

// maxFile bounds a configuration file, in bytes.
const maxFile = 4 << 20

func parseFile(path string) (map[string]any, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w. Give an existing file with --config or PULLAB_BASE_CONFIG", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("configuration %s is larger than %d MiB: this is not a pullab configuration", path, maxFile>>20)
	}
	doc, err := parse(b, strings.HasSuffix(path, ".json"))
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return doc, nil
}

// parse reads JSON or YAML; JSON errors carry the byte offset, YAML errors the
// line.
func parse(b []byte, isJSON bool) (map[string]any, error) {
	if !isJSON {
		j, err := yaml.YAMLToJSONStrict(b)
		if err != nil {
			return nil, err
		}
		b = j
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var doc map[string]any
	if err := d.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("at byte %d: %w", d.InputOffset(), err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("at byte %d: something follows the object", d.InputOffset())
	}
	return doc, nil
}

// assign puts a value from a file (decoded JSON) or from text into a field.
func assign(dst reflect.Value, v any) error {
	if n, ok := v.(json.Number); ok {
		v = n.String()
		if dst.Kind() == reflect.String {
			return errors.New("must be a string: put it in quotes")
		}
	}
	switch x := v.(type) {
	case string:
		return assignText(dst, strings.TrimSpace(x))
	case bool:
		switch dst.Kind() {
		case reflect.Bool:
		case reflect.String:
			return errors.New(`must be a string: YAML reads a bare on, off, yes or no as true or false, so put it in quotes`)
		default:
			return fmt.Errorf("must be %s, not true or false", kindName(dst))
		}
		dst.SetBool(x)
	case []any:
		return assignList(dst, x)
	case map[string]any:
		return assignMap(dst, x)
	default:
		return fmt.Errorf("must be %s", kindName(dst))
	}
	return nil
}

func assignList(dst reflect.Value, xs []any) error {
	if dst.Type() != reflect.TypeFor[[]string]() {
		return fmt.Errorf("must be %s, not a list", kindName(dst))
	}
	var ss []string
	for i, x := range xs {
		s, ok := x.(string)
		if !ok {
			return fmt.Errorf("element %d must be a string", i+1)
		}
		ss = append(ss, s)
	}
	dst.Set(reflect.ValueOf(ss))
	return nil
}

func assignMap(dst reflect.Value, xs map[string]any) error {
	if dst.Type() != reflect.TypeFor[map[string]string]() {
		return fmt.Errorf("must be %s, not an object", kindName(dst))
	}
	m := map[string]string{}
	for k, x := range xs {
		switch y := x.(type) {
		case string:
			m[k] = y
		case json.Number:
			m[k] = y.String()
		case bool:
			m[k] = strconv.FormatBool(y)
		default:
			return fmt.Errorf("value of %q must be a string", k)
		}
	}
	dst.Set(reflect.ValueOf(m))
	return nil
}

func assignText(dst reflect.Value, s string) error {
	switch dst.Interface().(type) {
	case string, Secret:
		dst.SetString(s)
	case bool:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return fmt.Errorf("%q is not true or false", s)
		}
		dst.SetBool(b)
	case int:
		n, err := strconv.Atoi(s)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", s)
		}
		dst.SetInt(int64(n))
	case float64:
		n, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return fmt.Errorf("%q is not a number", s)
		}
		dst.SetFloat(n)
	case time.Duration:
		d, err := time.ParseDuration(s)
		if err != nil {
			return fmt.Errorf("%q is not a duration: write it with a unit, as in 90s, 15m or 24h", s)
		}
		dst.SetInt(int64(d))
	case []string:
		dst.Set(reflect.ValueOf(splitList(s)))
	case map[string]string:
		return assignPairs(dst, s)
	default:
		panic("config: no such field type: " + dst.Type().String())
	}
	return nil
}

func splitList(s string) []string {
	var out []string
	for p := range strings.SplitSeq(s, ",") {
		if p = strings.TrimSpace(p); p != "" {
			out = append(out, p)
		}
	}
	return out
}

func assignPairs(dst reflect.Value, s string) error {
	m := map[string]string{}
	for _, p := range splitList(s) {
		k, v, ok := strings.Cut(p, "=")
		if !ok {
			return fmt.Errorf("%q: write it as name=value,name=value", p)
		}
		m[k] = v
	}
	dst.Set(reflect.ValueOf(m))
	return nil
}

func kindName(v reflect.Value) string {
	switch v.Interface().(type) {
	case string, Secret:
		return "a string"
	case bool:
		return "true or false"
	case int:
		return "a whole number"
	case float64:
		return "a number"
	case time.Duration:
		return `a duration such as "90s"`
	case []string:
		return "a list of strings"
	default:
		return "an object of strings"
	}
}

func format(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case []string:
		return strings.Join(x, ",")
	case map[string]string:
		var ps []string
		for _, k := range slices.Sorted(maps.Keys(x)) {
			ps = append(ps, k+"="+x[k])
		}
		return strings.Join(ps, ",")
	default:
		return fmt.Sprint(x)
	}
}

// suggest ends a complaint about a word: with the nearest known one, or with all
// of them.
func suggest(word string, known []string) string {
	if best := Nearest(word, known); best != "" {
		return fmt.Sprintf(": did you mean %q?", best)
	}
	return ": known are " + strings.Join(known, ", ")
}

// Nearest is the known word that a misspelled one most likely means; empty when
// none is near.
func Nearest(word string, known []string) string {
	best, at := "", len(word)/2+1
	for _, k := range known {
		d := distance(word, k)
		if word != "" && strings.HasPrefix(k, word) {
			d = 1
		}
		if d < at {
			best, at = k, d
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost = 1 + min(diag, row[j], row[j+1])
			}
			diag, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
