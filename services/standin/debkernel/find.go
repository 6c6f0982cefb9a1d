package debkernel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Limits.
const (
	// maxImage is the largest kernel image that is downloaded, in bytes.
	maxImage = 512 << 20
	// downloadTime is how long a download may take.
	downloadTime = 10 * time.Minute
)

// Kernel is a kernel on this machine.
type Kernel struct {
	// Image is the path of the kernel image.
	Image string `json:"-"`
	// Modules is the path of its modules archive, "" without one.
	Modules string `json:"-"`
	// Release is what uname -r will say, "" if the image does not tell.
	Release string `json:"release"`
	// Arch is x86_64 or arm64.
	Arch string `json:"arch"`
	// From says where it came from, for people.
	From string `json:"from"`
}

// Options of Find.
type Options struct {
	// Source is a file or an http(s) URL; "" looks for a kernel.
	Source string
	// Dir is where what is downloaded or packed stays. It must be given.
	Dir string
	// Arch is x86_64 or arm64; "" is this machine's.
	Arch string
	// Progress gets a line per step; may be nil.
	Progress func(line string)
	// Transport of a URL; nil is the default.
	Transport http.RoundTripper

	// Root of /boot and /lib/modules; "" is /. Tests put a directory here.
	Root string
	// Apt is the package manager; nil is this machine's.
	Apt PackageManager
}

// PackageManager gets packages by name. Open gives the tar of a package's files.
type PackageManager interface {
	// Resolve gives the concrete packages that hold the kernel and its modules.
	Resolve(ctx context.Context, meta string) ([]string, error)
	// Refresh brings the lists of packages here.
	Refresh(ctx context.Context) error
	// Open downloads a package.
	Open(ctx context.Context, pkg, dir string) (io.ReadCloser, error)
}

func (o *Options) say(format string, args ...any) {
	if o.Progress != nil {
		o.Progress(fmt.Sprintf(format, args...))
	}
}

// Arch is this machine's architecture in KernelCI's words.
func Arch() string {
	if runtime.GOARCH == "amd64" {
		return "x86_64"
	}
	return runtime.GOARCH
}

// Find gives a kernel. The error names every way that was tried and what would
// help.
func Find(ctx context.Context, o Options) (Kernel, error) {
	if o.Arch == "" {
		o.Arch = Arch()
	}
	if o.Root == "" {
		o.Root = "/"
	}
	if o.Apt == nil {
		o.Apt = &apt{say: o.say}
	}
	if o.Source != "" {
		return given(ctx, o)
	}
	if k, err := Load(o.Dir); err == nil && k.Arch == o.Arch {
		o.say("kernel %s from %s", k.Release, o.Dir)
		return k, nil
	}
	k, aptErr := fromPackage(ctx, o)
	if aptErr == nil {
		return k, nil
	}
	if ctx.Err() != nil {
		return Kernel{}, context.Cause(ctx)
	}
	o.say("no kernel package (%v); looking in /boot", aptErr)
	k, bootErr := fromBoot(o)
	if bootErr == nil {
		return k, nil
	}
	return Kernel{}, fmt.Errorf("no kernel for the demonstration. Tried:\n"+
		"  the distribution's cloud kernel package: %w\n"+
		"  /boot: %w\n"+
		"Give one with --kernel FILE|URL, or let apt find its packages (sudo apt-get update)", aptErr, bootErr)
}

// Load gives the kernel that an earlier Find left in dir.
func Load(dir string) (Kernel, error) {
	b, err := os.ReadFile(filepath.Join(dir, "kernel.json"))
	if err != nil {
		return Kernel{}, err
	}
	var k Kernel
	if err := json.Unmarshal(b, &k); err != nil {
		return Kernel{}, fmt.Errorf("%s/kernel.json: %w. Remove the directory", dir, err)
	}
	k.Image = filepath.Join(dir, "vmlinuz")
	if _, err := os.Stat(k.Image); err != nil {
		return Kernel{}, err
	}
	if m := filepath.Join(dir, "modules.tar.gz"); exists(m) {
		k.Modules = m
	}
	return k, nil
}

func exists(name string) bool { _, err := os.Stat(name); return err == nil }

// given uses the file or URL that the user named, with the modules archive
// beside a file if there is one.
func given(ctx context.Context, o Options) (Kernel, error) {
	image := o.Source
	if strings.HasPrefix(image, "http://") || strings.HasPrefix(image, "https://") {
		sum := sha256.Sum256([]byte(o.Source))
		image = filepath.Join(o.Dir, "url-"+hex.EncodeToString(sum[:8]), "vmlinuz")
		if !exists(image) {
			o.say("downloading %s", o.Source)
			if err := download(ctx, o, image); err != nil {
				return Kernel{}, fmt.Errorf("--kernel %s: %w", o.Source, err)
			}
		}
	}
	release, err := imageRelease(image)
	if err != nil {
		return Kernel{}, fmt.Errorf("--kernel %s: %w. Give a readable kernel image, for example a copy of /boot/vmlinuz-*", o.Source, err)
	}
	k := Kernel{Image: image, Release: release, Arch: o.Arch, From: o.Source}
	if m := filepath.Join(filepath.Dir(image), "modules.tar.gz"); exists(m) {
		k.Modules = m
	}
	return k, nil
}

func download(ctx context.Context, o Options, name string) error {
	ctx, cancel := context.WithTimeout(ctx, downloadTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, o.Source, nil)
	if err != nil {
		return err
	}
	res, err := (&http.Client{Transport: o.Transport}).Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("HTTP %s", res.Status)
	}
	return writeFile(name, io.LimitReader(res.Body, maxImage))
}

// writeFile puts the whole of r at name, or nothing.
func writeFile(name string, r io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.Create(name + ".part")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return errors.Join(err, os.Remove(name+".part"))
	}
	return os.Rename(name+".part", name)
}

// imageRelease reads the release out of an x86 bzImage (Linux boot protocol,
// field kernel_version); other images give "".
func imageRelease(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, 64<<10)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", err
	}
	head = head[:n]
	if len(head) < 0x210 || string(head[0x202:0x206]) != "HdrS" {
		return "", nil
	}
	at := 0x200 + int(head[0x20e]) + int(head[0x20f])<<8
	if at >= len(head) {
		return "", nil
	}
	text, _, _ := bytes.Cut(head[at:], []byte{0})
	release, _, _ := strings.Cut(string(text), " ")
	return release, nil
}

// fromBoot uses the newest readable image in /boot.
func fromBoot(o Options) (Kernel, error) {
	if o.Arch != Arch() {
		return Kernel{}, fmt.Errorf("its kernels are for %s, not %s", Arch(), o.Arch)
	}
	images, err := filepath.Glob(filepath.Join(o.Root, "boot", "vmlinuz*"))
	if err != nil || len(images) == 0 {
		return Kernel{}, errors.New("there is no /boot/vmlinuz*")
	}
	age := func(name string) time.Time {
		if st, err := os.Stat(name); err == nil {
			return st.ModTime()
		}
		return time.Time{}
	}
	slices.SortFunc(images, func(a, b string) int { return age(b).Compare(age(a)) })
	for _, image := range images {
		f, err := os.Open(image)
		if err != nil {
			continue
		}
		f.Close()
		_, release, _ := strings.Cut(filepath.Base(image), "vmlinuz-")
		k := Kernel{Image: image, Release: release, Arch: o.Arch, From: image}
		if r, err := imageRelease(image); err == nil && r != "" {
			k.Release = r
		}
		o.say("kernel %s from %s", k.Release, image)
		tree := filepath.Join(o.Root, "lib", "modules", k.Release)
		if k.Release == "" || !exists(tree) {
			return k, nil
		}
		k.Modules = filepath.Join(o.Dir, "boot-"+k.Release, "modules.tar.gz")
		if exists(k.Modules) {
			return k, nil
		}
		o.say("packing %s", tree)
		return k, packTree(tree, k.Release, k.Modules)
	}
	return Kernel{}, errors.New("none of /boot/vmlinuz* is readable: copy one with sudo and give it with --kernel")
}

// Store puts k into dir in the form that Load reads, unless it is there.
func Store(k Kernel, dir string) (Kernel, error) {
	if filepath.Dir(k.Image) != filepath.Clean(dir) || filepath.Base(k.Image) != "vmlinuz" {
		for _, c := range []struct{ from, to string }{{k.Image, "vmlinuz"}, {k.Modules, "modules.tar.gz"}} {
			if err := copyFile(c.from, filepath.Join(dir, c.to)); err != nil {
				return Kernel{}, err
			}
		}
	}
	b, err := json.Marshal(k)
	if err != nil {
		return Kernel{}, err
	}
	if err := writeFile(filepath.Join(dir, "kernel.json"), bytes.NewReader(b)); err != nil {
		return Kernel{}, err
	}
	return Load(dir)
}

func copyFile(from, to string) error {
	if from == "" {
		return nil
	}
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	return writeFile(to, f)
}
