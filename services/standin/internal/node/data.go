package node

import (
	"encoding/json"
	"maps"
	"slices"
)

// CheckData checks data against the kind's model; the error is the text of the
// 400. The kind must be Known.
func (n *Node) CheckData() error {
	k := kinds[n.Kind]
	if k.data == nil || isNull(n.Data) {
		return nil
	}
	data, err := object(n.Data)
	if err != nil {
		return err
	}
	p := parser{loc: []any{"data"}}
	for _, name := range slices.Sorted(maps.Keys(data)) {
		if v := data[name]; !isNull(v) && slices.Contains(k.data, name) {
			p.datum(n.Kind, name, v)
		}
	}
	if len(p.found) > 0 {
		return badData{p.found.Text(k.class)}
	}
	return nil
}

type badData struct{ text string }

func (e badData) Error() string { return e.text }

func (p *parser) datum(kind, name string, v json.RawMessage) {
	switch name {
	case "kernel_revision", "test_revision":
		p.revision(name, v)
	case "misc":
		if _, err := object(v); err != nil {
			p.complain("dict_type", "Input should be a valid dictionary", plain(v), nil, name)
		}
	case "fragments", "architecture_filter":
		var l []string
		p.list(&l, map[string]json.RawMessage{name: v}, name, true)
	case "error_code":
		legal := ErrorCodes
		if kind == "checkout" {
			legal = []string{"node_timeout", "git_checkout_failure"}
		}
		var s string
		if json.Unmarshal(v, &s) != nil || !slices.Contains(legal, s) {
			p.complain("enum", "Input should be "+choices(legal), plain(v), nil, name)
		}
	default:
		var s string
		p.text(&s, v, name)
	}
}

func (p *parser) revision(name string, v json.RawMessage) {
	rev, err := object(v)
	if err != nil {
		p.complain("model_type", "Input should be a valid dictionary or instance of Revision", plain(v), nil, name)
		return
	}
	for _, key := range []string{"tree", "url", "branch", "commit"} {
		item, ok := rev[key]
		if !ok {
			p.complain("missing", "Field required", plain(v), nil, name, key)
			continue
		}
		var s string
		p.text(&s, item, name, key)
	}
}

// ClassText is the complaint about a document of the node's kind.
func (n *Node) ClassText(p Problems) string { return p.Text(kinds[n.Kind].class) }
