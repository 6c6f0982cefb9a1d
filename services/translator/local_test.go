package translator

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

const localDefinition = `{"artifacts": {"kernel": "file:///boot/vmlinuz"}, "tests": [{"id": "boot", "type": "boot", "timeout_s": 60}],
	"environment": {"platform": "qemu-x86_64", "arch": "x86_64"}}`

func writeDefinition(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "my-boot.json")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestPlanLocal(t *testing.T) {
	t.Parallel()
	file := writeDefinition(t, localDefinition)
	for _, location := range []string{file, "file://" + file} {
		plan, err := PlanLocal(t.Context(), testConfig(), Local{Location: location})
		if err != nil {
			t.Fatal(err)
		}
		o := plan.GetOrigin()
		if !regexp.MustCompile(`^local-[0-9a-f]{24}$`).MatchString(o.GetNodeId()) || o.GetNodeName() != "my-boot" || o.GetApiBaseUri() != "" ||
			o.GetJobDefinitionUrl() != "file://"+file || o.GetNodeTimeout() != nil || o.GetRuntime() != "pull-labs-aws-ec2" || o.GetNodeCreated() == nil {
			t.Errorf("origin %v", o)
		}
		if plan.GetJobId() != "" || plan.GetFinishBefore() != nil || plan.GetExecutor() != "qemu" || !strings.HasPrefix(plan.GetRunId(), "run_pulllab-x86_64-local-") {
			t.Errorf("plan %v", plan)
		}
		if got, want := plan.GetBuild().GetBuildId(), "pullab_cloud_aws:"+o.GetNodeId(); got != want {
			t.Errorf("build id %s, want %s", got, want)
		}
	}
}

func TestPlanLocalChoices(t *testing.T) {
	t.Parallel()
	file := writeDefinition(t, strings.Replace(localDefinition, "qemu-x86_64", "some-board", 1))
	plan, err := PlanLocal(t.Context(), testConfig(), Local{
		Location: file, Platform: "aws-ec2-x86_64", Build: &pullabv1.Build{BuildId: "maestro:abc", Tree: "mine"},
	})
	if err != nil || plan.GetMachine().GetPlatform() != "aws-ec2-x86_64" || plan.GetOrigin().GetPlatform() != "aws-ec2-x86_64" ||
		plan.GetBuild().GetBuildId() != "maestro:abc" || plan.GetBuild().GetTree() != "mine" {
		t.Errorf("got %v, %v", plan, err)
	}
}

func TestPlanLocalErrors(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.files["/remote.json"] = answer(localDefinition)
	for name, c := range map[string]struct {
		location, want string
	}{
		"missing":        {filepath.Join(t.TempDir(), "none.json"), "no such file"},
		"no kernel":      {writeDefinition(t, strings.Replace(localDefinition, `"kernel": "file:///boot/vmlinuz"`, "", 1)), "Translation failed: missing required artifacts.kernel"},
		"no platform":    {writeDefinition(t, strings.Replace(localDefinition, `"platform": "qemu-x86_64", `, "", 1)), "missing required environment.platform"},
		"broken":         {writeDefinition(t, localDefinition[:40]), "is cut off: the JSON ends too early (byte 40,"},
		"remote, file":   {"https://files.example/remote.json", "artifacts.kernel is a file:// URL"},
		"remote, secret": {"https://user:hunter2@files.example/remote.json", "carries credentials"},
		"scheme":         {"ssh://h/x.json", `has the scheme "ssh"`},
		"LAVA":           {"job.yaml", "is a LAVA job"},
	} {
		_, err := PlanLocal(t.Context(), testConfig(), Local{Location: c.location}, WithTransport(w))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	if n := w.count(http.MethodGet, "/remote.json"); n != 1 {
		t.Errorf("%d requests", n)
	}
}
