package planner

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/pkg/wire"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/translator/internal/catalog"
	"github.com/pullab/pullab/services/translator/internal/jobdef"
	"github.com/pullab/pullab/services/translator/internal/lineage"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// kcidbPath is the schema's pattern for test paths (kernelci-wire.md section 4).
var kcidbPath = regexp.MustCompile(`^([a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)*)?$`)

var (
	now      = time.Date(2026, 8, 20, 10, 6, 0, 0, time.UTC)
	settings = Settings{BuildOrigin: "maestro", KCIDBOrigin: "pullab_cloud_aws", BootMargin: 10 * time.Minute, MaxRuntime: 6 * time.Hour}
)

func defaultCatalog(t testing.TB) *catalog.Catalog {
	t.Helper()
	c, err := catalog.Load("")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const jobNode = "6a86d157c5867fba94731e66"

// jobFor is an offered job for a platform, with the sample chain of
// node.chain.json behind it.
func jobFor(runtime, platform, arch, name string) Job {
	chain := lineage.Chain{
		Job: &kernelci.Node{ID: jobNode, Kind: "job", Name: name, Data: kernelci.Data{Arch: arch, ConfigFull: "defconfig+x"}},
		Kbuild: &kernelci.Node{ID: "6a86cc10c5867fba94730b11", Kind: "kbuild", Data: kernelci.Data{
			Compiler: "gcc-15", Defconfig: "defconfig", ConfigFull: "the kbuild's own", KernelType: "image",
			KernelRevision: json.RawMessage(`{"tree": "mainline", "url": "https://git.example/linux.git", "branch": "master",
				"commit": "5f3c2b1a9d8e7f60112233445566778899aabbcc", "describe": "v7.1-rc4-112-g5f3c2b1a9d8e"}`),
		}},
		Checkout: &kernelci.Node{ID: "6a86cb72c5867fba94730a01", Kind: "checkout"},
	}
	return Job{
		Origin: &pullabv1.Origin{
			ApiBaseUri: "https://staging.kernelci.org:9000/latest", Runtime: runtime, Platform: platform, NodeId: jobNode, NodeName: name,
			NodePath: []string{"checkout", "kbuild", name}, ParentId: "6a86cc10c5867fba94730b11",
			NodeCreated: timestamppb.New(now.Add(-time.Minute)), NodeTimeout: timestamppb.New(now.Add(6 * time.Hour)),
		},
		RunID: RunID(arch, jobNode, now), JobID: runtime + ":0f1e2d3c4b5a69788796a5b4c3d2e1f0", Arch: FileArch(arch),
		Build: BuildOf(chain, settings), FinishBefore: now.Add(6 * time.Hour), Now: now,
	}
}

// show is a plan as stable, readable JSON.
func show(t testing.TB, plan *pullabv1.RunPlanned) []byte {
	t.Helper()
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(plan)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), '\n')
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (rewrite with -update when that is meant):\n%s", file, got)
	}
}

func planOrRefusal(t testing.TB, j Job, data []byte, c *catalog.Catalog) *pullabv1.RunPlanned {
	t.Helper()
	def, err := jobdef.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	before := proto.Clone(j.Origin)
	plan, err := Plan(j, def, c, settings)
	var refusal *Refusal
	if errors.As(err, &refusal) {
		plan = Refused(j, refusal)
	} else if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(before, plan.GetOrigin()) {
		t.Errorf("the origin was touched: %v", plan.GetOrigin())
	}
	holds(t, plan)
	return plan
}

// holds checks what doc.go promises of every plan.
func holds(t testing.TB, plan *pullabv1.RunPlanned) {
	t.Helper()
	b, err := wire.Encode(plan)
	if err != nil || len(b) > wire.MaxPayload {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if plan.GetRunId() == "" || plan.GetPlannedAt() == nil {
		t.Errorf("a plan without run id or time: %v", plan)
	}
	if (plan.GetExecutor() == "none") != (plan.GetRefusal() != nil) {
		t.Errorf("executor %q with refusal %v", plan.GetExecutor(), plan.GetRefusal())
	}
	if plan.GetRefusal() != nil {
		if plan.GetRefusal().GetErrorCode() == "" || plan.GetRefusal().GetErrorMsg() == "" {
			t.Errorf("a refusal without a reason: %v", plan.GetRefusal())
		}
		return
	}
	if plan.GetBoot().GetKernel().GetUrl() == "" || len(plan.GetTests()) == 0 || plan.GetRunTimeout().AsDuration() <= 0 {
		t.Errorf("an empty plan: %v", plan)
	}
	done := map[string]bool{}
	for _, tt := range plan.GetTests() {
		if tt.GetPath() == "" || !kcidbPath.MatchString(tt.GetPath()) {
			t.Errorf("path %q is not legal in KCIDB", tt.GetPath())
		}
		for _, d := range tt.GetDepends() {
			if !done[d] {
				t.Errorf("%q comes before %q, which it depends on", tt.GetId(), d)
			}
		}
		done[tt.GetId()] = true
	}
}

func TestSamples(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/samples/*.txtar")
	if err != nil || len(files) != 5 {
		t.Fatalf("want five samples, have %v (%v)", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var env struct {
				Environment struct{ Platform, Arch string }
			}
			if err := json.Unmarshal(a.Files[0].Data, &env); err != nil {
				t.Fatal(err)
			}
			j := jobFor("pull-labs-aws-ec2", env.Environment.Platform, env.Environment.Arch, "a-job")
			plan := planOrRefusal(t, j, a.Files[0].Data, defaultCatalog(t))
			a.Files = append(a.Files[:1], txtar.File{Name: "plan.json", Data: show(t, plan)})
			golden(t, file, txtar.Format(a))
		})
	}
}

// row is one line of pull_labs.job_matrix.json: all combinations of runtime,
// job, kbuild and platform that upstream schedules.
type row struct {
	Runtime, Job, Kbuild, Platform, Arch string
	Artifacts                            []string
	TestID                               string            `json:"test_id"`
	TestType                             string            `json:"test_type"`
	TimeoutS                             int               `json:"timeout_s"`
	TestParameters                       *string           `json:"test_parameters"`
	TopParameters                        map[string]string `json:"top_parameters"`
	Suite                                string            `json:"kcidb_suite"`
}

// definition renders the row as upstream's template does.
func (r row) definition(t testing.TB) []byte {
	t.Helper()
	artifacts := map[string]string{}
	for _, a := range r.Artifacts {
		artifacts[a] = "https://files.kernelci.org/" + r.Kbuild + "-6a86cc10c5867fba94730b11/" + a
	}
	test := map[string]any{
		"id": r.TestID, "type": r.TestType, "depends": []string{}, "timeout_s": r.TimeoutS, "pre-commands": []string{}, "post-commands": []string{},
	}
	if r.TestParameters != nil {
		test["parameters"] = *r.TestParameters
	}
	def := map[string]any{
		"artifacts": artifacts, "tests": []any{test},
		"environment": map[string]any{"platform": r.Platform, "arch": r.Arch, "console": map[string]any{"method": "serial", "baud": 115200}},
		"callback":    map[string]string{"url": "https://pipeline.example/node/" + jobNode, "token_name": "kernelci-pipeline-callback"},
		"integrity":   map[string]any{"sha256": map[string]string{"_comment": "Checksums would be populated from metadata.json if available"}},
	}
	if r.TopParameters != nil {
		def["parameters"] = r.TopParameters
	}
	b, err := json.Marshal(def)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func matrix(t testing.TB) []row {
	t.Helper()
	data, err := os.ReadFile("testdata/pull_labs.job_matrix.json")
	if err != nil {
		t.Fatal(err)
	}
	var rows []row
	if err := json.Unmarshal(data, &rows); err != nil || len(rows) != 48 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	return rows
}

// boards is the catalog of a lab that has all of upstream's 64-bit platforms.
const boards = `
platforms:
  qemu-x86_64: {executor: qemu, arch: x86_64}
  qemu-arm64: {executor: qemu, arch: arm64}
  aws-ec2-x86_64: {executor: qemu, arch: x86_64}
  aws-ec2-arm64: {executor: qemu, arch: arm64}
  bcm2711-rpi-4-b: {executor: command, arch: arm64, cpus: 4, options: {rack: "1"}}
  cd8180-orion-o6: {executor: command, arch: arm64}
  exynos850-e850-96: {executor: command, arch: arm64}
  fvp-aemva: {executor: command, arch: arm64}
  gs101-oriole: {executor: command, arch: arm64}
`

func TestMatrix(t *testing.T) {
	t.Parallel()
	lab, err := catalog.Decode("boards.yaml", []byte(boards))
	if err != nil {
		t.Fatal(err)
	}
	for file, c := range map[string]*catalog.Catalog{"matrix.default.golden": defaultCatalog(t), "matrix.boards.golden": lab} {
		var out bytes.Buffer
		for _, r := range matrix(t) {
			plan := planOrRefusal(t, jobFor(r.Runtime, r.Platform, r.Arch, r.Job), r.definition(t), c)
			fmt.Fprintf(&out, "%s %s %s\n", r.Runtime, r.Job, r.Platform)
			if x := plan.GetRefusal(); x != nil {
				fmt.Fprintf(&out, "\trefused %s: %s\n", x.GetErrorCode(), x.GetErrorMsg())
				continue
			}
			for _, tt := range plan.GetTests() {
				if tt.GetPath() != r.Suite {
					t.Errorf("%s on %s: path %q, maestro's rows have %q", r.Job, r.Platform, tt.GetPath(), r.Suite)
				}
				fmt.Fprintf(&out, "\t%s %s %s in %s\n\t%s %s %s %v\n", plan.GetExecutor(), plan.GetArch(), bootNames(plan.GetBoot()), plan.GetRunTimeout().AsDuration(),
					tt.GetId(), tt.GetPath(), tt.GetTimeout().AsDuration(), tt.GetParameters())
			}
		}
		golden(t, filepath.Join("testdata", file), out.Bytes())
	}
}

func bootNames(b *pullabv1.Boot) string {
	var names []string
	for _, f := range []*pullabv1.RemoteFile{b.GetKernel(), b.GetModules(), b.GetRamdisk(), b.GetRootfs(), b.GetDtb(), b.GetKselftest(), b.GetInitrd()} {
		if f != nil {
			names = append(names, filepath.Base(f.GetUrl()))
		}
	}
	return strings.Join(names, ",")
}
