package kcidb

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

//go:embed kcidb-v5.3.schema.json
var schemaText []byte

// compiled is the KCIDB I/O schema v5.3, draft 7 with formats checked as
// production checks them (kernelci-wire.md section 4).
var compiled = sync.OnceValues(func() (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schemaText))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft7)
	c.AssertFormat()
	c.RegisterFormat(&jsonschema.Format{Name: "uri", Validate: checkURI})
	const name = "kcidb-v5.3.schema.json"
	if err := c.AddResource(name, doc); err != nil {
		return nil, err
	}
	return c.Compile(name)
})

// checkURI is rfc3987's URI: absolute, ASCII, everything else escaped.
func checkURI(v any) error {
	s, ok := v.(string)
	if !ok {
		return nil
	}
	for _, c := range s {
		if c <= ' ' || c >= 0x7f || strings.ContainsRune("\"<>\\^`{|}", c) {
			return fmt.Errorf("%q must be escaped in a URI", c)
		}
	}
	u, err := url.Parse(s)
	if err != nil {
		return errors.New("not a URI")
	}
	if !u.IsAbs() {
		return errors.New("not an absolute URI")
	}
	return nil
}

// Validate checks a submission against the schema and gives it decoded, numbers
// as float64.
func Validate(body []byte) (map[string]any, error) {
	schema, err := compiled()
	if err != nil {
		return nil, fmt.Errorf("the embedded KCIDB schema: %w", err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if err := schema.Validate(v); err != nil {
		return nil, err
	}
	doc, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("not an object")
	}
	floats(doc)
	return doc, nil
}

// floats turns the schema library's exact numbers into what encoding/json makes.
func floats(v any) any {
	switch v := v.(type) {
	case json.Number:
		f, err := v.Float64()
		if err != nil {
			return v.String()
		}
		return f
	case []any:
		for i := range v {
			v[i] = floats(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = floats(v[k])
		}
	}
	return v
}
