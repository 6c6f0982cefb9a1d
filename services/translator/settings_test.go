package translator

import (
	"strings"
	"testing"
	"time"

	"github.com/pullab/pullab/pkg/config"
)

func TestDefaultsAreValid(t *testing.T) {
	t.Parallel()
	var cfg Config
	if _, err := config.Load(&cfg, config.Source{}); err != nil {
		t.Fatal(err)
	}
	s := cfg.Translator
	if s.BuildOrigin != "maestro" || s.Claim != "auto" || s.Concurrency < 16 || s.MaxRuntime != 6*time.Hour || len(s.States) != 2 {
		t.Errorf("got %+v", s)
	}
	if _, err := config.Load(&cfg, config.Source{Set: []string{"translator.build_origin="}}); err != nil || cfg.planner().BuildOrigin != cfg.KernelCI.KCIDBOrigin {
		t.Errorf("an empty build_origin gives %q, %v", cfg.planner().BuildOrigin, err)
	}
}

func TestSettingsRefuse(t *testing.T) {
	t.Parallel()
	for set, want := range map[string]string{
		"translator.claim=yes":            `translator.claim is "yes": write auto, required or off`,
		"translator.claim=required":       "translator.claim is required, but there is no kernelci.api_token",
		"translator.states=":              "translator.states is empty",
		"translator.build_origin=My-Lab":  `translator.build_origin "My-Lab" is not a legal KCIDB origin`,
		"translator.concurrency=0":        "translator.concurrency is 0",
		"translator.concurrency=1000":     "must be between 1 and 512",
		"translator.max_runtime=0s":       "translator.max_runtime is 0s",
		"translator.boot_margin=-1m":      "translator.boot_margin is -1m",
		"translator.fetch_timeout=0s":     "translator.fetch_timeout is 0s",
		"translator.fetch_patience=-1s":   "translator.fetch_patience is -1s",
		"translator.definition_timeout=1": "definition_timeout",
	} {
		var cfg Config
		if _, err := config.Load(&cfg, config.Source{Set: []string{set}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", set, err, want)
		}
	}
}
