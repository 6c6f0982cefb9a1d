package kernelci

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// decodeError is a JSON error and where it is.
type decodeError struct {
	offset int64
	err    error
}

func (e *decodeError) Error() string { return e.err.Error() }
func (e *decodeError) Unwrap() error { return e.err }

// unmarshal reads one JSON value and nothing after it into v.
func unmarshal(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		return located(err, d.InputOffset(), b)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return &decodeError{d.InputOffset(), errors.New("something follows the JSON value")}
	}
	return nil
}

// located finds the offset and words an error of encoding/json.
func located(err error, at int64, b []byte) error {
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case errors.Is(err, io.EOF) && len(bytes.TrimSpace(b)) == 0:
		return &decodeError{int64(len(b)), errors.New("the body is empty, not JSON")}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &decodeError{int64(len(b)), fmt.Errorf("the JSON breaks off: %w", io.ErrUnexpectedEOF)}
	case errors.As(err, &syntax):
		at = syntax.Offset
		if at <= 1 {
			err = fmt.Errorf("not JSON (%w): begins with %.40q", err, oneLine(string(b[:min(len(b), 80)])))
		}
	case errors.As(err, &typ):
		at = typ.Offset
		err = fmt.Errorf("%s is a %s, wanted %s", cmp.Or(typ.Field, "the value"), typ.Value, typ.Type)
	}
	return &decodeError{at, err}
}

// bad makes a decodeError into a BodyError.
func (k call) bad(err error) error {
	var d *decodeError
	if errors.As(err, &d) {
		return &BodyError{k.method, k.path, d.offset, d.err}
	}
	return &BodyError{k.method, k.path, 0, err}
}

// stamp is a timestamp of the API; null is the zero time.
type stamp struct{ time.Time }

func (s *stamp) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return fmt.Errorf("a timestamp is a string, not %.40s", b)
	}
	t, err := ParseTime(text)
	s.Time = t
	return err
}

var layouts = []string{"2006-01-02T15:04:05Z07:00", "2006-01-02T15:04:05", "2006-01-02T15:04:05Z0700", "2006-01-02"}

// ParseTime reads the API's naive UTC timestamps, with or without fraction and
// with or without an offset.
func ParseTime(s string) (time.Time, error) {
	text := s
	if len(text) > 10 && text[10] == ' ' {
		text = text[:10] + "T" + text[11:]
	}
	for _, l := range layouts {
		// Parse takes a fraction after the seconds without being told.
		if t, err := time.Parse(l, text); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%.60q is not a timestamp as kernelci-api writes it (2026-08-20T10:05:12.874000)", s)
}

// FormatTime writes a timestamp as the API does, in microseconds, without an
// offset: a "+" in a query would have to be escaped.
func FormatTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000") }

// nodeDoc is a node as the API sends it (kernelci-wire.md 2.1). Absent and null
// fields are zero.
type nodeDoc struct {
	ID           string             `json:"id"`
	Kind         string             `json:"kind"`
	Name         string             `json:"name"`
	Path         []string           `json:"path"`
	Group        string             `json:"group"`
	Parent       string             `json:"parent"`
	State        string             `json:"state"`
	Result       string             `json:"result"`
	Artifacts    map[string]*string `json:"artifacts"`
	Created      stamp              `json:"created"`
	Updated      stamp              `json:"updated"`
	Timeout      stamp              `json:"timeout"`
	Owner        string             `json:"owner"`
	Submitter    string             `json:"submitter"`
	RetryCounter int                `json:"retry_counter"`
	Data         struct {
		Runtime        string          `json:"runtime"`
		Platform       string          `json:"platform"`
		JobID          string          `json:"job_id"`
		Arch           string          `json:"arch"`
		Compiler       string          `json:"compiler"`
		Defconfig      string          `json:"defconfig"`
		ConfigFull     string          `json:"config_full"`
		KernelType     string          `json:"kernel_type"`
		ErrorCode      string          `json:"error_code"`
		ErrorMsg       string          `json:"error_msg"`
		KernelRevision json.RawMessage `json:"kernel_revision"`
	} `json:"data"`
}

// decodeNode reads a node; nil for null.
func decodeNode(b []byte) (*Node, error) {
	n, err := decodeTyped(b)
	if err != nil || n == nil {
		return nil, err
	}
	return n, unmarshal(b, &n.Doc)
}

// decodeTyped leaves Doc out: in a page of a thousand events it would be decoded
// for nobody, since whoever writes a node reads it anew.
func decodeTyped(b []byte) (*Node, error) {
	var d *nodeDoc
	if err := unmarshal(b, &d); err != nil || d == nil {
		return nil, err
	}
	if d.ID == "" {
		return nil, &decodeError{0, errors.New("a node without an id")}
	}
	n := &Node{
		ID: d.ID, Kind: d.Kind, Name: d.Name, Path: d.Path, Group: d.Group, Parent: d.Parent,
		State: d.State, Result: d.Result, Owner: d.Owner, Submitter: d.Submitter, RetryCounter: d.RetryCounter,
		Created: d.Created.Time, Updated: d.Updated.Time, Timeout: d.Timeout.Time,
		Data: Data{
			Runtime: d.Data.Runtime, Platform: d.Data.Platform, JobID: d.Data.JobID,
			Arch: d.Data.Arch, Compiler: d.Data.Compiler, Defconfig: d.Data.Defconfig,
			ConfigFull: d.Data.ConfigFull, KernelType: d.Data.KernelType,
			ErrorCode: d.Data.ErrorCode, ErrorMsg: d.Data.ErrorMsg, KernelRevision: d.Data.KernelRevision,
		},
	}
	if string(n.Data.KernelRevision) == "null" {
		n.Data.KernelRevision = nil
	}
	for name, u := range d.Artifacts {
		if u == nil {
			continue
		}
		if n.Artifacts == nil {
			n.Artifacts = make(map[string]string, len(d.Artifacts))
		}
		n.Artifacts[name] = *u
	}
	return n, nil
}

// elements splits a JSON array, so that each element is decoded on its own.
// offsets are the elements' ends.
func elements(b []byte) (items []json.RawMessage, offsets []int64, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	t, err := d.Token()
	if err != nil {
		return nil, nil, located(err, d.InputOffset(), b)
	}
	if t != json.Delim('[') {
		return nil, nil, &decodeError{d.InputOffset(), fmt.Errorf("wanted a list, it begins with %.40q", oneLine(string(b[:min(len(b), 80)])))}
	}
	for d.More() {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, nil, located(err, d.InputOffset(), b)
		}
		items, offsets = append(items, raw), append(offsets, d.InputOffset())
	}
	if _, err := d.Token(); err != nil {
		return nil, nil, located(err, d.InputOffset(), b)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, nil, &decodeError{d.InputOffset(), errors.New("something follows the list")}
	}
	return items, offsets, nil
}

// decodeEvents reads a page. Only a page that is not a list is an error as a
// whole.
func decodeEvents(b []byte) ([]Event, error) {
	items, ends, err := elements(b)
	if err != nil {
		return nil, err
	}
	events := make([]Event, len(items))
	for i, raw := range items {
		events[i] = decodeEvent(raw)
		if err := events[i].Err; err != nil {
			var d *decodeError
			at := ends[i] - int64(len(raw))
			if errors.As(err, &d) {
				at += d.offset
			}
			events[i].Err = fmt.Errorf("event %d of the page (id %.40q), byte %d: %w", i+1, events[i].ID, at, err)
		}
	}
	return events, nil
}

// decodeEvent takes field by field, so that what is good of a bad event is
// known: its id and time above all.
func decodeEvent(raw json.RawMessage) Event {
	var doc struct {
		ID        json.RawMessage `json:"id"`
		Timestamp json.RawMessage `json:"timestamp"`
		Channel   json.RawMessage `json:"channel"`
		Data      json.RawMessage `json:"data"`
		Node      json.RawMessage `json:"node"`
	}
	if err := unmarshal(raw, &doc); err != nil {
		return Event{Err: err}
	}
	var e Event
	var errs []error
	field := func(name string, raw json.RawMessage, v any) {
		if len(raw) == 0 {
			return
		}
		if err := unmarshal(raw, v); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	var at stamp
	field("id", doc.ID, &e.ID)
	field("timestamp", doc.Timestamp, &at)
	field("channel", doc.Channel, &e.Channel)
	e.Timestamp = at.Time
	if len(errs) == 0 && at.IsZero() {
		errs = append(errs, errors.New("an event without a timestamp"))
	}
	if err := e.about(doc.Data); err != nil {
		errs = append(errs, err)
	}
	if len(doc.Node) > 0 {
		n, err := decodeTyped(doc.Node)
		if err != nil {
			errs = append(errs, fmt.Errorf("node: %w", err))
		}
		e.Node = n
	}
	e.Err = errors.Join(errs...)
	if e.Err != nil {
		e.Node = nil
	}
	return e
}

// about reads data, which is only a node's on the channel of nodes: on others
// it is anything that was published.
func (e *Event) about(raw json.RawMessage) error {
	if len(raw) == 0 {
		return nil
	}
	var d struct {
		ID string `json:"id"`
		Op string `json:"op"`
	}
	if err := unmarshal(raw, &d); err != nil {
		if e.Channel == "node" {
			return fmt.Errorf("data: %w", err)
		}
		return nil
	}
	e.NodeID, e.Op = d.ID, d.Op
	return nil
}

// decodePage reads a page of /nodes.
func decodePage(b []byte) (nodes []*Node, total int, err error) {
	var page struct {
		Items json.RawMessage `json:"items"`
		Total int             `json:"total"`
	}
	if err := unmarshal(b, &page); err != nil {
		return nil, 0, err
	}
	if len(page.Items) == 0 {
		return nil, 0, &decodeError{0, errors.New("a page without items")}
	}
	items, ends, err := elements(page.Items)
	if err != nil {
		return nil, 0, err
	}
	var bad ItemsError
	for i, raw := range items {
		n, err := decodeNode(raw)
		if err == nil && n == nil {
			err = errors.New("null instead of a node")
		}
		if err != nil {
			bad.Errs = append(bad.Errs, fmt.Errorf("node %d of the page, byte %d of the items: %w", i+1, ends[i]-int64(len(raw)), err))
			continue
		}
		nodes = append(nodes, n)
	}
	if bad.Errs != nil {
		return nodes, page.Total, &bad
	}
	return nodes, page.Total, nil
}

// eventsQuery is in the guide's order, colons readable.
func eventsQuery(q EventQuery) string {
	var parts []string
	add := func(k, v string) {
		if v != "" {
			parts = append(parts, k+"="+escape(v))
		}
	}
	add("state", q.State)
	add("kind", q.Kind)
	add("channel", q.Channel)
	if q.Recursive {
		add("recursive", "true")
	}
	if q.Limit > 0 {
		add("limit", fmt.Sprint(q.Limit))
	}
	if !q.From.IsZero() {
		add("from", FormatTime(q.From))
	}
	if q.Offset > 0 {
		add("offset", fmt.Sprint(q.Offset))
	}
	return strings.Join(parts, "&")
}
