package config

import (
	"fmt"
	"reflect"
	"strings"
)

// Markdown documents the sections of the given configuration structs, each
// section once, in the order met: a table of key, environment, type, default
// and meaning. dsts are pointers to structs.
func Markdown(dsts ...any) string {
	var b strings.Builder
	seen := map[string]bool{}
	for _, dst := range dsts {
		for _, s := range sectionsOf(dst) {
			if seen[s.name] {
				continue
			}
			seen[s.name] = true
			fmt.Fprintf(&b, "\n## `%s`\n\n| Key | Environment | Type | Default | Meaning |\n| --- | --- | --- | --- | --- |\n", s.name)
			for _, f := range s.fields {
				fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", f.key, envNames(f), typeName(f.value), code(f.def), strings.ReplaceAll(f.help, "|", `\|`))
			}
		}
	}
	return b.String()
}

func envNames(f *field) string {
	var ns []string
	for _, e := range f.env {
		ns = append(ns, code(e))
		if f.secret() {
			ns = append(ns, code(e+"_FILE"))
		}
	}
	return strings.Join(ns, " ")
}

func typeName(v reflect.Value) string {
	switch v.Interface().(type) {
	case Secret:
		return "secret"
	case []string:
		return "list"
	case map[string]string:
		return "map"
	default:
		return strings.TrimPrefix(v.Type().String(), "time.")
	}
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}
