package jobdef

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// minimal is the smallest definition that all tests here start from.
const minimal = `{"artifacts":{"kernel":"https://h.example/bzImage"},"tests":[{"id":"b","type":"boot","timeout_s":600}],"environment":{"platform":"qemu-x86_64","arch":"x86_64"}}`

func samples(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/job_definition.*.json")
	if err != nil || len(files) != 5 {
		t.Fatalf("want the five sample definitions, have %v (%v)", files, err)
	}
	m := map[string][]byte{}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		m[filepath.Base(f)] = data
	}
	return m
}

func TestDecodeSamples(t *testing.T) {
	t.Parallel()
	for name, data := range samples(t) {
		def, err := Decode(data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(def.Unknown) > 0 || len(def.Checksums) > 0 {
			t.Errorf("%s: unknown %v, checksums %v; want none", name, def.Unknown, def.Checksums)
		}
		if def.Artifacts[Kernel] == "" || len(def.Tests) != 1 || def.Platform == "" || def.Arch == "" {
			t.Errorf("%s: incomplete: %+v", name, def)
		}
	}
}

func TestDecodeEverything(t *testing.T) {
	t.Parallel()
	sum := strings.Repeat("Ab", 32)
	def, err := Decode([]byte(`{
  "artifacts": {"kernel": "k", "modules": "m", "kselftest": "ks", "rootfs": "r", "ramdisk": "rd", "initrd": "i", "dtb": "d", "firmware": "f", "ramdisk2": null},
  "tests": [
    {"id": "a", "type": "ltp", "timeout_s": 60, "parameters": "x=1  y=a=b", "pre-commands": ["true"], "post-commands": ["false", "id"], "subset": {"only": [1, 2]}},
    {"id": "b", "type": "boot", "depends": ["a"], "parameters": {"n": 3, "yes": true, "s": "t", "none": null}, "retries": 3}
  ],
  "environment": {"platform": "p", "arch": "arm64", "console": {}, "requirements": {"kvm": true}, "rack": 7},
  "parameters": {"RUNNER": "/opt/kirk/kirk"},
  "callback": {"url": "u", "token_name": "t"},
  "integrity": {"sha256": {"_comment": "none", "_x": 1, "kernel": "` + sum + `", "bzImage": "` + sum + `"}},
  "priority": "high"
}`))
	if err != nil {
		t.Fatal(err)
	}
	want := &Definition{
		Artifacts: map[string]string{Kernel: "k", Modules: "m", Kselftest: "ks", Rootfs: "r", Ramdisk: "rd", Initrd: "i", DTB: "d"},
		Checksums: map[string]string{Kernel: strings.ToLower(sum)},
		Tests: []Test{
			{ID: "a", Type: "ltp", Timeout: time.Minute, Parameters: map[string]string{"x": "1", "y": "a=b"}, Pre: []string{"true"}, Post: []string{"false", "id"}, Subset: `{"only":[1,2]}`},
			{ID: "b", Type: "boot", Timeout: DefaultTimeout, Depends: []string{"a"}, Parameters: map[string]string{"n": "3", "yes": "true", "s": "t"}},
		},
		Platform: "p", Arch: "arm64", Parameters: map[string]string{"RUNNER": "/opt/kirk/kirk"},
		Unknown: []string{
			"artifacts.firmware is unknown to this version and was ignored",
			"artifacts.ramdisk2 is unknown to this version and was ignored",
			"tests[1].retries is unknown to this version and was ignored",
			"tests[1] has no timeout_s; 1h0m0s is used",
			"environment.requirements is not supported and was ignored",
			"environment.rack is unknown to this version and was ignored",
			"integrity.sha256.bzImage is a checksum of no known artifact and was ignored",
			"priority is unknown to this version and was ignored",
		},
	}
	want.SHA256 = def.SHA256
	if !reflect.DeepEqual(def, want) {
		t.Errorf("got  %+v\nwant %+v", def, want)
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	with := func(old, replacement string) string {
		s := strings.Replace(minimal, old, replacement, 1)
		if s == minimal {
			t.Fatalf("%q is not in the minimal definition", old)
		}
		return s
	}
	for name, c := range map[string]struct{ in, want string }{
		"empty":              {"", "the job definition is empty (byte 0, line 1, column 1)"},
		"blank":              {" \n\t ", "the job definition is empty (byte 0,"},
		"truncated":          {minimal[:60], "the job definition is cut off: the JSON ends too early (byte 60, line 1, column 61)"},
		"truncated string":   {`{"a": "b`, "is cut off: the JSON ends too early (byte 8,"},
		"truncated by one":   {minimal[:len(minimal)-1], "is cut off"},
		"last byte wrong":    {minimal[:len(minimal)-1] + "]", "is not valid JSON: invalid character ']' after object key:value pair (byte 159,"},
		"trailing garbage":   {minimal + "\n\n x", "is not valid JSON: invalid character 'x' after top-level value (byte 163, line 3, column 2)"},
		"trailing object":    {minimal + minimal, "after top-level value (byte 160,"},
		"HTML":               {"<!DOCTYPE html><html>", "is not valid JSON: invalid character '<' looking for beginning of value (byte 0,"},
		"YAML":               {"job_name: x\n", "is not valid JSON: invalid character 'j'"},
		"not UTF-8":          {"{\"a\": \"\xff\"}", "is not UTF-8 text (byte 7,"},
		"null":               {"null", "must be an object, not null (byte 0,"},
		"a list":             {"[]", "must be an object, not a list"},
		"a string":           {`"x"`, "must be an object, not a string"},
		"deep":               {`{"a":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + "}", "is nested deeper than 32"},
		"very deep":          {strings.Repeat("[", 20000) + strings.Repeat("]", 20000), "is not valid JSON"},
		"twice":              {with(`"tests"`, `"artifacts":{},"tests"`), "artifacts is given twice (byte 52, line 1, column 53)"},
		"twice, inside":      {with(`{"kernel"`, `{"kernel":"x","kernel"`), "artifacts.kernel is given twice"},
		"artifacts string":   {with(`{"kernel":"https://h.example/bzImage"}`, `"x"`), "artifacts must be an object, not a string (byte 13, line 1, column 14)"},
		"kernel number":      {with(`"https://h.example/bzImage"`, ` 7`), "artifacts.kernel must be a string, not a number (byte 24, line 1, column 25)"},
		"NUL":                {with(`bzImage`, `bz\u0000`), `artifacts.kernel contains a NUL character (\u0000)`},
		"tests object":       {with(`[{"id":"b","type":"boot","timeout_s":600}]`, `{}`), "tests must be a list, not an object"},
		"test null":          {with(`{"id":"b","type":"boot","timeout_s":600}`, `null`), "tests[0] must be an object, not null"},
		"timeout string":     {with(`600`, `"600"`), "tests[0].timeout_s must be a number, not a string"},
		"timeout fraction":   {with(`600`, `600.5`), "tests[0].timeout_s must be a whole number of seconds, not 600.5"},
		"timeout zero":       {with(`600`, `0`), "tests[0].timeout_s must be more than 0 seconds"},
		"timeout negative":   {with(`600`, `-5`), "tests[0].timeout_s must be more than 0 seconds, not -5"},
		"timeout huge":       {with(`600`, `99999999999999999999`), "tests[0].timeout_s must be a whole number of seconds"},
		"timeout in ms":      {with(`600`, `600000000`), "is 600000000 seconds, more than the 2592000 that any test may take"},
		"id number":          {with(`"id":"b"`, `"id":7`), "tests[0].id must be a string, not a number"},
		"depends string":     {with(`"type"`, `"depends":"a","type"`), "tests[0].depends must be a list, not a string"},
		"depends number":     {with(`"type"`, `"depends":["a", 1],"type"`), "tests[0].depends[1] must be a string, not a number"},
		"parameters word":    {with(`"type"`, `"parameters":"a=1 b","type"`), `tests[0].parameters has "b", which is not key=value`},
		"parameters twice":   {with(`"type"`, `"parameters":"a=1 a=2","type"`), `tests[0].parameters gives "a" twice`},
		"parameters list":    {with(`"type"`, `"parameters":[],"type"`), "tests[0].parameters must be a string, not a list"},
		"parameters nested":  {with(`"type"`, `"parameters":{"a":{}},"type"`), "tests[0].parameters.a must be a string, not an object"},
		"commands":           {with(`"type"`, `"pre-commands":"reboot","type"`), "tests[0].pre-commands must be a list, not a string"},
		"arch":               {with(`"arch":"x86_64"`, `"arch":true`), "environment.arch must be a string, not true or false"},
		"checksum short":     {with(`"environment"`, `"integrity":{"sha256":{"kernel":"abc"}},"environment"`), `integrity.sha256.kernel must be 64 hex digits, not "abc"`},
		"checksum number":    {with(`"environment"`, `"integrity":{"sha256":{"kernel":1}},"environment"`), "integrity.sha256.kernel must be a string, not a number"},
		"checksum of no one": {with(`"environment"`, `"integrity":{"sha256":{"x":"zz"}},"environment"`), "integrity.sha256.x must be 64 hex digits"},
		"many tests":         {with(`{"id":"b","type":"boot","timeout_s":600}`, strings.Repeat("{},", 256)+"{}"), "tests has 257 elements; at most 256 are allowed"},
	} {
		_, err := Decode([]byte(c.in))
		var de *DecodeError
		if !errors.As(err, &de) {
			t.Errorf("%s: got %v, want a *DecodeError", name, err)
			continue
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s:\ngot  %v\nwant %s", name, err, c.want)
		}
	}
}

// Upstream's producer may leave optional parts null.
func TestDecodeNullIsAbsent(t *testing.T) {
	t.Parallel()
	def, err := Decode([]byte(`{"artifacts":{"kernel":"k","modules":null},"tests":[{"id":"b","type":"boot","timeout_s":1,"depends":null,"parameters":null,"subset":null}],
		"environment":{"platform":null,"requirements":null},"parameters":null,"integrity":null,"callback":null}`))
	if err != nil || def.Artifacts[Kernel] != "k" || len(def.Unknown) != 0 || def.Tests[0].Subset != "" {
		t.Errorf("got %+v, %v", def, err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, data := range samples(f) {
		f.Add(data)
		f.Add(data[:len(data)/2])
	}
	f.Add([]byte(minimal))
	f.Add([]byte(`{"tests":[{"parameters":{"a":1e3},"subset":[null]}]}`))
	f.Add([]byte("{\"\xff\":0}"))
	f.Add([]byte(`{"a":[[[[{}]]]],"a":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		def, err := Decode(data)
		if err != nil {
			var de *DecodeError
			if !errors.As(err, &de) {
				t.Fatalf("%T: %v", err, err)
			}
			if de.Offset < 0 || de.Offset > len(data) || de.Line < 1 || de.Column < 1 {
				t.Fatalf("position outside the text: %+v", de)
			}
			return
		}
		if !json.Valid(data) {
			t.Fatal("accepted what is not JSON")
		}
		for _, tt := range def.Tests {
			if tt.Timeout <= 0 || tt.Timeout > maxTimeout {
				t.Fatalf("timeout %s", tt.Timeout)
			}
			if tt.Subset != "" && !json.Valid([]byte(tt.Subset)) {
				t.Fatalf("subset %q", tt.Subset)
			}
		}
		for name, sum := range def.Checksums {
			if len(sum) != 64 || strings.ToLower(sum) != sum {
				t.Fatalf("checksum of %s: %q", name, sum)
			}
		}
	})
}
