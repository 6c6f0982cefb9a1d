package catalog

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pullab/pullab/pkg/topology"
)

func TestDefault(t *testing.T) {
	t.Parallel()
	c, err := Load("")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.Names(), []string{"aws-ec2-arm64", "aws-ec2-x86_64", "qemu-arm64", "qemu-x86_64"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, name := range c.Names() {
		p, err := c.Lookup(name)
		if err != nil || p.Executor != "qemu" || !strings.HasSuffix(name, p.Arch) || p.Name != name {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func TestDecode(t *testing.T) {
	t.Parallel()
	c, err := Decode("lab.yaml", []byte(`
platforms:
  board:
    executor: command
    arch: arm64
    cpus: 8
    memory_mib: 16384
    disk_gib: 100
    cmdline: "console=ttyAMA0 quiet"
    options: {rack: 7, port: "3", hot: yes}
  small: {executor: qemu, arch: x86_64}
`))
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Lookup("board")
	want := Platform{
		Name: "board", Executor: "command", Arch: "arm64", CPUs: 8, MemoryMiB: 16384, DiskGiB: 100,
		Cmdline: "console=ttyAMA0 quiet", Options: map[string]string{"rack": "7", "port": "3", "hot": "yes"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	if p, err := c.Lookup("small"); err != nil || p.CPUs != defaultCPUs || p.MemoryMiB != defaultMemoryMiB || p.DiskGiB != defaultDiskGiB {
		t.Errorf("defaults: %+v, %v", p, err)
	}
}

func TestUnknownPlatform(t *testing.T) {
	t.Parallel()
	for file, edit := range map[string]string{
		"/etc/pullab/lab.yaml": "add it to /etc/pullab/lab.yaml",
		"":                     "write a catalog file that has it and name the file in translator.catalog",
	} {
		c, err := Decode(file, []byte("platforms: {b: {executor: qemu, arch: arm64}, a: {executor: qemu, arch: arm64}}"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Lookup("imx6dl-riotboard")
		var unknown *UnknownPlatformError
		if want := `platform "imx6dl-riotboard" is not in this lab's catalog (it has a, b): ` + edit; !errors.As(err, &unknown) || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	entry := func(s string) string {
		return "platforms:\n  p:\n    executor: qemu\n    arch: x86_64\n    " + s + "\n"
	}
	for name, c := range map[string]struct{ in, want string }{
		"empty":            {"", "lab.yaml has no platforms"},
		"only remarks":     {"# nothing\n", "has no platforms"},
		"no platforms":     {"platforms: {}", "has no platforms"},
		"null platforms":   {"platforms:", "has no platforms"},
		"not YAML":         {"platforms: [", "lab.yaml is not YAML"},
		"a list":           {"- a", "line 1: want keys and values here"},
		"two documents":    {entry("cpus: 1") + "---\n" + entry("cpus: 1"), "more than one YAML document"},
		"unknown top":      {"platform: {}", `line 1: unknown key "platform": did you mean "platforms"?`},
		"unknown key":      {entry("memory: 2048"), `line 5: unknown key "memory": did you mean "memory_mib"? (known: arch, cmdline,`},
		"far key":          {entry("xyzzyplugh: 1"), `line 5: unknown key "xyzzyplugh" (known: arch,`},
		"twice":            {entry("arch: arm64"), `key "arch" is given twice`},
		"platform twice":   {"platforms:\n  p: {executor: qemu, arch: arm64}\n  p: {executor: qemu, arch: arm64}", `line 3: key "p" is given twice`},
		"executor":         {"platforms: {p: {executor: qmeu, arch: x86_64}}", `executor "qmeu" is not one of command, qemu: did you mean "qemu"?`},
		"executor none":    {"platforms: {p: {executor: none, arch: x86_64}}", `executor "none" is not one of`},
		"no executor":      {"platforms: {p: {arch: x86_64}}", `executor "" is not one of`},
		"arch":             {"platforms: {p: {executor: qemu, arch: arm}}", `arch "arm" is not one of arm64, x86_64`},
		"no cpus":          {entry("cpus: 0"), "cpus is 0: it must be between 1 and 1024"},
		"cpus text":        {entry("cpus: many"), `line 5: want a whole number, not "many"`},
		"cpus list":        {entry("cpus: [1]"), "line 5: want a single value here"},
		"memory in bytes":  {entry("memory_mib: 2147483648"), "memory_mib is 2147483648: it must be between 128 and"},
		"memory with unit": {entry("memory_mib: 2G"), `want a whole number, not "2G"`},
		"disk":             {entry("disk_gib: -1"), "disk_gib is -1"},
		"cmdline":          {entry(`cmdline: "a\nb"`), "cmdline has a line break"},
		"name":             {"platforms: {'a b': {executor: qemu, arch: arm64}}", `platform name "a b" has characters other than`},
		"alias":            {"platforms:\n  a: &x {executor: qemu, arch: arm64}\n  b: *x", "line 3: aliases are not supported"},
		"merge":            {"platforms:\n  a: &x {executor: qemu, arch: arm64}\n  b: {<<: *x}", `unknown key "<<"`},
		"nested options":   {entry("options: {a: {b: c}}"), "want a single value here"},
		"odd key":          {"? [a]\n: b", "a key must be plain text"},
	} {
		_, err := Decode("lab.yaml", []byte(c.in))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s:\ngot  %v\nwant %s", name, err, c.want)
		}
	}
}

// All complaints come at once, each with its line.
func TestDecodeComplainsAboutAll(t *testing.T) {
	t.Parallel()
	_, err := Decode("lab.yaml", []byte("platforms:\n  a: {executor: x, arch: y, cpus: 0}\n  b: {executor: qemu, arch: arm64, colour: red}\n"))
	for _, want := range []string{`line 2: platform a: executor "x"`, `line 2: platform a: arch "y"`, "line 2: platform a: cpus is 0", `line 3: unknown key "colour"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing from:\n%v", want, err)
		}
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good := filepath.Join(dir, "good.yaml")
	if err := os.WriteFile(good, defaultYAML, 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(good); err != nil || c.File != good {
		t.Errorf("got %+v, %v", c, err)
	}
	big := filepath.Join(dir, "big.yaml")
	if err := os.WriteFile(big, make([]byte, maxSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{big, filepath.Join(dir, "missing.yaml"), dir} {
		if _, err := Load(f); err == nil {
			t.Errorf("%s: no error", f)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(defaultYAML)
	f.Add([]byte("platforms: {p: {executor: qemu, arch: x86_64, options: {a: b}}}"))
	f.Add([]byte("platforms:\n  a: &x {executor: qemu, arch: arm64}\n  b: *x"))
	f.Add([]byte("? [a]\n: b\n---\n"))
	f.Add([]byte("!!binary x: !!float y"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Decode("", data)
		if err != nil {
			return
		}
		if len(c.Names()) == 0 {
			t.Fatal("an empty catalog was accepted")
		}
		for _, name := range c.Names() {
			p, err := c.Lookup(name)
			if err != nil || p.Name != name || !slices.Contains(topology.Executors, p.Executor) || !slices.Contains(topology.Arches, p.Arch) || p.CPUs < 1 {
				t.Fatalf("%+v, %v", p, err)
			}
		}
	})
}
