// Package scheduler offers jobs the way the KernelCI scheduler does.
package scheduler

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pullab/pullab/services/standin/internal/node"
	"github.com/pullab/pullab/services/standin/maestro"
	"github.com/pullab/pullab/services/standin/storage"
)

// Job is one job to offer. Zero fields get the values of the demo's boot job.
type Job struct {
	// Name is the job's name, group and last element of its path; "" is
	// baseline-<arch>-<runtime>.
	Name string
	// Runtime that is to take it; "" is the Scheduler's.
	Runtime string
	// Platform; "" is qemu-<arch>.
	Platform string
	// Arch is x86_64, arm64 or arm; "" is x86_64.
	Arch string
	// Artifacts: a file on this machine, which the storage then serves, or an
	// http(s) URL; "" leaves it out.
	Kernel, Modules, Ramdisk, Rootfs, Initrd, DTB, Kselftest string
	// Tests of the definition; none is one boot test of 600 s.
	Tests []Test
	// Parameters at the top of the definition.
	Parameters map[string]string
	// Definition is uploaded as it is instead of one made of the above.
	Definition []byte
	// DefinitionExt is the extension of its name; "" is .json (.yaml is LAVA's).
	DefinitionExt string
	// Describe is kernel_revision.describe; "" is a made-up one.
	Describe string
	// Life is the node's timeout after now; 0 is 6 h.
	Life time.Duration
	// RetryCounter of the node.
	RetryCounter int
	// NoKbuild hangs the job directly below the checkout.
	NoKbuild bool
}

// Test is an element of tests in the definition.
type Test struct {
	ID         string   `json:"id"`
	Type       string   `json:"type"`
	Depends    []string `json:"depends"`
	TimeoutS   int      `json:"timeout_s"`
	Subset     any      `json:"subset,omitempty"`
	Parameters string   `json:"parameters,omitempty"`
	Pre        []string `json:"pre-commands"`
	Post       []string `json:"post-commands"`
}

// Scheduler makes nodes and definitions. Its fields are set before use.
type Scheduler struct {
	Maestro *maestro.Server
	Storage *storage.Server
	// StorageURL and CallbackURL have no slash at the end.
	StorageURL, CallbackURL string
	// Runtime of jobs that name none.
	Runtime string

	mu sync.Mutex
	// checkout, kbuilds and jobs are what is shared: jobs of one kernel hang on
	// one kbuild.
	checkout *maestro.Node
	kbuilds  map[string]maestro.Node
	jobs     map[string]Job
}

func (j Job) withDefaults(runtime string) Job {
	if j.Arch == "" {
		j.Arch = "x86_64"
	}
	if j.Runtime == "" {
		j.Runtime = runtime
	}
	if j.Platform == "" {
		j.Platform = "qemu-" + j.Arch
	}
	if j.Name == "" {
		j.Name = "baseline-" + strings.TrimSuffix(j.Arch, "_64") + "-" + j.Runtime
	}
	if j.DefinitionExt == "" {
		j.DefinitionExt = ".json"
	}
	return j
}

// Offer does what the scheduler does (kernelci-wire.md 2.2): it creates the
// checkout, the kbuild and the job node, running and without artifacts; uploads
// the definition; and makes the node available. It gives the job node's id.
func (s *Scheduler) Offer(j Job) (string, error) {
	j = j.withDefaults(s.Runtime)
	parent, build, err := s.parent(&j)
	if err != nil {
		return "", fmt.Errorf("offering %s: %w", j.Name, err)
	}
	n := s.Maestro.NewNode("job", j.Name)
	n.ID = s.Maestro.NewID()
	n.Path = append(append([]string{}, parent.Path...), j.Name)
	n.Group, n.Parent, n.TreeID, n.RetryCounter = &j.Name, &parent.ID, parent.TreeID, j.RetryCounter
	if j.Life != 0 {
		n.Timeout = node.Stamp(time.Now().Add(j.Life))
	}
	data := maps.Clone(build)
	data["runtime"], data["platform"] = j.Runtime, j.Platform
	if n.Data, err = json.Marshal(data); err != nil {
		return "", err
	}
	if n, err = s.Maestro.Insert(n); err != nil {
		return "", err
	}
	url, err := s.uploadDefinition(j, n.ID)
	if err != nil {
		return "", fmt.Errorf("offering %s: %w", j.Name, err)
	}
	_, err = s.Maestro.Update(n.ID, func(n *maestro.Node) {
		n.State, n.Artifacts = "available", map[string]string{"job_definition": url}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.jobs == nil {
		s.jobs = map[string]Job{}
	}
	s.jobs[n.ID] = j
	return n.ID, err
}

// Retry offers again what the retry service would; it gives the new ids.
func (s *Scheduler) Retry() ([]string, error) {
	var out []string
	for _, n := range s.Maestro.Retries() {
		s.mu.Lock()
		j, ok := s.jobs[n.ID]
		s.mu.Unlock()
		if !ok {
			continue
		}
		j.RetryCounter = n.RetryCounter + 1
		id, err := s.Offer(j)
		if err != nil {
			return out, err
		}
		out = append(out, id)
	}
	return out, nil
}

// CloseStale ends the jobs of an earlier process that nobody can fetch any more,
// because their definitions are at an address where the storage was then.
func (s *Scheduler) CloseStale() error {
	for _, n := range s.Maestro.Available("job") {
		url := n.Artifacts["job_definition"]
		if url == "" || strings.HasPrefix(url, s.StorageURL+"/") {
			continue
		}
		data := n.DataMap()
		if data == nil {
			data = map[string]any{}
		}
		data["error_code"], data["error_msg"] = "submit_error", "the stand-ins moved to another address"
		raw, err := json.Marshal(data)
		if err != nil {
			return err
		}
		incomplete := "incomplete"
		if _, err := s.Maestro.Update(n.ID, func(n *maestro.Node) { n.State, n.Result, n.Data = "done", &incomplete, raw }); err != nil {
			return err
		}
	}
	return nil
}

// parent finds or makes the node that the job hangs on, and the part of data
// that is the build's. Files that j names become URLs of the storage.
func (s *Scheduler) parent(j *Job) (maestro.Node, map[string]any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	checkout, err := s.checkoutNode(j.Describe)
	if err != nil {
		return maestro.Node{}, nil, err
	}
	data := buildData(j.Arch, checkout.DataMap()["kernel_revision"])
	key := strings.Join([]string{j.Arch, j.Kernel, j.Modules, j.Kselftest, j.DTB}, "\n")
	id := s.Maestro.NewID()
	old, known := s.kbuilds[key]
	if known {
		id = old.ID
	}
	name := "kbuild-gcc-15-" + strings.TrimSuffix(j.Arch, "_64")
	if err := s.place(j, name+"-"+id); err != nil {
		return maestro.Node{}, nil, err
	}
	switch {
	case j.NoKbuild:
		return checkout, data, nil
	case known:
		return old, data, nil
	}
	n := s.Maestro.NewNode("kbuild", name)
	pass := "pass"
	n.ID, n.Path, n.Group, n.Parent, n.TreeID = id, []string{"checkout", name}, &name, &checkout.ID, checkout.TreeID
	n.State, n.Result = "available", &pass
	n.Artifacts = j.kbuildArtifacts()
	full := maps.Clone(data)
	full["platform"], full["runtime"], full["job_id"], full["fragments"] = "kubernetes", "k8s-all", "kci-"+id, []string{}
	if n.Data, err = json.Marshal(full); err != nil {
		return maestro.Node{}, nil, err
	}
	if n, err = s.Maestro.Insert(n); err != nil {
		return maestro.Node{}, nil, err
	}
	if s.kbuilds == nil {
		s.kbuilds = map[string]maestro.Node{}
	}
	s.kbuilds[key] = n
	return n, data, nil
}

func buildData(arch string, revision any) map[string]any {
	kernelType, defconfig := "bzimage", "x86_64_defconfig"
	switch arch {
	case "arm64":
		kernelType, defconfig = "image", "defconfig"
	case "arm":
		kernelType, defconfig = "zimage", "multi_v7_defconfig"
	}
	return map[string]any{
		"kernel_revision": revision, "kernel_type": kernelType, "arch": arch,
		"defconfig": defconfig, "config_full": defconfig, "compiler": "gcc-15",
	}
}

func (s *Scheduler) checkoutNode(describe string) (maestro.Node, error) {
	if s.checkout != nil {
		return *s.checkout, nil
	}
	if describe == "" {
		describe = "v7.1-rc4-112-g5f3c2b1a9d8e"
	}
	n := s.Maestro.NewNode("checkout", "checkout")
	n.ID = s.Maestro.NewID()
	pass, tree := "pass", sha256.Sum256([]byte(n.ID))
	commit, treeID := hex.EncodeToString(tree[:20]), hex.EncodeToString(tree[:])
	n.Path, n.State, n.Result, n.TreeID = []string{"checkout"}, "available", &pass, &treeID
	var err error
	n.Data, err = json.Marshal(map[string]any{"kernel_revision": map[string]any{
		"tree": "mainline", "url": "https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git", "branch": "master",
		"commit": commit, "describe": describe, "version": map[string]any{"version": 7, "patchlevel": 1, "sublevel": nil, "extra": "-rc4", "name": nil},
		"patchset": nil, "commit_tags": []string{}, "commit_message": "A demonstration", "tip_of_branch": true,
	}})
	if err != nil {
		return maestro.Node{}, err
	}
	if n, err = s.Maestro.Insert(n); err != nil {
		return maestro.Node{}, err
	}
	s.checkout = &n
	return n, nil
}

// artifact names the fields of a Job that are files or URLs.
func (j *Job) artifacts() map[string]*string {
	return map[string]*string{
		"kernel": &j.Kernel, "modules": &j.Modules, "ramdisk": &j.Ramdisk, "rootfs": &j.Rootfs,
		"initrd": &j.Initrd, "dtb": &j.DTB, "kselftest": &j.Kselftest,
	}
}

// place serves the job's local files below dir, and puts their URLs in the job.
func (s *Scheduler) place(j *Job, dir string) error {
	for name, field := range j.artifacts() {
		if *field == "" || strings.HasPrefix(*field, "http://") || strings.HasPrefix(*field, "https://") {
			continue
		}
		file := filepath.Base(*field)
		if name == "kernel" {
			file = map[string]string{"x86_64": "bzImage", "arm": "zImage"}[j.Arch]
			if file == "" {
				file = "Image"
			}
		}
		p := path.Join("/", dir, file)
		if err := s.Storage.AddFile(p, *field); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		*field = s.StorageURL + p
	}
	return nil
}

func (j *Job) kbuildArtifacts() map[string]string {
	out := map[string]string{}
	for _, a := range []struct{ name, url string }{{"kernel", j.Kernel}, {"modules", j.Modules}, {"kselftest_tar_gz", j.Kselftest}} {
		if a.url != "" {
			out[a.name] = a.url
		}
	}
	return out
}

// definition is the document of kernelci-wire.md 3.1; keys come in the
// template's order.
type definition struct {
	Artifacts   map[string]string `json:"artifacts"`
	Tests       []Test            `json:"tests"`
	Environment struct {
		Platform string `json:"platform"`
		Arch     string `json:"arch"`
		Console  struct {
			Method string `json:"method"`
			Baud   int    `json:"baud"`
		} `json:"console"`
	} `json:"environment"`
	Callback struct {
		URL       string `json:"url"`
		TokenName string `json:"token_name"`
	} `json:"callback"`
	Parameters map[string]string `json:"parameters,omitempty"`
	Integrity  struct {
		SHA256 map[string]string `json:"sha256"`
	} `json:"integrity"`
}

// render makes the job's definition, with the blank lines at the start that the
// real files have.
func (s *Scheduler) render(j Job, nodeID string) ([]byte, error) {
	d := definition{Artifacts: map[string]string{}, Tests: j.Tests, Parameters: j.Parameters}
	for name, field := range j.artifacts() {
		if *field != "" {
			d.Artifacts[name] = *field
		}
	}
	if len(d.Tests) == 0 {
		d.Tests = []Test{{ID: "boot-test-" + nodeID[:8], Type: "boot", TimeoutS: 600}}
	}
	d.Tests = slices.Clone(d.Tests)
	for i := range d.Tests {
		t := &d.Tests[i]
		for _, l := range []*[]string{&t.Depends, &t.Pre, &t.Post} {
			if *l == nil {
				*l = []string{}
			}
		}
	}
	d.Environment.Platform, d.Environment.Arch = j.Platform, j.Arch
	d.Environment.Console.Method, d.Environment.Console.Baud = "serial", 115200
	d.Callback.URL = s.CallbackURL + "/node/" + nodeID
	d.Callback.TokenName = "kernelci-pipeline-callback"
	d.Integrity.SHA256 = map[string]string{"_comment": "Checksums would be populated from metadata.json if available"}
	var b bytes.Buffer
	b.WriteString("\n\n\n")
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(d)
	return bytes.TrimRight(b.Bytes(), "\n"), err
}

func (s *Scheduler) uploadDefinition(j Job, nodeID string) (string, error) {
	body := j.Definition
	if body == nil {
		var err error
		if body, err = s.render(j, nodeID); err != nil {
			return "", err
		}
	}
	sum := sha256.Sum256([]byte(nodeID))
	p := fmt.Sprintf("/pull_labs_jobs/%s/%s%s", time.Now().UTC().Format("20060102"), hex.EncodeToString(sum[:16]), j.DefinitionExt)
	return s.StorageURL + p, s.Storage.AddBytes(p, body)
}
