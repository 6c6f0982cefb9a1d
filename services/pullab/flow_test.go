package pullab_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cavaliergopher/cpio"
	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/app"
	"github.com/pullab/pullab/pkg/broker"
	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/services/pullab"
	"github.com/pullab/pullab/services/pullab/guestbin"
	"github.com/pullab/pullab/services/pullab/lab"
	"github.com/pullab/pullab/services/standin"
	"github.com/pullab/pullab/services/standin/debkernel"
)

// flowCatalog has a platform per fate. The kernel of flow-panic finds no init;
// that of flow-hang starts one that never speaks.
const flowCatalog = `platforms:
  flow-pass: {executor: qemu, arch: x86_64, memory_mib: 512}
  flow-panic: {executor: qemu, arch: x86_64, memory_mib: 512, cmdline: rdinit=/nonexistent}
  flow-hang: {executor: qemu, arch: x86_64, memory_mib: 512, cmdline: rdinit=/hang}
`

// TestWholeFlow sends jobs with a real kernel from kernelci-api through all four
// services to KCIDB: one that passes, one that panics, one that hangs, and one
// that cannot be translated.
func TestWholeFlow(t *testing.T) {
	kernel := needKernel(t)
	dir := t.TempDir()
	world, err := standin.Start(t.Context(), standin.Options{Dir: filepath.Join(dir, "standin")})
	if err != nil {
		t.Fatal(err)
	}
	defer world.Close()
	offer := func(j standin.Job) string {
		t.Helper()
		if j.Definition == nil {
			j.Kernel, j.Modules, j.Arch, j.Describe = kernel.Image, kernel.Modules, kernel.Arch, kernel.Release
		}
		id, err := world.OfferJob(t.Context(), j)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	want := []flow{
		{offer(standin.Job{Platform: "flow-pass"}), "pass", "PASS", "", kernel.Release},
		{offer(standin.Job{Platform: "flow-panic"}), "fail", "FAIL", "", "Kernel panic - not syncing"},
		{offer(standin.Job{Platform: "flow-hang", Ramdisk: hangingRamdisk(t, dir)}), "fail", "FAIL", "", "Run /hang as init process"},
		{offer(standin.Job{Platform: "flow-pass", Definition: []byte(`{"artifacts": {}, "tests": []}`)}), "incomplete", "MISS", "invalid_job_params", ""},
	}

	once(t, dir, world)
	for _, f := range want {
		f.check(t, world)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "standin", "kcidb", "failed", "*")); err != nil || len(left) > 0 {
		t.Errorf("KCIDB refused submissions: %v %v", left, err)
	}
}

// once runs the lab over a durable broker until nothing is left.
func once(t *testing.T, dir string, world *standin.World) {
	t.Helper()
	ctx := zerolog.New(zerolog.NewTestWriter(t)).WithContext(t.Context())
	guests, err := guestbin.Unpack(filepath.Join(dir, "guest"))
	if err != nil {
		t.Fatal(err)
	}
	catalog := filepath.Join(dir, "catalog.yaml")
	if err := os.WriteFile(catalog, []byte(flowCatalog), 0o600); err != nil {
		t.Fatal(err)
	}
	var cfg lab.Config
	env := app.Env{LookupEnv: func(string) (string, bool) { return "", false }}
	env.Set = append(pullab.DemoSettings(world), "runner.data_dir="+dir, "qemu.data_dir="+filepath.Join(dir, "qemu"),
		"qemu.guest_dir="+guests, "translator.catalog="+catalog, "qemu.boot_timeout=20s", "qemu.tcg_factor=3", "runner.slots=qemu=2")
	if _, err := config.Load(&cfg, env.Source()); err != nil {
		t.Fatal(err)
	}
	server, err := broker.Start(context.WithoutCancel(ctx), broker.Options{Dir: filepath.Join(dir, "jetstream"), SyncAlways: true})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	b, err := server.Connect(ctx, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := topology.Apply(ctx, b, topology.Options{Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	lab, err := lab.New(ctx, cfg, b, lab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Once(ctx); err != nil {
		t.Fatal(err)
	}
}

// flow is how one job must end.
type flow struct {
	node, result, boot, errorCode, console string
}

func (f flow) check(t *testing.T, world *standin.World) {
	t.Helper()
	n, _ := world.Node(f.node)
	if n.State != "done" || n.Result == nil || *n.Result != f.result {
		t.Errorf("node %s is %s with result %v, want done with %s", f.node, n.State, n.Result, f.result)
	}
	var data struct {
		ErrorCode string `json:"error_code"`
	}
	if err := json.Unmarshal(n.Data, &data); err != nil || data.ErrorCode != f.errorCode {
		t.Errorf("node %s has error_code %q (%v), want %q", f.node, data.ErrorCode, err, f.errorCode)
	}
	boot := false
	for _, r := range world.Rows(f.node) {
		if r.Text("path") != "boot" {
			continue
		}
		boot = true
		if r.Text("status") != f.boot || !strings.HasPrefix(r.Text("build_id"), "maestro:") {
			t.Errorf("boot row %v, want status %s on a build of maestro", r.Doc, f.boot)
		}
		if f.boot == "FAIL" && !strings.Contains(r.Text("log_excerpt"), f.console) {
			t.Errorf("the excerpt of a failed boot does not show %q: %q", f.console, r.Text("log_excerpt"))
		}
		if f.console != "" && !strings.Contains(get(t, r.Text("log_url")), f.console) {
			t.Errorf("the console at %q does not show %q", r.Text("log_url"), f.console)
		}
	}
	if !boot {
		t.Errorf("node %s has no boot row among %v", f.node, world.Rows(f.node))
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v", url, resp.Status, err)
	}
	return string(b)
}

// hangingRamdisk holds an init that does nothing for ever.
func hangingRamdisk(t *testing.T, dir string) string {
	t.Helper()
	src := filepath.Join(dir, "hang.go")
	if err := os.WriteFile(src, []byte("package main\n\nimport \"time\"\n\nfunc main() {\n\tfor {\n\t\ttime.Sleep(time.Hour)\n\t}\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "hang")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := cpio.NewWriter(z)
	if err := w.WriteHeader(&cpio.Header{Name: "hang", Mode: cpio.TypeReg | 0o755, Size: int64(len(program)), Links: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(program); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "hang.cpio.gz")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// needKernel finds a real kernel, or skips loudly.
func needKernel(t testing.TB) debkernel.Kernel {
	t.Helper()
	if testing.Short() {
		t.Skip("NOT RUN: -short boots no real kernels; `make test` does")
	}
	cache := os.Getenv("PULLAB_TEST_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(user, "pullab-test")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	k, err := debkernel.Find(ctx, debkernel.Options{Dir: filepath.Join(cache, "demo-kernel"), Arch: "x86_64"})
	if err != nil {
		t.Skipf("NOT RUN: no real kernel was booted: %v", err)
	}
	return k
}
