package planner

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/services/translator/internal/jobdef"
	"github.com/pullab/pullab/services/translator/internal/lineage"
)

// simple is a definition that can be planned, to break in one place at a time.
func simple() *jobdef.Definition {
	return &jobdef.Definition{
		Artifacts: map[string]string{jobdef.Kernel: "https://h.example/bzImage"},
		Checksums: map[string]string{jobdef.Kernel: strings.Repeat("ab", 32)},
		Tests:     []jobdef.Test{{ID: "b", Type: "boot", Timeout: 10 * time.Minute}},
		Platform:  "qemu-x86_64", Arch: "x86_64",
	}
}

func simpleJob() Job { return jobFor("pull-labs-demo", "qemu-x86_64", "x86_64", "baseline") }

func TestRefusals(t *testing.T) {
	t.Parallel()
	test := func(typ string) func(*jobdef.Definition) {
		return func(d *jobdef.Definition) { d.Tests[0].Type = typ }
	}
	artifact := func(name, url string) func(*jobdef.Definition) {
		return func(d *jobdef.Definition) { d.Artifacts[name] = url }
	}
	for name, c := range map[string]struct {
		breakIt func(*jobdef.Definition)
		code    string
		want    string
	}{
		"no kernel": {func(d *jobdef.Definition) { delete(d.Artifacts, jobdef.Kernel) }, InvalidJobParams, "missing required artifacts.kernel"},
		"no kernel, and all else wrong": {func(d *jobdef.Definition) {
			*d = jobdef.Definition{Platform: "nowhere", Tests: []jobdef.Test{{Type: "?"}}}
		}, InvalidJobParams, "missing required artifacts.kernel: the KernelCI build that produced this job did not upload a kernel image"},
		"s3":               {artifact(jobdef.Modules, "s3://b/m"), InvalidJobParams, `artifacts.modules has the scheme "s3": only http and https are fetched`},
		"file":             {artifact(jobdef.Kernel, "file:///etc/shadow"), InvalidJobParams, "artifacts.kernel is a file:// URL"},
		"path":             {artifact(jobdef.Kernel, "/boot/vmlinuz"), InvalidJobParams, `artifacts.kernel has the scheme ""`},
		"no host":          {artifact(jobdef.DTB, "https:///x"), InvalidJobParams, "artifacts.dtb has no host"},
		"credentials":      {artifact(jobdef.Rootfs, "https://u:hunter2@h.example/r"), InvalidJobParams, "artifacts.rootfs carries credentials"},
		"malformed":        {artifact(jobdef.Ramdisk, "https://u:hunter2@h.example:port/"), InvalidJobParams, "artifacts.ramdisk is not a URL"},
		"unused too":       {artifact(jobdef.Initrd, "ftp://h.example/"), InvalidJobParams, `artifacts.initrd has the scheme "ftp"`},
		"no tests":         {func(d *jobdef.Definition) { d.Tests = nil }, InvalidJobParams, "the job definition has no tests"},
		"no id":            {func(d *jobdef.Definition) { d.Tests[0].ID = "" }, InvalidJobParams, "missing required tests[0].id"},
		"odd id":           {func(d *jobdef.Definition) { d.Tests[0].ID = "a\nb" }, InvalidJobParams, `tests[0].id "a\nb" is longer than 200 bytes or has control characters`},
		"id twice":         {func(d *jobdef.Definition) { d.Tests = append(d.Tests, d.Tests[0]) }, InvalidJobParams, `tests[1].id "b" is given to two tests`},
		"unknown type":     {test("unixbench"), InvalidJobParams, `test "b" has the type "unixbench": this lab runs boot, ltp and kselftest-<collection>`},
		"no type":          {test(""), InvalidJobParams, `has the type ""`},
		"bare kselftest":   {test("kselftest"), InvalidJobParams, `has the type "kselftest"`},
		"empty collection": {test("kselftest-"), InvalidJobParams, `has the type "kselftest-"`},
		"ltp":              {test("ltp"), InvalidJobParams, `missing required artifacts.rootfs: test "b" of type ltp cannot run without it`},
		"kselftest":        {test("kselftest-mm"), InvalidJobParams, "missing required artifacts.rootfs"},
		"kselftest tarball": {func(d *jobdef.Definition) {
			d.Tests[0].Type, d.Artifacts[jobdef.Rootfs] = "kselftest-mm", "https://h.example/r"
		}, InvalidJobParams, "missing required artifacts.kselftest: test \"b\" of type kselftest-mm"},
		"depends":       {func(d *jobdef.Definition) { d.Tests[0].Depends = []string{"a"} }, InvalidJobParams, `test "b" depends on "a", which is not a test of this job`},
		"depends on me": {func(d *jobdef.Definition) { d.Tests[0].Depends = []string{"b"} }, InvalidJobParams, "depend on each other in a circle"},
		"depends often": {func(d *jobdef.Definition) { d.Tests[0].Depends = []string{"b", "b"} }, InvalidJobParams, "depends on more tests than this job has"},
		"circle": {func(d *jobdef.Definition) {
			d.Tests[0].Depends = []string{"c"}
			d.Tests = append(d.Tests, jobdef.Test{ID: "c", Type: "boot", Timeout: 1, Depends: []string{"b"}})
		}, InvalidJobParams, "depend on each other in a circle"},
		"arch":              {func(d *jobdef.Definition) { d.Arch = "arm64" }, InvalidJobParams, `for arch "arm64", but this lab's catalog has platform "qemu-x86_64" as x86_64`},
		"other platform":    {func(d *jobdef.Definition) { d.Platform = "qemu-arm64" }, InvalidJobParams, `the job definition is for platform "qemu-arm64", its node for "qemu-x86_64"`},
		"too large a plan":  {func(d *jobdef.Definition) { d.Tests[0].Pre = []string{strings.Repeat("x", 300<<10)} }, InvalidJobParams, "at most 262144 can be passed on"},
		"too large as JSON": {func(d *jobdef.Definition) { d.Tests[0].Pre = []string{strings.Repeat("\"", 200<<10)} }, InvalidJobParams, "at most 262144 can be passed on"},
	} {
		def := simple()
		c.breakIt(def)
		_, err := Plan(simpleJob(), def, defaultCatalog(t), settings)
		var refusal *Refusal
		if !errors.As(err, &refusal) || refusal.Code != c.code || !strings.Contains(refusal.Message, c.want) {
			t.Errorf("%s:\ngot  %v\nwant %s: %s", name, err, c.code, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the reason tells the password: %v", name, err)
		}
	}
}

func TestUnknownPlatformIsConfiguration(t *testing.T) {
	t.Parallel()
	def := simple()
	def.Platform = "imx6dl-riotboard"
	j := simpleJob()
	j.Origin.Platform, j.Arch = def.Platform, "arm"
	_, err := Plan(j, def, defaultCatalog(t), settings)
	var refusal *Refusal
	if !errors.As(err, &refusal) || refusal.Code != Configuration {
		t.Fatalf("got %v", err)
	}
	plan := Refused(j, refusal)
	holds(t, plan)
	if plan.GetArch() != "arm" || plan.GetExecutor() != "none" || plan.GetBoot() != nil || plan.GetBuild().GetBuildId() != "maestro:6a86cc10c5867fba94730b11" {
		t.Errorf("got %v", plan)
	}
}

// A refusal must always fit into its message, or the job would end nowhere.
func TestRefusalsFit(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ü", 200<<10)
	for name, breakIt := range map[string]func(*jobdef.Definition, *Job){
		"platform": func(d *jobdef.Definition, j *Job) { d.Platform, j.Origin.Platform = long, "" },
		"mismatch": func(d *jobdef.Definition, _ *Job) { d.Platform = long },
		"arch":     func(d *jobdef.Definition, _ *Job) { d.Arch = long },
		"type":     func(d *jobdef.Definition, _ *Job) { d.Tests[0].Type = long },
		"depends":  func(d *jobdef.Definition, _ *Job) { d.Tests[0].Depends = []string{long} },
		"id":       func(d *jobdef.Definition, _ *Job) { d.Tests[0].ID = long },
		"scheme": func(d *jobdef.Definition, _ *Job) {
			d.Artifacts[jobdef.Kernel] = strings.Repeat("s", 200<<10) + "://h/k"
		},
		"revision": func(d *jobdef.Definition, j *Job) {
			d.Tests = nil
			raw := json.RawMessage(`{"commit_message":"` + long + `"}`)
			j.Build = BuildOf(lineage.Chain{Job: &kernelci.Node{Data: kernelci.Data{KernelRevision: raw}}}, settings)
		},
	} {
		def, j := simple(), simpleJob()
		breakIt(def, &j)
		_, err := Plan(j, def, defaultCatalog(t), settings)
		var refusal *Refusal
		if !errors.As(err, &refusal) {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		if n := len(refusal.Message); n > 2000 {
			t.Errorf("%s: the reason has %d bytes", name, n)
		}
		holds(t, Refused(j, refusal))
	}
	if got := Refused(simpleJob(), &Refusal{Code: Infrastructure, Message: long}); len(got.GetRefusal().GetErrorMsg()) > 2100 {
		t.Error("Refused does not cut long reasons")
	}
}

func TestPlanDetails(t *testing.T) {
	t.Parallel()
	def := simple()
	def.Arch, def.Platform = "amd64", ""
	def.Artifacts[jobdef.Rootfs] = "http://h.example/r"
	def.Tests = []jobdef.Test{
		{ID: "last", Type: "ltp", Timeout: time.Hour, Depends: []string{"b"}, Parameters: map[string]string{"k": "v"}, Subset: "[1]"},
		{ID: "b", Type: "boot", Timeout: 10 * time.Minute, Pre: []string{"true"}},
		{ID: "c", Type: "boot", Timeout: time.Minute},
	}
	plan, err := Plan(simpleJob(), def, defaultCatalog(t), settings)
	if err != nil {
		t.Fatal(err)
	}
	holds(t, plan)
	var order []string
	for _, tt := range plan.GetTests() {
		order = append(order, tt.GetId())
	}
	if want := []string{"b", "last", "c"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	if got, want := plan.GetRunTimeout().AsDuration(), 81*time.Minute; got != want {
		t.Errorf("run_timeout %s, want %s", got, want)
	}
	if got := plan.GetBoot().GetKernel().GetSha256(); got != strings.Repeat("ab", 32) {
		t.Errorf("sha256 %q", got)
	}
	if got := plan.GetTests()[1]; got.GetParameters()["k"] != "v" || got.GetSubsetJson() != "[1]" {
		t.Errorf("got %v", got)
	}
	if !plan.GetFinishBefore().AsTime().Equal(now.Add(6 * time.Hour)) {
		t.Errorf("finish_before %v", plan.GetFinishBefore().AsTime())
	}
}

func TestRunTimeoutIsCapped(t *testing.T) {
	t.Parallel()
	def := simple()
	for i := range 200 {
		def.Tests = append(def.Tests, jobdef.Test{ID: strings.Repeat("x", i+1), Type: "boot", Timeout: 30 * 24 * time.Hour})
	}
	plan, err := Plan(simpleJob(), def, defaultCatalog(t), settings)
	if err != nil || plan.GetRunTimeout().AsDuration() != settings.MaxRuntime {
		t.Errorf("got %v, %v", plan.GetRunTimeout(), err)
	}
}

func TestFilesOnlyForOperators(t *testing.T) {
	t.Parallel()
	def := simple()
	def.Artifacts[jobdef.Kernel] = "file:///boot/vmlinuz"
	s := settings
	s.AllowFile = true
	plan, err := Plan(simpleJob(), def, defaultCatalog(t), s)
	if err != nil || plan.GetBoot().GetKernel().GetUrl() != "file:///boot/vmlinuz" {
		t.Errorf("got %v, %v", plan, err)
	}
}

func TestBuildOf(t *testing.T) {
	t.Parallel()
	job := &kernelci.Node{ID: "j", Data: kernelci.Data{Compiler: "clang-21", KernelRevision: json.RawMessage(`{"tree":"job's"}`)}}
	kbuild := &kernelci.Node{ID: "k", Data: kernelci.Data{Compiler: "gcc-15", Defconfig: "d", KernelRevision: json.RawMessage(`{"tree":"kbuild's"}`)}}
	checkout := &kernelci.Node{ID: "c", Data: kernelci.Data{KernelRevision: json.RawMessage(`{ "tree" : "checkout's" , "commit":"x" , "version": {"version": 7} }`)}}
	broken := func(raw string) *kernelci.Node {
		return &kernelci.Node{ID: "b", Data: kernelci.Data{KernelRevision: json.RawMessage(raw)}}
	}
	lab := settings
	lab.BuildOrigin = "my_lab"
	for name, c := range map[string]struct {
		chain                        lineage.Chain
		s                            Settings
		id, tree, compiler, revision string
	}{
		"all":            {lineage.Chain{Job: job, Kbuild: kbuild, Checkout: checkout}, settings, "maestro:k", "job's", "clang-21", `{"tree":"job's"}`},
		"origin set":     {lineage.Chain{Job: job, Kbuild: kbuild}, lab, "my_lab:k", "job's", "clang-21", `{"tree":"job's"}`},
		"job says none":  {lineage.Chain{Job: broken(""), Kbuild: kbuild, Checkout: checkout}, settings, "maestro:k", "kbuild's", "gcc-15", `{"tree":"kbuild's"}`},
		"job says null":  {lineage.Chain{Job: broken("null"), Checkout: checkout}, settings, "pullab_cloud_aws:unknown_b", "checkout's", "", `{"tree":"checkout's","commit":"x","version":{"version":7}}`},
		"job says wrong": {lineage.Chain{Job: broken(`{"tree":7}`), Checkout: checkout}, settings, "pullab_cloud_aws:unknown_b", "checkout's", "", `{"tree":"checkout's","commit":"x","version":{"version":7}}`},
		"nothing":        {lineage.Chain{Job: broken("")}, lab, "pullab_cloud_aws:unknown_b", "", "", ""},
	} {
		b := BuildOf(c.chain, c.s)
		if b.GetBuildId() != c.id || b.GetTree() != c.tree || b.GetCompiler() != c.compiler || b.GetKernelRevisionJson() != c.revision {
			t.Errorf("%s: got %v", name, b)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 8, 20, 12, 6, 7, 999, time.FixedZone("CEST", 7200))
	if got, want := RunID("arm64", jobNode, at), "run_pulllab-arm64-6a86d157c5867fba94731e66_20260820_100607"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, c := range []struct {
		words []string
		want  string
	}{
		{[]string{"", "arm64"}, "arm64"}, {[]string{"aarch64"}, "arm64"}, {[]string{"amd64"}, "x86_64"}, {[]string{"arm"}, "arm"},
		{[]string{"../../x", "a b", "riscv"}, "riscv"}, {nil, "unknown"}, {[]string{"x/y"}, "unknown"},
	} {
		if got := FileArch(c.words...); got != c.want {
			t.Errorf("%v: got %s, want %s", c.words, got, c.want)
		}
	}
}

// FuzzPlan plans whatever decodes: it must hold what doc.go promises, or
// refuse.
func FuzzPlan(f *testing.F) {
	files, err := filepath.Glob("testdata/samples/*.txtar")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v, %v", files, err)
	}
	for _, file := range files {
		a, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(a.Files[0].Data, "qemu-arm64")
	}
	for _, r := range matrix(f)[:3] {
		f.Add(r.definition(f), r.Platform)
	}
	f.Add([]byte(`{"artifacts":{"kernel":"http://h/k","rootfs":"http://h/r","kselftest":"http://h/s"},"tests":[{"id":"a","type":"kselftest-net/forwarding.ß","depends":["b"]},{"id":"b","type":"boot"}],"environment":{"platform":"qemu-arm64"}}`), "")
	c := defaultCatalog(f)
	f.Fuzz(func(t *testing.T, data []byte, platform string) {
		if len(data) > jobdef.MaxSize {
			return
		}
		def, err := jobdef.Decode(data)
		if err != nil {
			return
		}
		j := simpleJob()
		// The bus gives valid UTF-8 only.
		j.Origin.Platform = strings.ToValidUTF8(platform, "?")
		plan, err := Plan(j, def, c, settings)
		if err != nil {
			var refusal *Refusal
			if !errors.As(err, &refusal) {
				t.Fatalf("%T: %v", err, err)
			}
			plan = Refused(j, refusal)
		}
		holds(t, plan)
	})
}

func TestKselftestPaths(t *testing.T) {
	t.Parallel()
	for typ, want := range map[string]string{
		"kselftest-arm64": "kselftest.arm64", "kselftest-net/forwarding": "kselftest.net_forwarding", "kselftest-a.b": "kselftest.a_b",
		"kselftest-seccomp-bpf": "kselftest.seccomp-bpf", "kselftest-ü x": "kselftest.__x",
	} {
		if path, _, ok := suite(typ); !ok || path != want || !kcidbPath.MatchString(path) {
			t.Errorf("%s: got %s, want %s", typ, path, want)
		}
	}
}
