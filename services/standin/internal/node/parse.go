package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pullab/pullab/services/standin/internal/pytime"
)

// Problem is one violation, as pydantic lists it.
type Problem struct {
	Type  string         `json:"type"`
	Loc   []any          `json:"loc"`
	Msg   string         `json:"msg"`
	Input any            `json:"input"`
	Ctx   map[string]any `json:"ctx,omitempty"`
}

// Problems is a body that does not fit the model: 422 at the door, 400 with
// Text when the model is parsed inside a handler.
type Problems []Problem

func (p Problems) Error() string { return p.Text("Node") }

// Text is pydantic's multi-line complaint about an object of class.
func (p Problems) Text(class string) string {
	var b strings.Builder
	plural := "s"
	if len(p) == 1 {
		plural = ""
	}
	fmt.Fprintf(&b, "%d validation error%s for %s", len(p), plural, class)
	for _, e := range p {
		loc := make([]string, len(e.Loc))
		for i, l := range e.Loc {
			loc[i] = fmt.Sprint(l)
		}
		fmt.Fprintf(&b, "\n%s\n  %s [type=%s, input_value=%s, input_type=%s]\n    For further information visit https://errors.pydantic.dev/2.13/v/%s",
			strings.Join(loc, "."), e.Msg, e.Type, Repr(e.Input), pyType(e.Input), e.Type)
	}
	return b.String()
}

// Repr is Python's repr of a JSON value, near enough for a message.
func Repr(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case bool:
		if v {
			return "True"
		}
		return "False"
	case string:
		q := "'"
		if strings.Contains(v, "'") && !strings.Contains(v, `"`) {
			q = `"`
		}
		return q + strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\r", `\r`, "\t", `\t`, q, `\`+q).Replace(v) + q
	default:
		b, err := json.Marshal(v)
		if err != nil {
			return "..."
		}
		return string(b)
	}
}

func pyType(v any) string {
	switch v := v.(type) {
	case nil:
		return "NoneType"
	case bool:
		return "bool"
	case string:
		return "str"
	case json.Number:
		if strings.ContainsAny(string(v), ".eE") {
			return "float"
		}
		return "int"
	case []any:
		return "list"
	default:
		return "dict"
	}
}

// parser reads fields and gathers what is wrong with them.
type parser struct {
	loc   []any
	found Problems
	// normal rewrites artifact URLs as pydantic's AnyHttpUrl does.
	normal bool
}

func (p *parser) complain(typ, msg string, input any, ctx map[string]any, loc ...any) {
	p.found = append(p.found, Problem{typ, append(slices.Clone(p.loc), loc...), msg, input, ctx})
}

// Parse reads a whole node. Fields left out get the model's defaults, unknown
// ones are dropped. loc is where the node stands in the body, for the report.
func Parse(raw []byte, now time.Time, loc ...any) (Node, error) {
	fields, err := object(raw)
	if err != nil {
		p := parser{loc: loc}
		p.complain("model_attributes_type", "Input should be a valid dictionary or object to extract fields from", plain(raw), nil)
		return Node{}, p.found
	}
	n := Defaults(now)
	p := parser{loc: loc, normal: true}
	for _, name := range []string{"name", "path"} {
		if _, ok := fields[name]; !ok {
			p.complain("missing", "Field required", plain(raw), nil, name)
		}
	}
	p.fill(&n, fields)
	if id := fields["_id"]; n.ID == "" && id != nil {
		p.optional(&n.ID, id, "_id")
	}
	if len(p.found) > 0 {
		return Node{}, p.found
	}
	return n, nil
}

// Patch is n with the given fields replaced. The violations are those of the
// kind's model.
func Patch(n Node, fields map[string]json.RawMessage) (Node, error) {
	p := parser{}
	p.fill(&n, fields)
	if len(p.found) > 0 {
		return Node{}, p.found
	}
	return n, nil
}

func object(raw []byte) (map[string]json.RawMessage, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, err
	}
	if m == nil {
		return nil, errors.New("null")
	}
	return m, nil
}

func plain(raw []byte) any {
	var v any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if d.Decode(&v) != nil {
		return nil
	}
	return v
}

func (p *parser) fill(n *Node, f map[string]json.RawMessage) {
	text := func(name string, dst *string) {
		if v, ok := f[name]; ok {
			p.text(dst, v, name)
		}
	}
	nullable := func(name string, dst **string) {
		if v, ok := f[name]; ok {
			*dst = nil
			if s := new(string); !isNull(v) && p.text(s, v, name) {
				*dst = s
			}
		}
	}
	stamp := func(name string, dst *Stamp) {
		if v, ok := f[name]; ok {
			p.stamp(dst, v, name)
		}
	}
	if v, ok := f["id"]; ok {
		p.optional(&n.ID, v, "id")
	}
	text("kind", &n.Kind)
	text("name", &n.Name)
	nullable("group", &n.Group)
	nullable("parent", &n.Parent)
	nullable("owner", &n.Owner)
	nullable("submitter", &n.Submitter)
	nullable("treeid", &n.TreeID)
	nullable("result", &n.Result)
	text("state", &n.State)
	p.enum(n.State, states, "state")
	if n.Result != nil {
		p.enum(*n.Result, results, "result")
	}
	p.list(&n.Path, f, "path", false)
	p.list(&n.JobFilter, f, "jobfilter", true)
	p.list(&n.PlatformFilter, f, "platform_filter", true)
	p.list(&n.UserGroups, f, "user_groups", false)
	p.artifacts(n, f)
	p.dict(&n.Data, f, "data")
	p.dict(&n.Debug, f, "debug")
	stamp("created", &n.Created)
	stamp("updated", &n.Updated)
	stamp("timeout", &n.Timeout)
	if v, ok := f["holdoff"]; ok {
		n.Holdoff = nil
		if s := new(Stamp); !isNull(v) && p.stamp(s, v, "holdoff") {
			n.Holdoff = s
		}
	}
	p.boolean(&n.KCIDBBridge, f, "processed_by_kcidb_bridge")
	p.integer(&n.RetryCounter, f, "retry_counter")
}

func isNull(v json.RawMessage) bool { return string(v) == "null" }

// optional reads an id, which may be null.
func (p *parser) optional(dst *string, v json.RawMessage, name string) {
	if !isNull(v) {
		p.text(dst, v, name)
	}
}

func (p *parser) text(dst *string, v json.RawMessage, loc ...any) bool {
	var s string
	if isNull(v) || json.Unmarshal(v, &s) != nil {
		p.complain("string_type", "Input should be a valid string", plain(v), nil, loc...)
		return false
	}
	*dst = s
	return true
}

func (p *parser) enum(s string, legal []string, loc ...any) {
	if !slices.Contains(legal, s) {
		p.complain("enum", "Input should be "+choices(legal), s, map[string]any{"expected": choices(legal)}, loc...)
	}
}

func choices(legal []string) string {
	q := make([]string, len(legal))
	for i, s := range legal {
		q[i] = "'" + s + "'"
	}
	return strings.Join(q[:len(q)-1], ", ") + " or " + q[len(q)-1]
}

func (p *parser) list(dst *[]string, f map[string]json.RawMessage, name string, null bool) {
	v, ok := f[name]
	if !ok {
		return
	}
	if null && isNull(v) {
		*dst = nil
		return
	}
	var items []json.RawMessage
	if isNull(v) || json.Unmarshal(v, &items) != nil {
		p.complain("list_type", "Input should be a valid list", plain(v), nil, name)
		return
	}
	out := make([]string, len(items))
	for i, it := range items {
		p.text(&out[i], it, name, i)
	}
	*dst = out
}

func (p *parser) dict(dst *json.RawMessage, f map[string]json.RawMessage, name string) {
	v, ok := f[name]
	if !ok {
		return
	}
	if _, err := object(v); err != nil && !isNull(v) {
		p.complain("dict_type", "Input should be a valid dictionary", plain(v), nil, name)
		return
	}
	var b bytes.Buffer
	if json.Compact(&b, v) == nil {
		*dst = b.Bytes()
	}
}

func (p *parser) stamp(dst *Stamp, v json.RawMessage, name string) bool {
	var s string
	if isNull(v) || json.Unmarshal(v, &s) != nil {
		p.complain("datetime_type", "Input should be a valid datetime", plain(v), nil, name)
		return false
	}
	t, ok := pytime.Parse(s)
	if !ok {
		p.complain("datetime_from_date_parsing", "Input should be a valid datetime or date", s, nil, name)
		return false
	}
	*dst = Stamp(pytime.Truncate(t))
	return true
}

func (p *parser) boolean(dst *bool, f map[string]json.RawMessage, name string) {
	if v, ok := f[name]; ok && (isNull(v) || json.Unmarshal(v, dst) != nil) {
		p.complain("bool_type", "Input should be a valid boolean", plain(v), nil, name)
	}
}

func (p *parser) integer(dst *int, f map[string]json.RawMessage, name string) {
	v, ok := f[name]
	if !ok {
		return
	}
	i, err := strconv.Atoi(string(v))
	if err != nil {
		p.complain("int_type", "Input should be a valid integer", plain(v), nil, name)
		return
	}
	*dst = i
}

func (p *parser) artifacts(n *Node, f map[string]json.RawMessage) {
	v, ok := f["artifacts"]
	if !ok {
		return
	}
	if isNull(v) {
		n.Artifacts = nil
		return
	}
	items, err := object(v)
	if err != nil {
		p.complain("dict_type", "Input should be a valid dictionary", plain(v), nil, "artifacts")
		return
	}
	n.Artifacts = make(map[string]string, len(items))
	for _, name := range slices.Sorted(maps.Keys(items)) {
		item := items[name]
		var s string
		if isNull(item) || json.Unmarshal(item, &s) != nil {
			p.complain("url_type", "URL input should be a string or URL", plain(item), nil, "artifacts", name)
			continue
		}
		u, typ, msg := httpURL(s)
		if typ != "" {
			p.complain(typ, msg, s, nil, "artifacts", name)
		}
		if p.normal {
			s = u
		}
		n.Artifacts[name] = s
	}
}

// httpURL is pydantic's AnyHttpUrl: it checks and gives the normal form.
func httpURL(s string) (normal, typ, msg string) {
	u, err := url.Parse(strings.TrimSpace(s))
	switch {
	case err != nil:
		return "", "url_parsing", "Input should be a valid URL, invalid character"
	case u.Scheme == "":
		return "", "url_parsing", "Input should be a valid URL, relative URL without a base"
	case u.Scheme != "http" && u.Scheme != "https":
		return "", "url_scheme", "URL scheme should be 'http' or 'https'"
	case u.Hostname() == "":
		return "", "url_parsing", "Input should be a valid URL, empty host"
	}
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if port == map[string]string{"http": "80", "https": "443"}[u.Scheme] {
		port = ""
	}
	if u.Host = host; strings.Contains(host, ":") {
		u.Host = "[" + host + "]"
	}
	if port != "" {
		u.Host = net.JoinHostPort(host, port)
	}
	if u.Path == "" {
		u.Path = "/"
	}
	return u.String(), "", ""
}
