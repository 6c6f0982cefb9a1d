package kcidb

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

//go:embed kcidb-v5.3.schema.json
var schemaJSON []byte

const (
	// maxColumn is the width of two columns of the dashboard's database that the
	// schema does not know of; a longer value fails every file of the ingester's
	// transaction (kernelci-wire.md 5.4 point 7).
	maxColumn = 100
	// maxProblems are named in one Complaint; maxProblem is one's length.
	maxProblems = 5
	maxProblem  = 300
)

// Complaint is why KCIDB would refuse a document: each problem names the JSON
// path and the rule.
type Complaint struct {
	Problems []string
	// More problems were found than are named.
	More int
}

func (c *Complaint) Error() string {
	s := "not a KCIDB v5.3 document: " + strings.Join(c.Problems, "; ")
	if c.More > 0 {
		s += fmt.Sprintf("; and %d more", c.More)
	}
	return s
}

func (c *Complaint) add(path []string, rule, text string) {
	if len(c.Problems) == maxProblems {
		c.More++
		return
	}
	p := jsonPath(path) + ": " + rule + ": " + strings.ReplaceAll(text, "\x00", `\0`)
	if len(p) > maxProblem {
		p = strings.ToValidUTF8(p[:maxProblem], "") + "…"
	}
	c.Problems = append(c.Problems, p)
}

// jsonPath writes a location as tests[0].environment.misc.
func jsonPath(path []string) string {
	var b strings.Builder
	b.WriteByte('$')
	for _, p := range path {
		if _, err := strconv.Atoi(p); err == nil {
			b.WriteString("[" + p + "]")
			continue
		}
		b.WriteString("." + p)
	}
	return b.String()
}

// Check tells whether KCIDB's ingester would store the document: against the
// v5.3 schema with formats asserted, as production does, and against the traps
// that lie outside the schema. The error is a *Complaint, or says at which byte
// the document is no JSON.
//
// In one respect it is stricter than production: Python's $ also matches before
// a final newline, Go's does not, so "boot\n" is no path here.
func Check(doc []byte) error {
	v, err := decode(doc)
	if err != nil {
		return err
	}
	var c Complaint
	var invalid *jsonschema.ValidationError
	switch err := compiled().Validate(v); {
	case errors.As(err, &invalid):
		explain(&c, invalid)
	case err != nil:
		return fmt.Errorf("checking against the KCIDB schema: %w", err)
	}
	traps(&c, v)
	if len(c.Problems) > 0 {
		return &c
	}
	return nil
}

func decode(doc []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("not JSON, at byte %d: %w", d.InputOffset(), err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("not one JSON document: something follows at byte %d", d.InputOffset())
	}
	return v, nil
}

// compiled is the schema. It is part of the program, so failing to compile is a
// mistake of ours that every test would see.
var compiled = sync.OnceValue(func() *jsonschema.Schema {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schemaJSON))
	if err != nil {
		panic(fmt.Errorf("embedded KCIDB schema: %w", err))
	}
	c := jsonschema.NewCompiler()
	// io:README.md says to take draft 7 where a validator wants to know.
	c.DefaultDraft(jsonschema.Draft7)
	c.AssertFormat()
	c.RegisterFormat(&jsonschema.Format{Name: "uri", Validate: ofString(uri)})
	c.RegisterFormat(&jsonschema.Format{Name: "date-time", Validate: ofString(dateTime)})
	const name = "kcidb-v5.3.schema.json"
	if err := c.AddResource(name, doc); err != nil {
		panic(fmt.Errorf("embedded KCIDB schema: %w", err))
	}
	return c.MustCompile(name)
})

// explain collects the innermost causes.
func explain(c *Complaint, e *jsonschema.ValidationError) {
	for _, cause := range e.Causes {
		explain(c, cause)
	}
	if len(e.Causes) > 0 {
		return
	}
	kw := e.ErrorKind.KeywordPath()
	rule := "schema"
	if len(kw) > 0 {
		rule = kw[0]
	}
	c.add(e.InstanceLocation, rule, e.ErrorKind.LocalizedString(message.NewPrinter(language.English)))
}

// traps are the rules outside the schema (kernelci-wire.md 5.4 point 7).
func traps(c *Complaint, v any) {
	doc, ok := v.(map[string]any)
	if !ok {
		return
	}
	for kind, rows := range doc {
		list, _ := rows.([]any)
		for i, row := range list {
			r, ok := row.(map[string]any)
			if !ok {
				continue
			}
			at := []string{kind, strconv.Itoa(i)}
			column(c, append(at, "origin"), r["origin"])
			noNUL(c, append(at, "misc"), r["misc"])
			env, _ := r["environment"].(map[string]any)
			misc, _ := env["misc"].(map[string]any)
			column(c, append(at, "environment", "misc", "platform"), misc["platform"])
			noNUL(c, append(at, "environment", "misc"), env["misc"])
		}
	}
}

func column(c *Complaint, at []string, v any) {
	if s, ok := v.(string); ok && utf8.RuneCountInString(s) > maxColumn {
		c.add(at, "column width", fmt.Sprintf("%d characters, the dashboard's database takes %d", utf8.RuneCountInString(s), maxColumn))
	}
}

func noNUL(c *Complaint, at []string, v any) {
	at = at[:len(at):len(at)]
	switch x := v.(type) {
	case string:
		if strings.ContainsRune(x, 0) {
			c.add(at, "jsonb", "contains a NUL, which PostgreSQL cannot store")
		}
	case []any:
		for i, e := range x {
			noNUL(c, append(at, strconv.Itoa(i)), e)
		}
	case map[string]any:
		for k, e := range x {
			if strings.ContainsRune(k, 0) {
				c.add(at, "jsonb", "a key contains a NUL, which PostgreSQL cannot store")
			}
			noNUL(c, append(at, k), e)
		}
	}
}
