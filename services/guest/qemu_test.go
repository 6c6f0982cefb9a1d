package guest

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/pullab/pullab/pkg/channel"
)

// These tests boot Debian's cloud kernel under QEMU's TCG, which is on every
// machine the same. Kernel and busybox are downloaded once with apt-get, which
// changes nothing of the system, and kept below $PULLAB_TEST_CACHE or the
// user's cache directory (the same place as services/runner/qemu).

type distro struct {
	arch           string // Debian's name
	image, release string
	tree           string // holds lib/modules
	busybox        string
	guest          string // the program under test
}

var debian = map[string]func() (distro, error){
	"amd64": sync.OnceValues(func() (distro, error) { return fetchDistro("amd64") }),
	"arm64": sync.OnceValues(func() (distro, error) { return fetchDistro("arm64") }),
}

var qemu = map[string]string{"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}

func fetchDistro(arch string) (distro, error) {
	for _, tool := range []string{qemu[arch], "apt-get", "dpkg", "mkfs.ext4"} {
		if _, err := exec.LookPath(tool); err != nil {
			return distro{}, err
		}
	}
	root := os.Getenv("PULLAB_TEST_CACHE")
	if root == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return distro{}, err
		}
		root = filepath.Join(cache, "pullab-test")
	}
	tree, err := fetch(filepath.Join(root, "linux-"+arch), "linux-image-cloud-"+arch, arch, "boot/vmlinuz-*")
	if err != nil {
		return distro{}, err
	}
	d := distro{arch: arch, tree: tree}
	images, err := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	if err != nil {
		return distro{}, err
	}
	d.image, d.release = images[0], strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	if arch == "amd64" {
		box, err := fetch(filepath.Join(root, "busybox-"+arch), "busybox-static", arch, "bin/busybox")
		if err != nil {
			return distro{}, err
		}
		d.busybox = filepath.Join(box, "bin/busybox")
	}
	return d, nil
}

// fetch unpacks a Debian package, or what a meta package depends on, to
// dir/tree, unless the files that it is wanted for are there.
func fetch(dir, pkg, arch, want string) (string, error) {
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	have := func() bool {
		found, err := filepath.Glob(filepath.Join(tree, want))
		return err == nil && len(found) > 0
	}
	if have() {
		return tree, nil
	}
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return "", err
		}
	}
	options := []string{
		"-o", "Dir::State=" + dir + "/state", "-o", "Dir::State::status=/dev/null", "-o", "Dir::Cache=" + dir + "/cache",
		"-o", "APT::Architecture=" + arch, "-o", "APT::Architectures=" + arch, "-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=", "-q",
	}
	run := func(name string, args ...string) (string, error) {
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s %v: %w\n%s", name, args, err, out)
		}
		return string(out), nil
	}
	if _, err := run("apt-get", append(options, "update")...); err != nil {
		return "", err
	}
	if strings.HasPrefix(pkg, "linux-image-") {
		depends, err := run("apt-cache", append(options, "depends", pkg)...)
		if err != nil {
			return "", err
		}
		_, after, ok := strings.Cut(depends, "Depends: ")
		if !ok {
			return "", fmt.Errorf("%s depends on no kernel: %s", pkg, depends)
		}
		pkg, _, _ = strings.Cut(after, "\n")
	}
	if _, err := run("apt-get", append(options, "download", strings.TrimSpace(pkg))...); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", errors.Join(err, fmt.Errorf("downloaded %v", debs))
	}
	if _, err := run("dpkg", "-x", debs[0], tree); err != nil {
		return "", err
	}
	if !have() {
		return "", fmt.Errorf("%s has no %s", debs[0], want)
	}
	return tree, os.Remove(debs[0])
}

// programs is where the guest is built, once for each arch.
var programs = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "pullab-guest-test") })

var build = map[string]func() (string, error){
	"amd64": sync.OnceValues(func() (string, error) { return buildFor("amd64") }),
	"arm64": sync.OnceValues(func() (string, error) { return buildFor("arm64") }),
}

func buildFor(arch string) (string, error) {
	dir, err := programs()
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "pullab-guest-"+arch)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "./cmd/pullab-guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the guest: %w\n%s", err, text)
	}
	return out, nil
}

func TestMain(m *testing.M) {
	m.Run()
	if dir, err := programs(); err == nil {
		os.RemoveAll(dir)
	}
}

func needDebian(t *testing.T, arch string) distro {
	t.Helper()
	if testing.Short() {
		t.Skip("NOT RUN: -short; no real kernel was booted, so PID 1 was not tested at all")
	}
	d, err := debian[arch]()
	if err != nil {
		t.Skipf("NOT RUN: needs %s, mkfs.ext4, apt-get and Debian's archive: %v; no real %s kernel was booted, so PID 1 was not tested at all", qemu[arch], err, arch)
	}
	if d.guest, err = build[arch](); err != nil {
		t.Fatal(err)
	}
	return d
}

// run is what is to be booted and how.
type run struct {
	plan    channel.Plan
	modules map[string][]byte // below lib/modules/<release>
	args    []string          // of QEMU
	serial  bool              // the plan's port is the second serial port
	raw     []byte            // instead of the plan
}

// heard is what came out.
type heard struct {
	messages []channel.Message
	noise    channel.Noise
	console  string
	exit     error
}

func (h heard) row(t *testing.T, path string) channel.Row {
	t.Helper()
	var found []channel.Row
	for _, m := range h.messages {
		if m.Row != nil && m.Row.Path == path {
			found = append(found, *m.Row)
		}
	}
	if len(found) != 1 {
		t.Errorf("%d rows of %s, want one", len(found), path)
		return channel.Row{}
	}
	return found[0]
}

func (h heard) last() channel.Message {
	if len(h.messages) == 0 {
		return channel.Message{}
	}
	return h.messages[len(h.messages)-1]
}

const key = "the key of this attempt"

// boot runs a machine to its end. A machine that has to be ended is a failure
// of the test.
func (d distro) boot(t *testing.T, r run) heard {
	t.Helper()
	dir := t.TempDir()
	r.plan.Key = key
	planned := r.raw
	if planned == nil {
		var err error
		if planned, err = channel.EncodePlan(r.plan); err != nil {
			t.Fatal(err)
		}
	}
	guest, err := os.ReadFile(d.guest)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"pullab-guest": guest, "pullab/plan.json": planned}
	for name, b := range r.modules {
		files["lib/modules/"+d.release+"/"+name] = b
	}
	initrd, port, console := filepath.Join(dir, "initrd"), filepath.Join(dir, "port"), filepath.Join(dir, "console")
	if err := os.WriteFile(initrd, cpio(files), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{
		"-accel", "tcg", "-m", "512", "-smp", "1", "-display", "none", "-no-reboot", "-nodefaults", "-serial", "file:" + console,
		"-kernel", d.image, "-initrd", initrd, "-append",
	}
	if d.arch == "arm64" {
		args = append(args, "console=ttyAMA0 panic=-1 rdinit=/pullab-guest", "-machine", "virt", "-cpu", "cortex-a57")
	} else {
		args = append(args, "console=ttyS0 panic=-1 rdinit=/pullab-guest")
	}
	if r.serial {
		args = append(args, "-serial", "file:"+port)
	}
	for _, a := range r.args {
		args = append(args, strings.ReplaceAll(a, "PORT", port))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu[d.arch], args...)
	out, err := cmd.CombinedOutput()
	h := heard{exit: err}
	text, _ := os.ReadFile(console)
	h.console = string(text)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console:\n%s", h.console)
		}
	})
	if err != nil {
		t.Errorf("the machine did not power off: %v, %v\n%s", err, ctx.Err(), out)
	}
	said, _ := os.ReadFile(port)
	reader := channel.NewReader(bytes.NewReader(said), key)
	for {
		m, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		h.messages = append(h.messages, m)
	}
	h.noise = reader.Noise()
	return h
}

// driverModules are the modules of the drivers in the distribution's tree that
// a machine here needs, as they are.
func (d distro) driverModules(t *testing.T) map[string][]byte {
	t.Helper()
	root := filepath.Join(d.tree, "lib/modules", d.release)
	files := map[string][]byte{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		wanted := []string{"modules.dep", "modules.alias", "modules.builtin", "kernel/drivers/virtio/", "kernel/drivers/block/virtio_blk",
			"kernel/drivers/char/virtio_console", "kernel/drivers/char/hw_random/", "kernel/fs/ext4/", "kernel/fs/jbd2/", "kernel/fs/mbcache",
			"kernel/lib/", "kernel/crypto/"}
		if slices.ContainsFunc(wanted, func(w string) bool { return name == w || filepath.Ext(w) == "" && strings.HasPrefix(name, w) }) {
			files[name], err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if files["kernel/drivers/block/virtio_blk.ko"] == nil {
		t.Fatal("virtio_blk is not a module of this kernel: these tests would show nothing")
	}
	return files
}

// squeeze makes of the tree one that depmod never saw, its modules packed in
// every way there is.
func squeeze(t *testing.T, files map[string][]byte) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for i, name := range slices.Sorted(func(yield func(string) bool) {
		for n := range files {
			if strings.HasSuffix(n, ".ko") && !yield(n) {
				return
			}
		}
	}) {
		var b bytes.Buffer
		var w io.WriteCloser
		var err error
		end := []string{".gz", ".xz", ".zst"}[i%3]
		switch end {
		case ".gz":
			w = gzip.NewWriter(&b)
		case ".xz":
			// What the kernel's own decoder takes, as xz(1) --check=crc32 writes it.
			w, err = xz.WriterConfig{CheckSum: xz.CRC32, DictCap: 1 << 20}.NewWriter(&b)
		case ".zst":
			w, err = zstd.NewWriter(&b)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		out[name+end] = b.Bytes()
	}
	return out
}

// cpio is a "newc" archive (Documentation/driver-api/early-userspace/buffer-format.rst).
func cpio(files map[string][]byte) []byte {
	var b bytes.Buffer
	entry := func(name string, mode int, body []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			b.Len()+1, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(name)+1, 0, name)
		pad := func() { b.Write(make([]byte, -b.Len()&3)) }
		pad()
		b.Write(body)
		pad()
	}
	done := map[string]bool{".": true}
	var dirs func(string)
	dirs = func(dir string) {
		if !done[dir] {
			done[dir] = true
			dirs(filepath.Dir(dir))
			entry(dir, 0o040755, nil)
		}
	}
	for name, body := range files {
		dirs(filepath.Dir(name))
		entry(name, 0o100755, body)
	}
	entry("TRAILER!!!", 0, nil)
	return b.Bytes()
}
