package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pullab/pullab/pkg/config"
)

type demo struct {
	KernelCI config.KernelCI `section:"kernelci"`
	Poller   settings        `section:"poller"`
}

type settings struct {
	State   string            `key:"state" default:"available" help:"Node state to poll for."`
	Overlap time.Duration     `key:"overlap" env:"OVERLAP" default:"30s" help:"How far behind the cursor to ask."`
	Ratio   float64           `key:"ratio" default:"0.5" help:"A number."`
	On      bool              `key:"on" default:"true" help:"A | in the text."`
	Options map[string]string `key:"options" help:"A map."`
}

func (s settings) Validate() error {
	if s.Overlap < 0 {
		return errors.New("poller.overlap must not be negative")
	}
	return nil
}

func env(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// guide is the block that the predecessor's guide prints.
const guide = `{"kernelci": {
	"api_base_uri": "https://staging.kernelci.org:9000/latest",
	"api_token": null,
	"runtime_name": "pull-labs-aws-ec2",
	"poll_interval_sec": 30,
	"cursor_file": "/tmp/pullab_cloud_cursor.json",
	"kcidb_submit_url":"https://db.kernelci.org/submit",
	"kcidb_origin": "pullab_cloud_aws",
	"kcidb_jwt": null
}, "test_config": {"vms": []}, "region": "us-west-2"}`

func TestGuideConfiguration(t *testing.T) {
	t.Parallel()
	var c demo
	rep, err := config.Load(&c, config.Source{File: write(t, "config.json", guide)})
	if err != nil {
		t.Fatal(err)
	}
	if c.KernelCI.CursorFile != "/tmp/pullab_cloud_cursor.json" || c.KernelCI.PollIntervalSec != 30 || c.Poller.Overlap != 30*time.Second {
		t.Errorf("%+v", c)
	}
	if len(rep.Warnings) != 2 || !strings.Contains(rep.Warnings[0], `"region"`) || !strings.Contains(rep.Warnings[1], `"test_config"`) {
		t.Errorf("the predecessor's sections are not named: %q", rep.Warnings)
	}
}

func TestPrecedence(t *testing.T) {
	t.Parallel()
	file := write(t, "c.yaml", "kernelci:\n  api_token: from-file\n  runtime_name: some-lab\n  platforms: [a, b]\npoller: {state: prepared, options: {x: 1, z: true}}\n")
	secret := write(t, "token", "from-secret-file\n")
	for _, c := range []struct {
		name  string
		env   []string
		set   []string
		token string
	}{
		{"file", nil, nil, "from-file"},
		{"unified over file", []string{"UNIFIED_TOKEN", "unified"}, nil, "unified"},
		{"specific over unified", []string{"UNIFIED_TOKEN", "unified", "KERNELCI_API_TOKEN", "specific"}, nil, "specific"},
		{"secret file", []string{"KERNELCI_API_TOKEN_FILE", secret}, nil, "from-secret-file"},
		{"empty is unset", []string{"KERNELCI_API_TOKEN", ""}, nil, "from-file"},
		{"file over a command's default", nil, nil, "from-file"},
		{"flag over all", []string{"KERNELCI_API_TOKEN", "specific"}, []string{"kernelci.api_token=flag=with=equals"}, "flag=with=equals"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var d demo
			rep, err := config.Load(&d, config.Source{File: file, Env: env(c.env...), Set: c.set, Defaults: []string{"kernelci.api_token=never", "poller.ratio=0.75"}})
			if err != nil {
				t.Fatal(err)
			}
			if got := d.KernelCI.APIToken.Reveal(); got != c.token {
				t.Errorf("token %q, want %q", got, c.token)
			}
			if d.Poller.State != "prepared" || d.Poller.Ratio != 0.75 || strings.Join(d.KernelCI.Platforms, " ") != "a b" || d.Poller.Options["x"] != "1" || d.Poller.Options["z"] != "true" {
				t.Errorf("%+v", d)
			}
			for _, v := range rep.Values {
				if strings.Contains(v.Text, c.token) {
					t.Errorf("%s.%s shows the secret", v.Section, v.Key)
				}
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	empty := write(t, "empty", " \n")
	for _, c := range []struct {
		name, file, text string
		env, set         []string
		want             string
	}{
		{"unknown key", "c.yaml", "kernelci: {runtime_nam: x}", nil, nil, `unknown key kernelci.runtime_nam: did you mean "runtime_name"?`},
		{"unknown section", "c.yaml", "kernelcy: {}", nil, nil, `unknown section "kernelcy": did you mean "kernelci"?`},
		{"other service's section is left alone", "c.yaml", "submitter: {anything: 1}", nil, nil, ""},
		{"wrong type", "c.yaml", "kernelci: {poll_interval_sec: [1]}", nil, nil, "kernelci.poll_interval_sec (from file): must be a whole number, not a list"},
		{"number for a string", "c.yaml", "kernelci: {runtime_name: 5}", nil, nil, "must be a string"},
		{"bare off", "c.yaml", "poller: {state: off}", nil, nil, "put it in quotes"},
		{"bad duration", "c.yaml", "poller: {overlap: 30}", nil, nil, "write it with a unit"},
		{"truncated json", "c.json", `{"kernelci": {"api_token":`, nil, nil, "at byte"},
		{"two documents", "c.json", `{} {}`, nil, nil, "something follows the object"},
		{"duplicate yaml key", "c.yaml", "poller: {}\npoller: {}\n", nil, nil, `key "poller" already set`},
		{"section as list", "c.yaml", "poller: []", nil, nil, "must be an object of keys"},
		{"bad set", "", "", nil, []string{"nonsense"}, "section.key=value"},
		{"set unknown section", "", "", nil, []string{"runner.x=1"}, `no section "runner"`},
		{"both forms", "", "", []string{"KCIDB_JWT", "a", "KCIDB_JWT_FILE", "b"}, nil, "both set"},
		{"secret file missing", "", "", []string{"KCIDB_JWT_FILE", "/nonexistent/x"}, nil, "Make the file readable"},
		{"secret file empty", "", "", []string{"KCIDB_JWT_FILE", empty}, nil, "is empty"},
		{"origin", "", "", []string{"KCIDB_ORIGIN", "pull-labs-AWS"}, nil, `try "pull_labs_aws"`},
		{"credentials in url", "", "", []string{"KERNELCI_API_BASE_URI", "https://u:hunter2@h/"}, nil, "must not carry credentials"},
		{"missing", "", "", nil, []string{"kernelci.runtime_name="}, "Missing required configuration: kernelci.runtime_name"},
		{"scheme", "", "", []string{"KCIDB_SUBMIT_URL", "ftp://h/"}, nil, "not an http or https URL"},
		{"own rule", "", "", nil, []string{"poller.overlap=-1s"}, "must not be negative"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			src := config.Source{Env: env(c.env...), Set: c.set}
			if c.file != "" {
				src.File = write(t, c.file, c.text)
			}
			var d demo
			_, err := config.Load(&d, src)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v\nwant %q in it", err, c.want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error shows a password: %v", err)
			}
		})
	}
}

// TestJoined loads several services' structs at once, as the one-process lab does.
func TestJoined(t *testing.T) {
	t.Parallel()
	var lab struct{ A, B demo }
	rep, err := config.Load(&lab, config.Source{
		File: write(t, "c.yaml", "kernelci: {runtime_name: lab-x}"),
		Env:  env("KCIDB_ORIGIN", "lab_x"), Set: []string{"poller.state=prepared"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []demo{lab.A, lab.B} {
		if d.KernelCI.RuntimeName != "lab-x" || d.KernelCI.KCIDBOrigin != "lab_x" || d.Poller.State != "prepared" {
			t.Errorf("%+v", d)
		}
	}
	if n := len(rep.Values); n != 15 {
		t.Errorf("%d values reported, want each key once", n)
	}
	_, err = config.Load(&lab, config.Source{Set: []string{"poller.overlap=-1s"}})
	if err == nil || strings.Count(err.Error(), "negative") != 1 {
		t.Errorf("want one complaint, got %v", err)
	}
}

func TestMissingFile(t *testing.T) {
	t.Parallel()
	var d demo
	_, err := config.Load(&d, config.Source{File: filepath.Join(t.TempDir(), "none.yaml")})
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "--config") {
		t.Fatal(err)
	}
}

func TestMarkdown(t *testing.T) {
	t.Parallel()
	md := config.Markdown(&demo{}, &demo{})
	for _, want := range []string{"## `poller`", "| `api_token` | `KERNELCI_API_TOKEN` `KERNELCI_API_TOKEN_FILE` `UNIFIED_TOKEN`", "| `overlap` | `OVERLAP` | Duration | `30s` |", `A \| in`} {
		if !strings.Contains(md, want) {
			t.Errorf("no %q in\n%s", want, md)
		}
	}
	if strings.Count(md, "## `kernelci`") != 1 {
		t.Error("a section is documented twice")
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(guide)
	f.Add("kernelci:\n  platforms: a,b\n")
	f.Add("poller: {options: {a: [1]}}")
	f.Fuzz(func(t *testing.T, text string) {
		for _, name := range []string{"c.json", "c.yaml"} {
			var d demo
			_, _ = config.Load(&d, config.Source{File: write(t, name, text)})
		}
	})
}
