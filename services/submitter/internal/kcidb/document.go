package kcidb

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// MaxExcerpt is the longest log_excerpt, in code points (kernelci-wire.md
// section 4).
const MaxExcerpt = 16384

// Test is one row. Empty fields are left out: the schema allows null nowhere.
type Test struct {
	BuildID     string            `json:"build_id"`
	ID          string            `json:"id"`
	Origin      string            `json:"origin"`
	Comment     string            `json:"comment,omitempty"`
	StartTime   string            `json:"start_time,omitempty"`
	Duration    *float64          `json:"duration,omitempty"`
	Environment *Environment      `json:"environment,omitempty"`
	Path        string            `json:"path,omitempty"`
	Status      string            `json:"status,omitempty"`
	Misc        map[string]string `json:"misc,omitempty"`
	LogURL      string            `json:"log_url,omitempty"`
	LogExcerpt  string            `json:"log_excerpt,omitempty"`
	OutputFiles []Resource        `json:"output_files,omitempty"`
	Number      *Number           `json:"number,omitempty"`
}

// Environment is where a test ran.
type Environment struct {
	Comment string            `json:"comment,omitempty"`
	Misc    map[string]string `json:"misc,omitempty"`
}

// Resource is a named file.
type Resource struct {
	Name string `json:"name"`
	URL  string `json:"url"`
}

// Number is a measurement.
type Number struct {
	Value  float64 `json:"value"`
	Unit   string  `json:"unit,omitempty"`
	Prefix string  `json:"prefix,omitempty"`
}

// Rows is a piece of a document: rows as JSON with commas between them.
type Rows struct {
	JSON  []byte
	Count int
}

// Pack encodes rows and checks them as a document of their own. The error is a
// *Complaint when KCIDB would refuse them.
func Pack(tests []Test) (Rows, error) {
	var b bytes.Buffer
	for i, t := range tests {
		j, err := json.Marshal(t)
		if err != nil {
			return Rows{}, fmt.Errorf("encoding row %s: %w", t.ID, err)
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(j)
	}
	r := Rows{JSON: b.Bytes(), Count: len(tests)}
	return r, Check(Document(r))
}

const (
	head = `{"version":{"major":5,"minor":3},"tests":[`
	tail = `]}`
)

// Document joins rows to a tests-only document. Rows that were each checked
// give a document that passes: no rule of the schema spans two rows.
func Document(rows ...Rows) []byte {
	size := len(head) + len(tail)
	for _, r := range rows {
		size += len(r.JSON) + 1
	}
	b := append(make([]byte, 0, size), head...)
	for i, r := range rows {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, r.JSON...)
	}
	return append(b, tail...)
}
