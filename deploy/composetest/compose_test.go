// Package composetest brings docker-compose.yml up in a real container engine
// and waits for the demo job's rows. It needs the images of `make images
// nats-image`; `make compose-test` builds them first.
package composetest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/modules/compose"
)

// row is what the test reads of the stand-in KCIDB's /rows.
type row struct {
	Origin  string `json:"origin"`
	Path    string `json:"path"`
	Status  string `json:"status"`
	BuildID string `json:"build_id"`
	LogURL  string `json:"log_url"`
}

func TestDemoJobEndsAsAcceptedRows(t *testing.T) {
	engine(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()

	stack, err := compose.NewDockerComposeWith(compose.WithStackFiles("../../docker-compose.yml"), compose.StackIdentifier("pullabtest"))
	if err != nil {
		t.Fatal(err)
	}
	prefix := cmp.Or(os.Getenv("IMAGE_PREFIX"), "pullab")
	up := stack.WithEnv(map[string]string{
		"IMAGE_PREFIX": prefix, "NATS_IMAGE": prefix + "/nats", "NATS_PORT": "14222",
		"STANDIN_API_PORT": "18088", "STANDIN_STORAGE_PORT": "18089", "STANDIN_KCIDB_PORT": "18090",
	})
	t.Cleanup(func() {
		down, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if err := stack.Down(down, compose.RemoveOrphans(true), compose.RemoveVolumes(true)); err != nil {
			t.Errorf("taking the stack down: %v", err)
		}
	})
	started := time.Now()
	if err := up.Up(ctx); err != nil {
		t.Fatalf("docker compose up: %v", err)
	}
	defer func() {
		if t.Failed() {
			logs(t, stack)
		}
	}()
	rows, err := accepted(ctx, "http://127.0.0.1:18090/rows")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("first accepted row %.1f s after docker compose up", time.Since(started).Seconds())
	for _, r := range rows {
		t.Logf("%s %s %s", r.Path, r.Status, r.LogURL)
		if r.Status != "PASS" || r.Origin != "pullab_demo" || !strings.HasPrefix(r.BuildID, "maestro:") {
			t.Errorf("row %+v: want PASS, origin pullab_demo, and a maestro build", r)
		}
	}
	boot := slices.IndexFunc(rows, func(r row) bool { return r.Path == "boot" })
	if boot < 0 {
		t.Fatalf("no boot row among %+v", rows)
	}
	// Inside, the storage is standin:8089.
	url := strings.Replace(rows[boot].LogURL, "//standin:8089/", "//127.0.0.1:18089/", 1)
	console, err := get(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(console, []byte("Linux version ")) {
		t.Errorf("the console at %s is no Linux kernel's: %.200q", url, console)
	}
}

// engine skips, loudly, where no container engine is.
func engine(t *testing.T) {
	t.Helper()
	p, err := testcontainers.NewDockerProvider()
	if err == nil {
		defer p.Close()
		err = p.Health(t.Context())
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "!!! NO CONTAINER ENGINE (%v): docker-compose.yml and the images were NOT tested\n", err)
		t.Skip("no container engine: docker-compose.yml and the images were NOT tested")
	}
}

// accepted asks until the stand-in has test rows.
func accepted(ctx context.Context, url string) ([]row, error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		rows, last := rowsAt(ctx, url)
		if len(rows) > 0 {
			return rows, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no rows were accepted in time; last error: %w", last)
		case <-tick.C:
		}
	}
}

func rowsAt(ctx context.Context, url string) ([]row, error) {
	b, err := get(ctx, url)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Rows []struct {
			Kind string `json:"kind"`
			Row  row    `json:"row"`
		} `json:"rows"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, err
	}
	var rows []row
	for _, e := range answer.Rows {
		if e.Kind == "tests" {
			rows = append(rows, e.Row)
		}
	}
	return rows, nil
}

// maxBody is far more than a console.
const maxBody = 16 << 20

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, maxBody))
}

// logs prints what each container said, for a failing test.
func logs(t *testing.T, stack *compose.DockerCompose) {
	t.Helper()
	for _, s := range stack.Services() {
		c, err := stack.ServiceContainer(t.Context(), s)
		if err != nil {
			t.Logf("%s: %v", s, err)
			continue
		}
		r, err := c.Logs(t.Context())
		if err != nil {
			t.Logf("%s: %v", s, err)
			continue
		}
		b, _ := io.ReadAll(io.LimitReader(r, 64<<10))
		t.Logf("--- %s\n%s", s, b)
		r.Close()
	}
}
