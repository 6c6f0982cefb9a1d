package wire_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/pullab/pullab/pkg/wire"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

// corpus is every version of every message that was ever sent, one file each:
// <type>.<version>.<n>.json. Files are added, never changed: an old service may
// still send them, and an old message may lie in PULLAB_DEAD for a month.
func corpus(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "corpus", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no corpus: %v", err)
	}
	all := map[string][]byte{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(f)] = b
	}
	return all
}

// empty is the message that a corpus file holds.
func empty(t testing.TB, file string) proto.Message {
	t.Helper()
	parts := strings.Split(file, ".")
	mt, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName("pullab." + parts[1] + "." + parts[0]))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return mt.New().Interface()
}

func TestCorpus(t *testing.T) {
	t.Parallel()
	filled := map[protoreflect.FullName]map[protoreflect.FullName]bool{}
	for file, data := range corpus(t) {
		t.Run(file, func(t *testing.T) {
			m := empty(t, file)
			if err := wire.DecodeInto(data, m); err != nil {
				t.Fatal(err)
			}
			again, err := wire.Encode(m)
			if err != nil {
				t.Fatal(err)
			}
			if want, got := tree(t, data), tree(t, again); !reflect.DeepEqual(got, want) {
				t.Errorf("a field was lost or changed\n got %s\nfrom %s", again, data)
			}
			name := m.ProtoReflect().Descriptor().FullName()
			if filled[name] == nil {
				filled[name] = map[protoreflect.FullName]bool{}
			}
			note(filled[name], m.ProtoReflect())
		})
	}
	// Every field of every message on the bus is in some example.
	for _, m := range []proto.Message{&pullabv1.JobOffered{}, &pullabv1.RunPlanned{}, &pullabv1.RunProgress{},
		&pullabv1.RunFinished{}, &pullabv1.RunRows{}, &pullabv1.DeadLetter{}} {
		d := m.ProtoReflect().Descriptor()
		for _, f := range fields(d, map[protoreflect.FullName]bool{}) {
			if !filled[d.FullName()][f] {
				t.Errorf("%s has no example with %s", d.FullName(), f)
			}
		}
	}
}

func tree(t *testing.T, b []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// note marks the fields that are set in m and below.
func note(seen map[protoreflect.FullName]bool, m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		seen[f.FullName()] = true
		switch {
		case f.IsMap() || f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				note(seen, v.List().Get(i).Message())
			}
		default:
			note(seen, v.Message())
		}
		return true
	})
}

// fields are those of our own messages from d down.
func fields(d protoreflect.MessageDescriptor, done map[protoreflect.FullName]bool) []protoreflect.FullName {
	if done[d.FullName()] || d.ParentFile().Package() != "pullab.v1" {
		return nil
	}
	done[d.FullName()] = true
	var all []protoreflect.FullName
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		all = append(all, f.FullName())
		if f.Message() != nil && !f.IsMap() {
			all = append(all, fields(f.Message(), done)...)
		}
	}
	return all
}

func TestDecode(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, typ, payload string
		want               error
	}{
		{"empty object", "pullab.v1.JobOffered", `{}`, nil},
		{"a newer sender's field", "pullab.v1.JobOffered", `{"origin": {"node_id": "n", "colour": {"r": 1}}, "more": [1, 2]}`, nil},
		{"a newer sender's enum value", "pullab.v1.RunProgress", `{"phase": "RUN_PHASE_DREAMING", "node_id": "n"}`, nil},
		{"a newer version", "pullab.v2.JobOffered", `{}`, wire.ErrUnknownType},
		{"a part is not a message", "pullab.v1.Origin", `{}`, wire.ErrUnknownType},
		{"no type", "", `{}`, wire.ErrUnknownType},
		{"truncated", "pullab.v1.JobOffered", `{"origin": {"node_id": "n`, wire.ErrMalformed},
		{"nothing", "pullab.v1.JobOffered", ``, wire.ErrMalformed},
		{"not an object", "pullab.v1.JobOffered", `[]`, wire.ErrMalformed},
		{"wrong type", "pullab.v1.JobOffered", `{"origin": {"retry_counter": "many"}}`, wire.ErrMalformed},
		{"not UTF-8", "pullab.v1.JobOffered", "{\"origin\": {\"node_id\": \"\xff\"}}", wire.ErrMalformed},
		{"two documents", "pullab.v1.JobOffered", `{}{}`, wire.ErrMalformed},
		{"deep", "pullab.v1.JobOffered", strings.Repeat(`{"x":`, 100_000), wire.ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m, err := wire.Decode(c.typ, []byte(c.payload))
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if c.want == nil && wire.TypeOf(m) != c.typ {
				t.Errorf("decoded %s as %s", c.typ, wire.TypeOf(m))
			}
			if errors.Is(c.want, wire.ErrUnknownType) && !strings.Contains(err.Error(), "upgrade") {
				t.Errorf("%v does not say what to do", err)
			}
		})
	}
}

// Decoding fills a new message each time: no two handlers share one.
func TestDecodeIsFresh(t *testing.T) {
	t.Parallel()
	a, err := wire.Decode("pullab.v1.JobOffered", []byte(`{"origin": {"node_id": "a"}}`))
	if err != nil {
		t.Fatal(err)
	}
	b, err := wire.Decode("pullab.v1.JobOffered", []byte(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	if b.(*pullabv1.JobOffered).Origin != nil || a.(*pullabv1.JobOffered).Origin.NodeId != "a" {
		t.Error("two decodings share a message")
	}
}

func TestEncodeRefusesBadText(t *testing.T) {
	t.Parallel()
	if _, err := wire.Encode(&pullabv1.JobOffered{Origin: &pullabv1.Origin{NodeId: "\xff"}}); err == nil || !strings.Contains(err.Error(), "pullab.v1.JobOffered") {
		t.Errorf("not UTF-8: %v", err)
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                         "=",
		"65f1a2b3c4d5e6f708192a3b": "65f1a2b3c4d5e6f708192a3b",
		"aws-ec2_x86":              "aws-ec2_x86",
		"pull-labs.aws":            "pull-labs=2eaws",
		"a b":                      "a=20b",
		"*":                        "=2a",
		">":                        "=3e",
		"=":                        "=3d",
		"a=2eb":                    "a=3d2eb",
		"ä":                        "=c3=a4",
		"\xff\r\n\x00":             "=ff=0d=0a=00",
	} {
		if got := wire.Token(in); got != want {
			t.Errorf("Token(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzToken(f *testing.F) {
	f.Add("pull-labs.aws", "pull-labs=2eaws")
	f.Add("", "=")
	f.Fuzz(func(t *testing.T, a, b string) {
		ta, tb := wire.Token(a), wire.Token(b)
		if ta == "" || strings.ContainsAny(ta, ".*> \t\r\n/\\\x00") {
			t.Errorf("Token(%q) = %q is not a subject token", a, ta)
		}
		if (a == b) != (ta == tb) {
			t.Errorf("Token(%q) = %q, Token(%q) = %q", a, ta, b, tb)
		}
	})
}

// What Decode accepts, Encode writes and Decode reads the same.
func FuzzDecode(f *testing.F) {
	for file, data := range corpus(f) {
		f.Add(wire.TypeOf(empty(f, file)), data)
	}
	f.Add("pullab.v1.JobOffered", []byte(`{"origin": {"node_id": "n", "unknown": null}}`))
	f.Add("pullab.v9.JobOffered", []byte(`{}`))
	f.Fuzz(func(t *testing.T, typ string, data []byte) {
		m, err := wire.Decode(typ, data)
		if err != nil {
			if !errors.Is(err, wire.ErrMalformed) && !errors.Is(err, wire.ErrUnknownType) {
				t.Errorf("untyped error %v", err)
			}
			return
		}
		b, err := wire.Encode(m)
		if err != nil {
			t.Fatalf("decoded but cannot be encoded: %v", err)
		}
		again, err := wire.Decode(typ, b)
		if err != nil {
			t.Fatalf("encoded but cannot be decoded: %v\n%s", err, b)
		}
		if !proto.Equal(m, again) {
			t.Errorf("changed on the way\n%v\n%v", m, again)
		}
	})
}
