package rows_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/pullab/pullab/pkg/wire"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/submitter/internal/kcidb"
	"github.com/pullab/pullab/services/submitter/internal/rows"
)

var update = flag.Bool("update", false, "write the golden files anew")

const origin = "pullab_cloud_aws"

func load(t testing.TB, name string) *pullabv1.RunFinished {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../testdata/runs", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	fin := &pullabv1.RunFinished{}
	if err := wire.DecodeInto(b, fin); err != nil {
		t.Fatal(err)
	}
	return fin
}

// document is what would be sent; it must pass the check.
func document(t testing.TB, fin *pullabv1.RunFinished) []byte {
	t.Helper()
	r, err := kcidb.Pack(rows.Build(origin, fin, fin.GetRows()))
	if err != nil {
		t.Fatal(err)
	}
	return kcidb.Document(r)
}

func TestGolden(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"boot-pass", "boot-panic", "ltp", "infrastructure", "refusal", "kselftest"} {
		var got bytes.Buffer
		if err := json.Indent(&got, document(t, load(t, name)), "", "  "); err != nil {
			t.Fatal(err)
		}
		got.WriteByte('\n')
		file := filepath.Join("testdata", name+".kcidb.json")
		if *update {
			if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s differs from %s (-update writes it): %v\n%s", name, file, err, got.Bytes())
		}
	}
}

func build(fin *pullabv1.RunFinished) []kcidb.Test { return rows.Build(origin, fin, fin.GetRows()) }

func TestIDsAreUniqueWhateverRepeats(t *testing.T) {
	t.Parallel()
	fin := load(t, "boot-pass")
	fin.Rows = nil
	for _, p := range []string{"a", "boot", "a", "a.2", "boot", "a", "boot.2", "", "..", "a/b", "a b", "a_b"} {
		fin.Rows = append(fin.Rows, &pullabv1.TestRow{Path: p, Status: pullabv1.Status_STATUS_PASS})
	}
	seen := map[string]bool{}
	boots := 0
	for _, r := range build(fin) {
		if seen[r.ID] {
			t.Errorf("id %s twice", r.ID)
		}
		seen[r.ID] = true
		if r.ID == origin+":"+fin.Origin.NodeId {
			boots++
		}
	}
	if boots != 1 || len(seen) != len(fin.Rows) {
		t.Errorf("%d job rows, %d ids for %d rows", boots, len(seen), len(fin.Rows))
	}
	document(t, fin)
}

func TestSuite(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		paths string
		want  string
	}{
		{"baseline-x86-aws-ec2", "boot", "boot"}, {"baseline-arm64", "", "boot"},
		{"ltp-smoke-aws-ec2", "boot ltp.abs01", "ltp"}, {"ltp-smoke-aws-ec2", "", "ltp"},
		{"kselftest-arm64-pull-labs", "kselftest.arm64.x", "kselftest.arm64"},
		{"kselftest-net-forwarding-lab", "kselftest.net-forwarding.x", "kselftest.net-forwarding"},
		{"kselftest-breakpoints-lab", "", "kselftest.breakpoints"}, {"kselftest", "", "kselftest"},
		{"rt-tests-lab", "boot", "boot"}, {"", "", "boot"}, {"", "x.y", "x"}, {"kvm-unit-tests", "", "kvm"},
	} {
		fin := &pullabv1.RunFinished{Origin: &pullabv1.Origin{NodeName: c.name}}
		var tests []*pullabv1.TestRow
		for p := range strings.FieldsSeq(c.paths) {
			tests = append(tests, &pullabv1.TestRow{Path: p})
		}
		if got := rows.Suite(fin, tests); got != c.want {
			t.Errorf("%s with %q: %q, want %q", c.name, c.paths, got, c.want)
		}
	}
}

// TestHostileText: what a guest can say must not make a document invalid, nor
// speak for the lab.
func TestHostileText(t *testing.T) {
	t.Parallel()
	fin := load(t, "ltp")
	fin.Rows = []*pullabv1.TestRow{{
		Path: "ltp.é/../\x00x", Status: pullabv1.Status_STATUS_FAIL, Reason: "a\x00b", TestId: "\x00",
		LogExcerpt: strings.Repeat("€", 20_000) + "\x00end",
		Misc:       map[string]string{"lab": "other", "maestro_viewer": "https://evil.example.com", "a\x00": "b", "": "x"},
		Number:     &pullabv1.Number{Value: math.NaN(), Unit: "s"},
	}}
	fin.Files = append(fin.Files, &pullabv1.StoredFile{Name: "a/b\x00", Role: "output", Url: "https://h/x y"},
		&pullabv1.StoredFile{Name: "a/b", Role: "output", Url: "https://h/x"}, &pullabv1.StoredFile{Role: "output", Url: "https://u:p@h/x"})
	document(t, fin)
	r := build(fin)[1]
	if utf8.RuneCountInString(r.LogExcerpt) != kcidb.MaxExcerpt || !strings.HasSuffix(r.LogExcerpt, "€end") {
		t.Errorf("excerpt of %d", utf8.RuneCountInString(r.LogExcerpt))
	}
	if r.Misc["lab"] != "pull-labs-aws-ec2" || strings.Contains(r.Misc["maestro_viewer"], "evil") || r.Number != nil || r.Misc["number_not_finite"] != "NaN" {
		t.Errorf("%+v", r)
	}
	if n := len(build(fin)[0].OutputFiles); n != 3 {
		t.Errorf("%d files: %v", n, build(fin)[0].OutputFiles)
	}
}

func TestJobStatus(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]string{
		"Infrastructure": "ERROR", "Test": "ERROR", "Canceled": "ERROR", "invalid_job_params": "MISS", "Configuration": "MISS", "node_timeout": "", "": "",
	} {
		if got := rows.JobStatus(&pullabv1.Verdict{Result: pullabv1.Result_RESULT_INCOMPLETE, ErrorCode: code}); got != want {
			t.Errorf("%q: %q, want %q", code, got, want)
		}
	}
}

func TestViewerOnlyForKernelCI(t *testing.T) {
	t.Parallel()
	for api, want := range map[string]bool{
		"https://api.kernelci.org/latest": true, "https://staging.kernelci.org:9000/latest": true,
		"http://127.0.0.1:8001/latest": false, "https://api.kernelci.org.evil.example/": false, "": false,
	} {
		fin := proto.Clone(load(t, "boot-pass")).(*pullabv1.RunFinished)
		fin.Origin.ApiBaseUri = api
		if got := build(fin)[0].Misc["maestro_viewer"] != ""; got != want {
			t.Errorf("%q: %v", api, got)
		}
	}
}

func TestSameRunSameRows(t *testing.T) {
	t.Parallel()
	for range 20 {
		if a, b := document(t, load(t, "ltp")), document(t, load(t, "ltp")); !bytes.Equal(a, b) {
			t.Fatal("two documents of one run differ")
		}
	}
}

func TestJobThatCannotBeSent(t *testing.T) {
	t.Parallel()
	fin := load(t, "boot-pass")
	fin.Build.BuildId = ""
	if _, err := kcidb.Pack(build(fin)); err == nil || !strings.Contains(err.Error(), "$.tests[0].build_id: pattern") {
		t.Errorf("got %v", err)
	}
}
