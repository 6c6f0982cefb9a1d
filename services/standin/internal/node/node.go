// Package node is the node document of kernelci-api: its defaults, its checks
// and the pydantic texts with which it refuses what does not fit
// (kernelci-wire.md 2.1, 1.6).
package node

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pullab/pullab/services/standin/internal/pytime"
)

// Stamp is a timestamp on the wire: naive UTC, milliseconds.
type Stamp time.Time

// MarshalJSON writes the original's form.
func (s Stamp) MarshalJSON() ([]byte, error) { return json.Marshal(pytime.Format(time.Time(s))) }

// UnmarshalJSON reads any form that the original reads.
func (s *Stamp) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return err
	}
	t, ok := pytime.Parse(text)
	if !ok {
		return &json.UnsupportedValueError{Str: "timestamp " + text}
	}
	*s = Stamp(pytime.Truncate(t))
	return nil
}

// Time of the stamp.
func (s Stamp) Time() time.Time { return time.Time(s) }

// Node is one node; all 23 keys are always on the wire, in this order. A Node
// that is in a store is never changed; a write puts a new one in its place.
type Node struct {
	ID             string            `json:"id"`
	Kind           string            `json:"kind"`
	Name           string            `json:"name"`
	Path           []string          `json:"path"`
	Group          *string           `json:"group"`
	Parent         *string           `json:"parent"`
	State          string            `json:"state"`
	Result         *string           `json:"result"`
	Artifacts      map[string]string `json:"artifacts"`
	Data           json.RawMessage   `json:"data"`
	Debug          json.RawMessage   `json:"debug"`
	JobFilter      []string          `json:"jobfilter"`
	PlatformFilter []string          `json:"platform_filter"`
	Created        Stamp             `json:"created"`
	Updated        Stamp             `json:"updated"`
	Timeout        Stamp             `json:"timeout"`
	Holdoff        *Stamp            `json:"holdoff"`
	Owner          *string           `json:"owner"`
	Submitter      *string           `json:"submitter"`
	TreeID         *string           `json:"treeid"`
	UserGroups     []string          `json:"user_groups"`
	// KCIDBBridge is processed_by_kcidb_bridge.
	KCIDBBridge  bool `json:"processed_by_kcidb_bridge"`
	RetryCounter int  `json:"retry_counter"`
}

// Lifetime is the default timeout after creation.
const Lifetime = 6 * time.Hour

// Defaults is a node of which nothing but the model is known.
func Defaults(now time.Time) Node {
	return Node{
		Kind: "node", State: "running", Artifacts: map[string]string{},
		Data: json.RawMessage(`{}`), Debug: json.RawMessage(`{}`), PlatformFilter: []string{}, UserGroups: []string{},
		Created: Stamp(pytime.Truncate(now)), Updated: Stamp(pytime.Truncate(now)), Timeout: Stamp(pytime.Truncate(now.Add(Lifetime))),
	}
}

// DataMap is data as an object, numbers as json.Number; nil for null.
func (n *Node) DataMap() map[string]any {
	var m map[string]any
	d := json.NewDecoder(strings.NewReader(string(n.Data)))
	d.UseNumber()
	if d.Decode(&m) != nil {
		return nil
	}
	return m
}

// DataString is a text in data, empty when there is none.
func (n *Node) DataString(key string) string {
	s, _ := n.DataMap()[key].(string)
	return s
}

// Text is the text behind a nullable field.
func Text(p *string) string {
	if p == nil {
		return ""
	}
	return *p
}

// MayBecome tells whether the state machine lets the node go to state. A write
// of the same state always passes, so a done node can still be edited.
func (n *Node) MayBecome(state string) bool {
	return n.State == state || slices.Contains(transitions[n.State], state)
}

var transitions = map[string][]string{
	"running":   {"available", "closing", "done"},
	"available": {"closing", "done"},
	"closing":   {"done"},
}

var (
	states  = []string{"running", "available", "closing", "done"}
	results = []string{"pass", "fail", "skip", "incomplete"}
)

// ErrorCodes are the only legal values of data.error_code.
var ErrorCodes = []string{
	"invalid_job_params", "submit_error", "node_timeout", "Infrastructure", "Canceled", "Job", "Bug", "Test", "Configuration",
	"LAVATimeout", "MultinodeTimeout", "ObjectNotPersisted", "Unexisting permission codename.", "job_generation_error", "kbuild_internal_error",
}

// PatchFields are what PATCH accepts; it ignores the rest.
var PatchFields = []string{
	"state", "result", "artifacts", "data", "debug", "jobfilter", "platform_filter", "timeout", "holdoff", "processed_by_kcidb_bridge",
}

// testData are the keys of the TestData model, kbuildData and checkoutData those
// of theirs.
var (
	testData = []string{
		"error_code", "error_msg", "test_source", "test_revision", "platform", "device", "runtime", "job_id", "job_context", "regression",
		"kernel_revision", "arch", "defconfig", "config_full", "compiler", "kernel_type", "misc",
	}
	kbuildData = []string{
		"kernel_revision", "arch", "defconfig", "compiler", "error_code", "error_msg", "fragments", "config_full", "platform", "runtime",
		"job_id", "job_context", "kernel_type", "regression",
	}
	checkoutData = []string{"kernel_revision", "error_code", "error_msg", "architecture_filter"}
)

// kinds maps each submodel to its class name and the keys of its data; nil keys
// mean that any are kept.
var kinds = map[string]struct {
	class string
	data  []string
}{
	"checkout":   {"Checkout", checkoutData},
	"kbuild":     {"Kbuild", kbuildData},
	"job":        {"Job", testData},
	"test":       {"Test", testData},
	"process":    {"Process", nil},
	"regression": {"Regression", nil},
}

// Known tells whether kind is one of the submodels.
func Known(kind string) bool { _, ok := kinds[kind]; return ok }

// StripData drops the keys of data that the kind's model has not, and fills in
// null for the ones left out: what storing through the model does.
func (n *Node) StripData() error {
	keys := kinds[n.Kind].data
	if keys == nil || string(n.Data) == "null" {
		return nil
	}
	var data map[string]json.RawMessage
	if err := json.Unmarshal(n.Data, &data); err != nil {
		return err
	}
	maps.DeleteFunc(data, func(k string, _ json.RawMessage) bool { return !slices.Contains(keys, k) })
	for _, k := range keys {
		if _, ok := data[k]; !ok {
			data[k] = json.RawMessage("null")
		}
	}
	b, err := json.Marshal(data)
	n.Data = b
	return err
}
