package judge

import (
	"strings"
	"testing"
	"time"

	"github.com/pullab/pullab/pkg/kernelci"
)

func TestJudge(t *testing.T) {
	now := time.Date(2026, 8, 20, 10, 6, 0, 0, time.UTC)
	rules := Rules{Runtime: "pull-labs-aws-ec2", State: "available", MinRuntime: 15 * time.Minute}
	only := rules
	only.Platforms = []string{"aws-ec2-arm64", "aws-ec2-x86_64"}
	prepared := rules
	prepared.State = "prepared"
	for name, tt := range map[string]struct {
		rules  Rules
		change func(*kernelci.Node)
		want   Reason
	}{
		"wanted":               {rules, nil, None},
		"wanted platform":      {only, nil, None},
		"no timeout":           {rules, func(n *kernelci.Node) { n.Timeout = time.Time{} }, None},
		"just time enough":     {rules, func(n *kernelci.Node) { n.Timeout = now.Add(15 * time.Minute) }, None},
		"http":                 {rules, definitionURL("http://files.example/x.json"), None},
		"yaml is translator's": {rules, definitionURL("https://files.example/x.yaml"), None},
		"other state wanted":   {prepared, func(n *kernelci.Node) { n.State = "prepared" }, None},

		"kbuild":              {rules, func(n *kernelci.Node) { n.Kind = "kbuild" }, NotAJob},
		"other runtime":       {rules, func(n *kernelci.Node) { n.Data.Runtime = "lava-collabora" }, OtherRuntime},
		"other runtime first": {rules, func(n *kernelci.Node) { n.Data.Runtime = ""; n.State = "done"; n.ID = "?" }, OtherRuntime},
		"other platform":      {only, func(n *kernelci.Node) { n.Data.Platform = "qemu-arm64" }, OtherPlatform},
		"no platform":         {only, func(n *kernelci.Node) { n.Data.Platform = "" }, OtherPlatform},
		"done":                {rules, func(n *kernelci.Node) { n.State = "done"; n.Result = "pass" }, NotOpen},
		"running":             {rules, func(n *kernelci.Node) { n.State = "running" }, NotOpen},
		"not prepared":        {prepared, nil, NotOpen},
		"claimed":             {rules, func(n *kernelci.Node) { n.Data.JobID = "other:1" }, Claimed},
		"no definition":       {rules, func(n *kernelci.Node) { n.Artifacts = nil }, NoDefinition},
		"s3":                  {rules, definitionURL("s3://bucket/x.json"), BadDefinition},
		"file":                {rules, definitionURL("file:///etc/passwd"), BadDefinition},
		"relative":            {rules, definitionURL("/x.json"), BadDefinition},
		"no host":             {rules, definitionURL("https:///x.json"), BadDefinition},
		"not a URL":           {rules, definitionURL("https://%zz"), BadDefinition},
		"late":                {rules, func(n *kernelci.Node) { n.Timeout = now.Add(14 * time.Minute) }, TooLate},
		"expired":             {rules, func(n *kernelci.Node) { n.Timeout = now.Add(-time.Hour) }, TooLate},
		"id":                  {rules, func(n *kernelci.Node) { n.ID = "job > 1" }, BadName},
		"upper case id":       {rules, func(n *kernelci.Node) { n.ID = strings.ToUpper(n.ID) }, BadName},
		"long platform":       {rules, func(n *kernelci.Node) { n.Data.Platform = strings.Repeat("x", 201) }, BadName},
		"odd platform":        {rules, func(n *kernelci.Node) { n.Data.Platform = "a.b *>\x00ö" }, None},
	} {
		t.Run(name, func(t *testing.T) {
			n := &kernelci.Node{
				ID: "6a86d157c5867fba94731e66", Kind: "job", State: "available", Timeout: now.Add(6 * time.Hour),
				Artifacts: map[string]string{"job_definition": "https://files.kernelci.org/x.json"},
				Data:      kernelci.Data{Runtime: "pull-labs-aws-ec2", Platform: "aws-ec2-x86_64"},
			}
			if tt.change != nil {
				tt.change(n)
			}
			v := tt.rules.Judge(n, now)
			if v.Reason != tt.want {
				t.Errorf("%q (%s), want %q", v.Reason, v.Detail, tt.want)
			}
			if (v.Detail == "") != (v.Reason == None) {
				t.Errorf("%q with detail %q", v.Reason, v.Detail)
			}
		})
	}
}

func definitionURL(u string) func(*kernelci.Node) {
	return func(n *kernelci.Node) { n.Artifacts["job_definition"] = u }
}

func TestForeign(t *testing.T) {
	for r, want := range map[Reason]bool{None: false, OtherRuntime: true, OtherPlatform: true, NotAJob: true, Claimed: false, TooLate: false, BadName: false} {
		if r.Foreign() != want {
			t.Errorf("%q: %v", r, !want)
		}
	}
}
