package standin_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pullab/pullab/pkg/app"
	"github.com/pullab/pullab/services/standin"
)

// firstLines runs the command until it has printed n lines, then stops it.
func firstLines(t *testing.T, n int, args ...string) (lines []string, code int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, w := io.Pipe()
	var stderr bytes.Buffer
	env := &app.Env{Stdout: w, Stderr: &stderr, LookupEnv: func(string) (string, bool) { return "", false }}
	done := make(chan int, 1)
	go func() {
		done <- app.Run(ctx, env, "pullab-standin", "x", &standin.Command{}, args)
		w.Close()
	}()
	var text strings.Builder
	buf := make([]byte, 4096)
	for strings.Count(text.String(), "\n") < n {
		k, err := r.Read(buf)
		text.Write(buf[:k])
		if err != nil {
			t.Fatalf("after %q: %v; stderr %s", text.String(), err, stderr.String())
		}
	}
	lines = strings.Split(strings.TrimSpace(text.String()), "\n")
	if url, ok := strings.CutPrefix(lines[0], "export KERNELCI_API_BASE_URI="); ok {
		_, b := do(t, http.DefaultClient, "GET", url+"/nodes?kind=job", "", nil)
		lines = append(lines, string(b))
	}
	cancel()
	return lines, <-done
}

var anyPorts = []string{"serve", "--api-port=0", "--storage-port=0", "--kcidb-port=0"}

func TestServe(t *testing.T) {
	t.Parallel()
	kernels, tokens := t.TempDir(), filepath.Join(t.TempDir(), "tokens")
	kernel := filepath.Join(kernels, "image")
	if err := os.WriteFile(kernel, []byte("a kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	lines, code := firstLines(t, 10, append(anyPorts, "--offer-demo", "--kernel="+kernel, "--kernel-dir="+kernels, "--arch=arm64", "--token-dir="+tokens)...)
	if code != 0 || !strings.HasPrefix(lines[9], "# offered: http://127.0.0.1:") || !strings.Contains(lines[10], `"platform":"qemu-arm64"`) {
		t.Errorf("exit %d, %q", code, lines)
	}
	b, err := os.ReadFile(filepath.Join(tokens, "kernelci_api_token"))
	if err != nil || "export KERNELCI_API_TOKEN="+string(b) != lines[1]+"\n" {
		t.Errorf("token file %q, %v; printed %q", b, err, lines[1])
	}
}

func TestServeRefuses(t *testing.T) {
	t.Parallel()
	rules := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(rules, []byte("api: [{path: /x}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"does nothing":      {"--faults=" + rules},
		"flags only":        {"--set=a.b=c"},
		"--kernel /no/such": {"--offer-demo", "--kernel=/no/such", "--kernel-dir=" + t.TempDir()},
		"stand-ins: listen": {"--listen=256.0.0.1"},
	} {
		var stderr bytes.Buffer
		env := &app.Env{Stdout: io.Discard, Stderr: &stderr, LookupEnv: func(string) (string, bool) { return "", false }}
		code := app.Run(t.Context(), env, "pullab-standin", "x", &standin.Command{}, append(append([]string{}, anyPorts...), args...))
		if code == 0 || !strings.Contains(stderr.String(), want) {
			t.Errorf("%v: exit %d, %s", args, code, stderr.String())
		}
	}
}

func TestFetchKernel(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from := filepath.Join(t.TempDir(), "k")
	if err := os.WriteFile(from, []byte("a kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	env := &app.Env{Stdout: &out, Stderr: io.Discard, LookupEnv: func(string) (string, bool) { return "", false }}
	if code := app.Run(t.Context(), env, "pullab-standin", "x", &standin.Command{}, []string{"fetch-kernel", "--dir", dir, "--kernel", from}); code != 0 {
		t.Fatalf("exit %d", code)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "vmlinuz")); err != nil || string(b) != "a kernel" {
		t.Errorf("%q %v", b, err)
	}
}

// BenchmarkWorld is what a lab asks of the stand-ins per job.
func BenchmarkWorld(b *testing.B) {
	w, err := standin.New(standin.Options{})
	if err != nil {
		b.Fatal(err)
	}
	c := &http.Client{Transport: w.Transport()}
	ask := func(method, url, token string, body io.Reader) {
		req, err := http.NewRequestWithContext(b.Context(), method, url, body)
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := c.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != 200 {
			b.Fatal(res.Status, err)
		}
	}
	api, kcidb := w.APIToken(), w.KCIDBToken()
	for b.Loop() {
		id, err := w.OfferJob(b.Context(), standin.Job{})
		if err != nil {
			b.Fatal(err)
		}
		ask("GET", w.APIURL()+"/node/"+id, api, nil)
		ask("PATCH", w.APIURL()+"/node/"+id, api, strings.NewReader(`{"data":{"runtime":"pull-labs-demo","job_id":"1"}}`))
		ask("PATCH", w.APIURL()+"/node/"+id, api, strings.NewReader(`{"state":"done","result":"pass"}`))
		ask("POST", w.SubmitURL(), kcidb, strings.NewReader(`{"version":{"major":5,"minor":3},"tests":[{"id":"a:`+id+`","origin":"a","build_id":"m:1"}]}`))
		if len(w.Rows(id)) != 1 {
			b.Fatal("no row")
		}
	}
	b.ReportMetric(float64(4*b.N)/b.Elapsed().Seconds(), "requests/s")
}
