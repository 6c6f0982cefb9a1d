package jobdef

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxDepth of nesting. A definition needs 4.
const maxDepth = 32

// value is one JSON value and where it begins.
type value struct {
	path   string
	offset int
	// scalar is a string, json.Number, bool or nil; meaningless when object or
	// list is set.
	scalar any
	object []member
	list   []value
	kind   kind
	// raw is the value's text.
	raw []byte
}

type member struct {
	key string
	value
}

type kind string

const (
	isObject kind = "an object"
	isList   kind = "a list"
	isString kind = "a string"
	isNumber kind = "a number"
	isBool   kind = "true or false"
	isNull   kind = "null"
)

// reader walks text that is known to be valid JSON.
type reader struct {
	data []byte
	dec  *json.Decoder
}

// parse reads all of data as one JSON value.
func parse(data []byte) (value, error) {
	r := &reader{data: data}
	if i := invalidUTF8(data); i >= 0 {
		return value{}, r.fail(i, "", "is not UTF-8 text")
	}
	if err := r.syntax(); err != nil {
		return value{}, err
	}
	r.dec = json.NewDecoder(bytes.NewReader(data))
	r.dec.UseNumber()
	return r.value("", 0)
}

func invalidUTF8(data []byte) int {
	for i := 0; i < len(data); {
		c, n := utf8.DecodeRune(data[i:])
		if c == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}

// syntax refuses what is not exactly one JSON value.
func (r *reader) syntax() error {
	offset, reason := syntaxError(r.data)
	switch {
	case reason == "":
		return nil
	case len(bytes.TrimSpace(r.data)) == 0:
		return r.fail(0, "", "is empty")
	case r.truncated():
		return r.fail(len(r.data), "", "is cut off: the JSON ends too early")
	default:
		return r.fail(offset, "", "is not valid JSON: "+reason)
	}
}

// truncated tells whether more bytes could have made the invalid data valid:
// then one more byte that JSON has nowhere is the first to be refused.
func (r *reader) truncated() bool {
	offset, _ := syntaxError(append(bytes.Clone(r.data), 0))
	return offset == len(r.data)
}

// syntaxError gives the offset of the first byte that cannot be there and the
// reason, which is empty for valid JSON.
func syntaxError(data []byte) (int, string) {
	var whole json.RawMessage
	err := json.Unmarshal(data, &whole)
	if err == nil {
		return 0, ""
	}
	var se *json.SyntaxError
	if !errors.As(err, &se) {
		return 0, err.Error()
	}
	// Offset counts the bytes read, the offending one included.
	return max(int(se.Offset)-1, 0), se.Error()
}

func (r *reader) fail(offset int, path, reason string) error {
	before := r.data[:offset]
	return &DecodeError{
		Offset: offset, Path: path, Reason: reason,
		Line:   bytes.Count(before, []byte("\n")) + 1,
		Column: offset - (bytes.LastIndexByte(before, '\n') + 1) + 1,
	}
}

// start is where the next token begins: the decoder's own offset is at the end
// of the last one, before separators and blanks.
func (r *reader) start() int {
	i := int(r.dec.InputOffset())
	for i < len(r.data) && strings.IndexByte(" \t\r\n,:", r.data[i]) >= 0 {
		i++
	}
	return i
}

func (r *reader) value(path string, depth int) (value, error) {
	v := value{path: path, offset: r.start()}
	if depth > maxDepth {
		return v, r.fail(v.offset, path, fmt.Sprintf("is nested deeper than %d", maxDepth))
	}
	tok, err := r.dec.Token()
	if err != nil {
		return v, r.fail(v.offset, path, "is not valid JSON: "+err.Error())
	}
	switch t := tok.(type) {
	case json.Delim:
		if t == '{' {
			err = r.objectInto(&v, depth)
		} else {
			err = r.listInto(&v, depth)
		}
	case string:
		v.kind, v.scalar = isString, t
		err = r.noNUL(v.offset, path, t)
	case json.Number:
		v.kind, v.scalar = isNumber, t
	case bool:
		v.kind, v.scalar = isBool, t
	case nil:
		v.kind = isNull
	}
	v.raw = r.data[v.offset:r.dec.InputOffset()]
	return v, err
}

// noNUL refuses what no file name, command line or database column can hold.
func (r *reader) noNUL(offset int, path, s string) error {
	if strings.IndexByte(s, 0) >= 0 {
		return r.fail(offset, path, `contains a NUL character (\u0000)`)
	}
	return nil
}

func (r *reader) objectInto(v *value, depth int) error {
	v.kind = isObject
	seen := map[string]bool{}
	for r.dec.More() {
		at := r.start()
		tok, err := r.dec.Token()
		key, _ := tok.(string)
		if err != nil {
			return r.fail(at, v.path, "is not valid JSON: "+err.Error())
		}
		path := join(v.path, key)
		if seen[key] {
			return r.fail(at, path, "is given twice")
		}
		if err := r.noNUL(at, v.path, key); err != nil {
			return err
		}
		seen[key] = true
		m, err := r.value(path, depth+1)
		if err != nil {
			return err
		}
		v.object = append(v.object, member{key, m})
	}
	_, err := r.dec.Token()
	return err
}

func (r *reader) listInto(v *value, depth int) error {
	v.kind = isList
	for r.dec.More() {
		e, err := r.value(fmt.Sprintf("%s[%d]", v.path, len(v.list)), depth+1)
		if err != nil {
			return err
		}
		v.list = append(v.list, e)
	}
	_, err := r.dec.Token()
	return err
}

func join(path, key string) string {
	const longest = 64
	if len(key) > longest {
		key = strings.ToValidUTF8(key[:longest], "") + "..."
	}
	if q := strconv.Quote(key); q != `"`+key+`"` {
		key = q
	}
	if path == "" {
		return key
	}
	return path + "." + key
}
