package submitter_test

import (
	"strings"
	"testing"

	"github.com/pullab/pullab/pkg/app"
	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/services/submitter"
	"github.com/pullab/pullab/services/submitter/internal/kcidb"
)

func load(set ...string) (submitter.Config, error) {
	var c submitter.Config
	_, err := config.Load(&c, config.Source{Set: set})
	return c, err
}

func TestDefaultsAreValid(t *testing.T) {
	t.Parallel()
	c, err := load()
	if err != nil || !c.Report.KCIDB || c.Report.Node != "auto" || c.Submitter.Slots != 512 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestRefusedByName(t *testing.T) {
	t.Parallel()
	for set, want := range map[string]string{
		"kernelci.kcidb_origin=pull-labs-aws":               `"pull_labs_aws"`,
		"report.node=maybe":                                 "report.node",
		"report.node=on":                                    "KERNELCI_API_TOKEN",
		"submitter.batch_rows=0":                            "submitter.batch_rows",
		"submitter.slots=5000":                              "submitter.slots",
		"submitter.status_poll=0s":                          "submitter.status_poll",
		"submitter.batch_age=-1s":                           "submitter.batch_age",
		"submitter.batchrows=1":                             "batch_rows",
		"kernelci.kcidb_origin=" + strings.Repeat("a", 101): "101 characters",
	} {
		if _, err := load(set); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v does not say %q", set, err, want)
		}
	}
}

// TestFlagsWinOverVariables: --set goes before every variable, a _FILE one
// included.
func TestFlagsWinOverVariables(t *testing.T) {
	t.Parallel()
	vars := map[string]string{"KCIDB_JWT_FILE": "/nowhere", "UNIFIED_TOKEN": "unified"}
	env := &app.Env{LookupEnv: func(n string) (string, bool) { v, ok := vars[n]; return v, ok }}
	env.Set = []string{"kernelci.kcidb_jwt=flag", "kernelci.runtime_name=x"}
	got, err := kcidb.Resolve(submitter.Environment(env), config.KernelCI{KCIDBSubmitURL: "https://h/submit", KCIDBJWT: "flag"})
	if err != nil || got.Token.Reveal() != "flag" {
		t.Errorf("%q, %v", got.Token.Reveal(), err)
	}
}
