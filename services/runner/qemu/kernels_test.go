package qemu

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// kernel is a distribution's kernel for the tests.
type kernel struct {
	image, release string
	// tree is the directory that holds lib/modules.
	tree string
}

var debian = map[string]func() (kernel, error){
	"x86_64": sync.OnceValues(func() (kernel, error) { return fetchKernel("amd64") }),
	"arm64":  sync.OnceValues(func() (kernel, error) { return fetchKernel("arm64") }),
}

// needKernel gives Debian's cloud kernel of an arch. It is downloaded once with
// the system's apt-get, which changes nothing of the system, and kept below
// $PULLAB_TEST_CACHE or the user's cache directory.
func needKernel(t testing.TB, arch string) kernel {
	t.Helper()
	if testing.Short() {
		t.Skip("NOT RUN: -short boots no real kernels; `make test` does")
	}
	for _, tool := range []string{"qemu-system-x86_64", "qemu-system-aarch64"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("NOT RUN: %s is not installed (Debian: apt-get install qemu-system-x86 qemu-system-arm); no real kernel was booted", tool)
		}
	}
	k, err := debian[arch]()
	if err != nil {
		t.Skipf("NOT RUN: no %s kernel could be had (needs apt-get, dpkg and Debian's archive): %v; no real kernel was booted", arch, err)
	}
	return k
}

func fetchKernel(arch string) (kernel, error) {
	var k kernel
	dir, err := fetchPackage("linux-"+arch, "linux-image-cloud-"+arch, arch, func(dir string) (err error) {
		k, err = findKernel(dir)
		return err
	})
	if err != nil {
		return kernel{}, fmt.Errorf("%s: %w", dir, err)
	}
	return k, nil
}

// needBusybox gives Debian's static busybox of an arch.
func needBusybox(t testing.TB, arch string) string {
	t.Helper()
	arch = goarch(arch)
	path := ""
	_, err := fetchPackage("busybox-"+arch, "busybox-static", arch, func(dir string) error {
		found, err := filepath.Glob(filepath.Join(dir, "tree", "bin", "busybox"))
		if err != nil || len(found) == 0 {
			return errors.Join(err, errors.New("no busybox"))
		}
		path = found[0]
		return nil
	})
	if err != nil {
		t.Skipf("NOT RUN: no %s busybox could be had (needs apt-get, dpkg and Debian's archive): %v; no job's root file system was used", arch, err)
	}
	return path
}

// fetchPackage unpacks a package to a directory of that name in the cache,
// unless find finds there what is wanted.
func fetchPackage(name, pkg, arch string, find func(dir string) error) (string, error) {
	root := os.Getenv("PULLAB_TEST_CACHE")
	if root == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		root = filepath.Join(cache, "pullab-test")
	}
	dir := filepath.Join(root, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return dir, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return dir, err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return dir, err
	}
	if find(dir) == nil {
		return dir, nil
	}
	if err := aptPackage(dir, pkg, arch); err != nil {
		return dir, err
	}
	return dir, find(dir)
}

func findKernel(dir string) (kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "tree", "boot", "vmlinuz-*"))
	if err != nil || len(images) == 0 {
		return kernel{}, errors.Join(err, errors.New("no vmlinuz"))
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	k := kernel{image: images[0], release: release, tree: filepath.Join(dir, "tree")}
	_, err = os.Stat(filepath.Join(k.tree, "lib/modules", release))
	return k, err
}

// aptPackage uses lists and caches of its own. Of a meta package it takes what
// that depends on.
func aptPackage(dir, pkg, arch string) error {
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	options := []string{
		"-o", "Dir::State=" + dir + "/state", "-o", "Dir::State::status=/dev/null", "-o", "Dir::Cache=" + dir + "/cache",
		"-o", "APT::Architecture=" + arch, "-o", "APT::Architectures=" + arch, "-o", "Acquire::Languages=none",
		"-o", "APT::Sandbox::User=", "-q",
	}
	if _, err := os.Stat("/etc/apt/sources.list.d/debian.sources"); err == nil {
		options = append(options, "-o", "Dir::Etc::sourcelist=sources.list.d/debian.sources", "-o", "Dir::Etc::sourceparts=-")
	}
	run := func(name string, args ...string) (string, error) {
		cmd := exec.CommandContext(context.Background(), name, append(options, args...)...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s %s: %w\n%s", name, args[0], err, out)
		}
		return string(out), nil
	}
	if _, err := run("apt-get", "update"); err != nil {
		return err
	}
	if strings.HasPrefix(pkg, "linux-image-") {
		depends, err := run("apt-cache", "depends", pkg)
		if err != nil {
			return err
		}
		_, name, ok := strings.Cut(depends, "Depends: ")
		if !ok {
			return fmt.Errorf("%s depends on no kernel: %s", pkg, depends)
		}
		name, _, _ = strings.Cut(name, "\n")
		pkg = strings.TrimSpace(name)
	}
	if _, err := run("apt-get", "download", pkg); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("downloaded %v, %w", debs, err)
	}
	out, err := exec.CommandContext(context.Background(), "dpkg", "-x", debs[0], filepath.Join(dir, "tree")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("dpkg -x: %w\n%s", err, out)
	}
	return os.Remove(debs[0])
}

// modulesArchive makes modules.tar.gz as KernelCI publishes it, with the few
// modules that a machine may need.
func modulesArchive(t testing.TB, k kernel, release string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "modules.tar.gz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	root := filepath.Join(k.tree, "lib/modules", k.release)
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name := filepath.Base(p)
		if !strings.HasPrefix(name, "modules.") && !strings.HasPrefix(name, "virtio") {
			return nil
		}
		body, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		h := &tar.Header{Typeflag: tar.TypeReg, Name: "./lib/modules/" + release + "/" + rel, Mode: 0o644, Size: int64(len(body))}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err = w.Write(body)
		return err
	})
	if err := errors.Join(err, w.Close(), z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// guestDir is set by TestMain and removed by it.
var guestDir string

// guests builds the test's guest program for both arches, once.
var guests = sync.OnceValues(func() (string, error) {
	dir := guestDir
	for _, arch := range []string{"amd64", "arm64"} {
		cmd := exec.CommandContext(context.Background(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "pullab-guest-"+arch), "./internal/testguest")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("building the test guest for %s: %w\n%s", arch, err, out)
		}
	}
	return dir, nil
})

func needGuests(t testing.TB) string {
	t.Helper()
	dir, err := guests()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// crashOrder is the variable by which this test binary is told to be another
// process.
const crashOrder = "PULLAB_TEST_CRASH"

func TestMain(m *testing.M) {
	if text := os.Getenv(crashOrder); text != "" {
		panic(crashAfterStart(text))
	}
	dir, err := os.MkdirTemp("", "pullab-testguest-")
	if err != nil {
		panic(err)
	}
	guestDir = dir
	m.Run()
	_ = os.RemoveAll(dir)
}
