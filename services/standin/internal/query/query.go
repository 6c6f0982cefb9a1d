// Package query matches documents the way the original's MongoDB does, as far as
// its API lets a client ask (kernelci-wire.md 1.3, 1.5). Documents are what
// encoding/json makes with UseNumber; object ids and timestamps are strings.
package query

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Cond is one condition on a document.
type Cond struct {
	path []string
	// test sees every value found at the path; none when the field is missing.
	test func(found []any) bool
}

// Doc is a JSON object.
type Doc = map[string]any

// Equal is field == value. The texts true and false in any case mean booleans;
// every other text is compared as text, so that numbers never match.
func Equal(field, value string) Cond {
	var want any = value
	if b, ok := boolean(value); ok {
		want = b
	}
	return exactly(field, want)
}

func boolean(s string) (value, ok bool) {
	switch strings.ToLower(s) {
	case "true":
		return true, true
	case "false":
		return false, true
	}
	return false, false
}

func exactly(field string, want any) Cond {
	return Cond{strings.Split(field, "."), func(found []any) bool { return slices.ContainsFunc(found, func(v any) bool { return same(v, want) }) }}
}

// In is field ∈ values.
func In(field string, values []string) Cond {
	return Cond{strings.Split(field, "."), func(found []any) bool { return anyIn(found, values) }}
}

func anyIn(found []any, values []string) bool {
	return slices.ContainsFunc(found, func(v any) bool {
		s, ok := v.(string)
		return ok && slices.Contains(values, s)
	})
}

// Regexp is field =~ pattern; of an array any element may match.
func Regexp(field, pattern string) (Cond, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return Cond{}, fmt.Errorf("regular expression: %w", err)
	}
	return Cond{strings.Split(field, "."), func(found []any) bool {
		return slices.ContainsFunc(found, func(v any) bool { s, ok := v.(string); return ok && re.MatchString(s) })
	}}, nil
}

// Null is field == null, which a missing field is too.
func Null(field string) Cond {
	return Cond{strings.Split(field, "."), func(found []any) bool { return len(found) == 0 || slices.Contains(found, nil) }}
}

// Not is the opposite of c.
func Not(c Cond) Cond {
	return Cond{c.path, func(found []any) bool { return !c.test(found) }}
}

// Compare is field < value and so on: op is lt, lte, gt or gte. A decimal value
// compares with numbers, every other with texts.
func Compare(field, op, value string) Cond {
	var want any = value
	if value != "" && strings.Trim(value, "0123456789") == "" {
		want = json.Number(value)
	}
	return Cond{strings.Split(field, "."), func(found []any) bool {
		return slices.ContainsFunc(found, func(v any) bool {
			c, ok := order(v, want)
			switch {
			case !ok:
				return false
			case op == "lt":
				return c < 0
			case op == "lte":
				return c <= 0
			case op == "gt":
				return c > 0
			default:
				return c >= 0
			}
		})
	}}
}

// Operator is field__op=value of GET /nodes; ok is false for an operator that
// there is not.
func Operator(field, op, value string) (c Cond, ok bool, err error) {
	switch op {
	case "lt", "lte", "gt", "gte":
		return Compare(field, op, value), true, nil
	case "ne":
		if value == "null" {
			return Not(Null(field)), true, nil
		}
		return Not(exactly(field, number(value))), true, nil
	case "re":
		c, err = Regexp(field, value)
		return c, true, err
	case "in":
		return In(field, strings.Split(value, ",")), true, nil
	case "nin":
		return Not(In(field, strings.Split(value, ","))), true, nil
	}
	return Cond{}, false, nil
}

func number(s string) any {
	if s != "" && strings.Trim(s, "0123456789") == "" {
		return json.Number(s)
	}
	return s
}

// Match tells whether the document meets every condition.
func Match(doc Doc, conds []Cond) bool {
	var buf [4]any
	for _, c := range conds {
		if !c.test(lookup(doc, c.path, buf[:0])) {
			return false
		}
	}
	return true
}

// lookup follows the path into objects and, as MongoDB does, into the objects
// of arrays; an array at the end counts as itself and as each of its elements.
func lookup(v any, path []string, found []any) []any {
	if len(path) == 0 {
		found = append(found, v)
		if a, ok := v.([]any); ok {
			found = append(found, a...)
		}
		return found
	}
	switch v := v.(type) {
	case map[string]any:
		if next, ok := v[path[0]]; ok {
			return lookup(next, path[1:], found)
		}
	case []any:
		for _, e := range v {
			if m, ok := e.(map[string]any); ok {
				found = lookup(m, path, found)
			}
		}
	}
	return found
}

func same(a, b any) bool {
	switch a.(type) {
	case string, bool, nil:
		return a == b
	}
	c, ok := order(a, b)
	return ok && c == 0
}

// order compares two texts or two numbers; other pairs have no order.
func order(a, b any) (int, bool) {
	switch a := a.(type) {
	case string:
		if b, ok := b.(string); ok {
			return strings.Compare(a, b), true
		}
	case json.Number:
		b, ok := b.(json.Number)
		if !ok {
			return 0, false
		}
		x, err1 := a.Float64()
		y, err2 := b.Float64()
		if err1 != nil || err2 != nil {
			return 0, false
		}
		switch {
		case x < y:
			return -1, true
		case x > y:
			return 1, true
		}
		return 0, true
	}
	return 0, false
}
