package pullab_test

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/pullab/pullab/pkg/app"
	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/services/pullab"
	"github.com/pullab/pullab/services/pullab/lab"
)

// TestDocs fails when docs/configuration.md is not what the structs say.
func TestDocs(t *testing.T) {
	t.Parallel()
	want, err := os.ReadFile(filepath.Join("..", "..", "docs", "configuration.md"))
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	env := &app.Env{Stdout: &out, Stderr: &errs, LookupEnv: func(string) (string, bool) { return "", false }}
	if code := app.Run(t.Context(), env, "pullab", "", &pullab.CLI{}, []string{"config", "docs"}); code != 0 {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Error("docs/configuration.md is stale: run `make docs`")
	}
}

// TestSections fails when a service has a section that config does not know to
// be another's, or the other way round.
func TestSections(t *testing.T) {
	t.Parallel()
	var have []string
	lab := reflect.TypeFor[lab.Config]()
	for i := range lab.NumField() {
		service := lab.Field(i).Type
		for j := range service.NumField() {
			if s := service.Field(j).Tag.Get("section"); s != "" {
				have = append(have, s)
			}
		}
	}
	slices.Sort(have)
	if have = slices.Compact(have); !slices.Equal(have, config.Sections) {
		t.Errorf("services have sections %v, config.Sections is %v", have, config.Sections)
	}
}

// TestShippedConfigurations loads every configuration file in the repository
// with the real validators.
func TestShippedConfigurations(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join("..", "..", "deploy", "config", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no configurations found: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			var cfg lab.Config
			if _, err := config.Load(&cfg, config.Source{File: file}); err != nil {
				t.Error(err)
			}
		})
	}
}
