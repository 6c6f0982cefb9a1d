package guest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pullab/pullab/pkg/channel"
)

func TestHelpTeaches(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	if code := Main(2, nil, &out, &errs); code != 2 || !strings.Contains(errs.String(), "rdinit=/pullab-guest") || out.Len() > 0 {
		t.Errorf("code %d, %q", code, errs.String())
	}
	errs.Reset()
	if code := Main(2, []string{"--version"}, &out, &errs); code != 0 || !strings.HasPrefix(out.String(), "pullab-guest ") {
		t.Errorf("code %d, %q", code, out.String())
	}
	if code := Main(2, []string{"-q", "--", "no_such_module"}, &out, &errs); code != 1 || !strings.Contains(errs.String(), "no_such_module") {
		t.Errorf("code %d, %q", code, errs.String())
	}
}

// TestBootsAndPowersOff: no disk, no modules, a boot test and one that cannot
// run.
func TestBootsAndPowersOff(t *testing.T) {
	t.Parallel()
	d := needDebian(t, "amd64")
	h := d.boot(t, run{serial: true, plan: channel.Plan{
		RunID: "run_x", Attempt: 1, Port: "ttyS1", Releases: []string{d.release}, DeadlineS: 180,
		Tests: []channel.Test{
			{ID: "boot-test", Type: "boot", Path: "boot", TimeoutS: 60},
			{ID: "ltp-smoketest", Type: "ltp", Path: "ltp", TimeoutS: 60},
			{ID: "later", Type: "kselftest-x", Path: "kselftest.x", Depends: []string{"ltp-smoketest"}},
		},
	}})
	if len(h.messages) == 0 || h.messages[0].Hello == nil {
		t.Fatalf("first message is not hello: %+v", h.messages)
	}
	hello := *h.messages[0].Hello
	if hello.Release != d.release || !hello.Match || hello.Machine != "x86_64" || !strings.Contains(hello.Version, "Debian") ||
		!strings.Contains(hello.Cmdline, "panic=-1") || hello.UptimeS <= 0 {
		t.Errorf("hello %+v", hello)
	}
	boot := h.row(t, "boot")
	if boot.Status != "PASS" || boot.TestID != "boot-test" || boot.StartS != 0 || boot.TookS != hello.UptimeS || boot.Misc != nil {
		t.Errorf("%+v after hello at %g s", boot, hello.UptimeS)
	}
	for _, level := range []string{"emerg", "alert", "crit"} {
		row := h.row(t, "baseline.dmesg."+level)
		if row.Status != "PASS" || row.Number == nil || *row.Number != (channel.Number{Unit: "lines"}) || row.Excerpt != "" {
			t.Errorf("%+v", row)
		}
	}
	if row := h.row(t, "ltp"); row.Status != "MISS" || !strings.Contains(row.Reason, "root file system") {
		t.Errorf("%+v", row)
	}
	if row := h.row(t, "kselftest.x"); row.Status != "SKIP" || !strings.Contains(row.Reason, "ltp-smoketest") {
		t.Errorf("%+v", row)
	}
	if done := h.last().Done; done == nil || done.Rows != 6 {
		t.Errorf("last message %+v, want done with 6 rows", h.last())
	}
	if h.noise != (channel.Noise{}) {
		t.Errorf("noise on the port: %+v", h.noise)
	}
}

func TestOtherKernelIsRefused(t *testing.T) {
	t.Parallel()
	d := needDebian(t, "amd64")
	h := d.boot(t, run{serial: true, plan: channel.Plan{
		Port: "ttyS1", Releases: []string{"9.9.9", "9.9.9-rt"}, DeadlineS: 180,
		Tests: []channel.Test{{ID: "boot-test", Type: "boot", Path: "boot"}},
	}})
	if len(h.messages) != 2 || h.messages[0].Hello == nil || h.messages[0].Hello.Match {
		t.Fatalf("%+v, want hello without match and a refusal", h.messages)
	}
	if r := h.last().Refuse; r == nil || !strings.Contains(r.Reason, "9.9.9-rt") || !strings.Contains(r.Reason, d.release) {
		t.Errorf("last message %+v", h.last())
	}
}

// TestBadPlanPowersOff: not even a panic of the kernel may come of it.
func TestBadPlanPowersOff(t *testing.T) {
	t.Parallel()
	d := needDebian(t, "amd64")
	h := d.boot(t, run{serial: true, raw: []byte(`{"port":"ttyS1"`)})
	if len(h.messages) != 0 || !strings.Contains(h.console, "pullab-guest: the plan is not readable at byte") || strings.Contains(h.console, "Kernel panic") {
		t.Errorf("%+v", h.messages)
	}
}

// TestVirtioPort: the report port is a named virtio-serial port whose drivers
// are modules, and nobody told the kernel's release.
func TestVirtioPort(t *testing.T) {
	t.Parallel()
	d := needDebian(t, "amd64")
	h := d.boot(t, run{
		modules: d.driverModules(t),
		args:    []string{"-device", "virtio-serial-pci", "-chardev", "file,id=port,path=PORT", "-device", "virtserialport,chardev=port,name=pullab.0"},
		plan:    channel.Plan{Port: "pullab.0", DeadlineS: 180, Tests: []channel.Test{{ID: "boot-test", Type: "boot", Path: "boot"}}},
	})
	if row := h.row(t, "boot"); row.Status != "PASS" || row.Misc["kernel_release_checked"] == "" {
		t.Errorf("%+v", row)
	}
	if h.last().Done == nil {
		t.Errorf("last message %+v", h.last())
	}
}

// TestArm64: the port is a PCI serial port, the only second one that QEMU's
// virt machine has; where its driver is a module, a ttyS0 node without a device
// may be there before.
func TestArm64(t *testing.T) {
	t.Parallel()
	d := needDebian(t, "arm64")
	h := d.boot(t, run{
		args: []string{"-chardev", "file,id=port,path=PORT", "-device", "pci-serial,chardev=port"},
		plan: channel.Plan{Port: "ttyS0", Releases: []string{d.release}, DeadlineS: 220, Tests: []channel.Test{{ID: "boot-test", Type: "boot", Path: "boot"}}},
	})
	if row := h.row(t, "boot"); row.Status != "PASS" {
		t.Errorf("%+v", row)
	}
	if len(h.messages) == 0 || h.messages[0].Hello == nil || h.messages[0].Hello.Machine != "aarch64" || h.last().Done == nil {
		t.Errorf("%+v", h.messages)
	}
}

// root is a root file system of busybox and the given files.
func (d distro) root(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	files["/etc/passwd"] = "root:x:0:0::/root:/bin/sh\n"
	for name, text := range files {
		file := filepath.Join(dir, "root", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	box, err := os.ReadFile(d.busybox)
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "root", "usr/bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "busybox"), box, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields("sh echo sleep cat kill ls grep dd true mkdir ps env seq printf modprobe awk setsid") {
		if err := os.Symlink("busybox", filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("usr/bin", filepath.Join(dir, "root/bin")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "root/usr/lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("usr/lib", filepath.Join(dir, "root/lib")); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "disk")
	if out, err := exec.Command("mkfs.ext4", "-q", "-d", filepath.Join(dir, "root"), disk, "48M").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	return disk
}

// selftests stands for the kernel's run_kselftest.sh: a collection is a
// situation.
const selftests = `#!/bin/sh
echo "TAP version 13"
case "$2" in
good)
	echo "1..2"
	echo "# selftests: good: one"
	echo "ok 1 selftests: good: one"
	echo "ok 2 selftests: good: two # SKIP" ;;
bad)
	echo "# not ok 1 inner"
	echo "ok 1 selftests: bad: one"
	echo "# the evidence"
	echo "not ok 2 selftests: bad: two # exit=1" ;;
orphans)
	# Each leaves a child to PID 1 that dies at once; after a moment none of
	# them may lie there as a zombie.
	for i in $(seq 20); do sh -c '(exit 3) & exit 0'; done
	sleep 2
	z=$(cat /proc/[0-9]*/stat 2>/dev/null | awk '$3 == "Z" && $4 == 1' | grep -c .)
	if [ "$z" = 0 ]; then echo "ok 1 no zombies"; else echo "not ok 1 $z zombies"; fi
	# Left running: the next test must not meet it.
	setsid sleep 7777 &
	sleep 1 ;;
alone)
	if ps | grep -q '[s]leep 7777'; then echo "not ok 1 somebody was left"; else echo "ok 1 alone"; fi ;;
signals)
	kill -TERM 1; kill -HUP 1; kill -INT 1; kill -QUIT 1; kill -USR1 1; kill -ABRT 1; kill -SEGV 1
	sleep 1
	echo "ok 1 still here" ;;
forger)
	ls /pullab /proc/1/root/pullab 2>&1
	for f in /dev/ttyS1 /dev/vport*; do [ -e "$f" ] && echo "not ok 1 the port $f is there"; done
	ls -l /proc/self/fd | grep -q ttyS1 && echo "not ok 2 the port was inherited"
	printf '\036%064d {"seq":4,"row":{"path":"forged","status":"PASS"}}\n' 0
	printf '\036%064d {"seq":4,"row":{"path":"forged","status":"PASS"}}\n' 0 > /dev/console
	echo "ok 3 tried" ;;
modules)
	modprobe dummy_that_is_not_there 2>&1
	ls /lib/modules/$(cat /proc/sys/kernel/osrelease)/kernel/drivers/virtio > /dev/null && echo "ok 1 the modules are in the root"
	cat /proc/sys/kernel/modprobe ;;
hang)
	echo "before the hang"
	sleep 9999 & sleep 9999 ;;
esac
exit 0
`

// TestSuites: a root file system on a virtio disk, whose drivers are packed
// modules that depmod never saw, and every way that a suite can go.
func TestSuites(t *testing.T) {
	t.Parallel()
	d := needDebian(t, "amd64")
	disk := d.root(t, map[string]string{
		"/opt/kselftests/run_kselftest.sh": selftests,
		"/opt/ltp/runltp":                  "#!/bin/sh\necho \"runltp $*\"\n[ \"$2\" = smoketest ] && { echo 'abs01   PASS   0' > \"$6\"; exit 0; }\necho 'abs02   FAIL   1' > \"$6\"; echo evidence; exit 1\n",
	})
	self := func(collection string, seconds int) channel.Test {
		return channel.Test{ID: collection, Type: "kselftest-" + collection, Path: "kselftest." + collection, TimeoutS: seconds}
	}
	pre := self("pre", 60)
	pre.PreCommands = []string{"true", "echo no such board >&2; exit 7"}
	after := self("after", 60)
	after.Depends = []string{"bad"}
	good := self("good", 60)
	good.PreCommands, good.PostCommands, good.Depends = []string{"echo hello > /tmp/pre"}, []string{"cat /tmp/pre", "exit 3"}, []string{"boot-test"}
	h := d.boot(t, run{
		serial: true, modules: squeeze(t, d.driverModules(t)),
		args: []string{"-drive", "if=none,id=root,format=raw,file=" + disk, "-device", "virtio-blk-pci,drive=root,serial=pullab-root"},
		plan: channel.Plan{
			Port: "ttyS1", Releases: []string{d.release}, RootSerial: "pullab-root", DeadlineS: 220,
			Tests: []channel.Test{
				{ID: "boot-test", Type: "boot", Path: "boot"}, good, self("bad", 60), after, pre, self("orphans", 60), self("alone", 60),
				self("signals", 60), self("forger", 60), self("modules", 60), self("hang", 4),
				{ID: "ltp-two", Type: "ltp", Path: "ltp", TimeoutS: 60, Parameters: map[string]string{"tst_cmdfiles": "smoketest,fs", "skipfile": "x.yaml"}},
				{ID: "odd", Type: "unixbench", Path: "unixbench"},
			},
		},
	})
	for path, want := range map[string]struct{ status, reason, excerpt string }{
		"boot":              {"PASS", "", ""},
		"kselftest.good":    {"PASS", "", ""},
		"kselftest.bad":     {"FAIL", "1 of 2 tests failed: bad: two", "the evidence"},
		"kselftest.after":   {"SKIP", "test bad", ""},
		"kselftest.pre":     {"ERROR", "exit status 7", "no such board"},
		"kselftest.orphans": {"PASS", "", ""},
		"kselftest.alone":   {"PASS", "", ""},
		"kselftest.signals": {"PASS", "", ""},
		"kselftest.forger":  {"PASS", "", ""},
		"kselftest.modules": {"PASS", "", ""},
		"kselftest.hang":    {"ERROR", "timed out after 4s", "before the hang"},
		"ltp.smoketest":     {"PASS", "", ""},
		"ltp.fs":            {"FAIL", "exit status 1", "evidence"},
		"unixbench":         {"MISS", `"unixbench"`, ""},
	} {
		row := h.row(t, path)
		if row.Status != want.status || !strings.Contains(row.Reason, want.reason) || !strings.Contains(row.Excerpt, want.excerpt) {
			t.Errorf("%s: %s, %q, excerpt %q", path, row.Status, row.Reason, row.Excerpt)
		}
		if row.Status == "PASS" && row.Reason != "" {
			t.Errorf("%s passed for a reason: %s", path, row.Reason)
		}
	}
	if row := h.row(t, "kselftest.good"); !strings.Contains(row.Misc["post_commands_failed"], "exit status 3") {
		t.Errorf("a failed post-command is not told: %+v", row)
	}
	if row := h.row(t, "ltp.fs"); row.Misc["parameters_not_used"] != "skipfile=x.yaml" {
		t.Errorf("%+v", row)
	}
	if done := h.last().Done; done == nil || done.Rows != 17 {
		t.Errorf("last message %+v, want done with 17 rows", h.last())
	}
	if h.noise != (channel.Noise{}) {
		t.Errorf("noise on the port: %+v", h.noise)
	}
	if !strings.Contains(h.console, "# the evidence") || !strings.Contains(h.console, `"path":"forged"`) {
		t.Error("the tests' output is not on the console")
	}
}

// TestDeadline: a test that outlasts the run's deadline; the others are told as
// not run, and the machine is gone in time.
func TestDeadline(t *testing.T) {
	t.Parallel()
	d := needDebian(t, "amd64")
	disk := d.root(t, map[string]string{"/opt/kselftests/run_kselftest.sh": selftests})
	h := d.boot(t, run{
		serial: true, modules: d.driverModules(t),
		args: []string{"-drive", "if=none,id=root,format=raw,file=" + disk, "-device", "virtio-blk-pci,drive=root,serial=pullab-root"},
		plan: channel.Plan{
			Port: "ttyS1", Releases: []string{d.release}, RootSerial: "pullab-root", DeadlineS: 60,
			Tests: []channel.Test{
				{ID: "hang", Type: "kselftest-hang", Path: "kselftest.hang", TimeoutS: 3600},
				{ID: "good", Type: "kselftest-good", Path: "kselftest.good", TimeoutS: 3600},
			},
		},
	})
	if row := h.row(t, "kselftest.hang"); row.Status != "ERROR" || !strings.Contains(row.Reason, "deadline, 60 s") {
		t.Errorf("%+v", row)
	}
	if row := h.row(t, "kselftest.good"); row.Status != "MISS" || !strings.Contains(row.Reason, "deadline") {
		t.Errorf("%+v", row)
	}
	if done := h.last().Done; done == nil || done.UptimeS > 65 {
		t.Errorf("last message %+v, want done soon after 60 s", h.last())
	}
}
