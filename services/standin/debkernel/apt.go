package debkernel

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// metaPackages are the packages that always depend on the newest small kernel:
// Debian's, then Ubuntu's.
func metaPackages(arch string) []string {
	deb := map[string]string{"x86_64": "amd64"}[arch]
	if deb == "" {
		deb = arch
	}
	return []string{"linux-image-cloud-" + deb, "linux-image-virtual"}
}

// fromPackage downloads and packs the distribution's kernel.
func fromPackage(ctx context.Context, o Options) (_ Kernel, err error) {
	pkgs, err := resolve(ctx, o)
	if err != nil {
		return Kernel{}, err
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return Kernel{}, err
	}
	tmp, err := os.MkdirTemp(o.Dir, "apt-")
	if err != nil {
		return Kernel{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	release := strings.TrimPrefix(strings.TrimPrefix(pkgs[0], "linux-image-"), "unsigned-")
	image := filepath.Join(o.Dir, "vmlinuz")
	found := false
	err = packFile(filepath.Join(o.Dir, "modules.tar.gz"), release, func(p *packer) error {
		for _, pkg := range pkgs {
			o.say("downloading %s", pkg)
			got, err := unpack(ctx, o, p, pkg, tmp, image)
			if err != nil {
				return fmt.Errorf("%s: %w", pkg, err)
			}
			found = found || got
		}
		if !found {
			return fmt.Errorf("there is no boot/vmlinuz-* in %s", strings.Join(pkgs, ", "))
		}
		return nil
	})
	if err != nil {
		return Kernel{}, err
	}
	k := Kernel{Release: release, Arch: o.Arch, From: "package " + pkgs[0]}
	b, err := json.Marshal(k)
	if err != nil {
		return Kernel{}, err
	}
	if err := writeFile(filepath.Join(o.Dir, "kernel.json"), bytes.NewReader(b)); err != nil {
		return Kernel{}, err
	}
	return Load(o.Dir)
}

// resolve tries the names with the lists that are here, then with fresh ones.
func resolve(ctx context.Context, o Options) ([]string, error) {
	var errs []error
	for _, refresh := range []bool{false, true} {
		if refresh {
			if err := o.Apt.Refresh(ctx); err != nil {
				return nil, errors.Join(append(errs, err)...)
			}
			errs = nil
		}
		for _, meta := range metaPackages(o.Arch) {
			pkgs, err := o.Apt.Resolve(ctx, meta)
			if err == nil {
				return pkgs, nil
			}
			errs = append(errs, fmt.Errorf("%s: %w", meta, err))
		}
	}
	return nil, errors.Join(errs...)
}

// unpack takes the image and the modules out of one package; it tells whether
// the image was there.
func unpack(ctx context.Context, o Options, p *packer, pkg, tmp, image string) (bool, error) {
	r, err := o.Apt.Open(ctx, pkg, tmp)
	if err != nil {
		return false, err
	}
	defer r.Close()
	o.say("unpacking %s", pkg)
	found := false
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return found, r.Close()
		}
		if err != nil {
			return false, err
		}
		name := strings.TrimPrefix(h.Name, "./")
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if name == "boot/vmlinuz-"+p.release {
			if err := writeFile(image, tr); err != nil {
				return false, err
			}
			found = true
		}
		if rel, ok := strings.CutPrefix(strings.TrimPrefix(name, "usr/"), "lib/modules/"+p.release+"/"); ok {
			if err := p.add(rel, tr); err != nil {
				return false, err
			}
		}
	}
}

// apt is Debian's and Ubuntu's package manager.
type apt struct {
	say  func(format string, args ...any)
	opts []string
	// private is a state directory of our own, for who may not write apt's.
	private string
}

func (a *apt) run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, append(append([]string{}, a.opts...), args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		if text := lastLine(stderr.String()); text != "" {
			err = fmt.Errorf("%s: %s (%w)", name, text, err)
		}
		return nil, err
	}
	return out, nil
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

var kernelDepends = regexp.MustCompile(`linux-(?:image|modules)-[0-9][^ ,(|]*`)

// Resolve follows Depends from the meta package to the image, and from the
// image to a separate modules package if it has one.
func (a *apt) Resolve(ctx context.Context, meta string) ([]string, error) {
	var out []string
	for pkg := meta; pkg != ""; {
		b, err := a.run(ctx, "", "apt-cache", "show", "--no-all-versions", pkg)
		if err != nil {
			return nil, err
		}
		next := ""
		for line := range strings.Lines(string(b)) {
			list, ok := strings.CutPrefix(line, "Depends:")
			if !ok {
				continue
			}
			for _, dep := range kernelDepends.FindAllString(list, -1) {
				if dep = strings.TrimSpace(dep); !slices.Contains(out, dep) && next == "" {
					next = dep
				}
			}
		}
		if next != "" {
			out = append(out, next)
		}
		pkg = next
	}
	if len(out) == 0 {
		return nil, errors.New("it depends on no kernel image")
	}
	return out, nil
}

// Refresh runs apt-get update: as root for the machine, else into a state
// directory of our own, which needs no right.
func (a *apt) Refresh(ctx context.Context) error {
	if os.Geteuid() != 0 {
		cache, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("apt's lists are missing: run sudo apt-get update (%w)", err)
		}
		a.private = filepath.Join(cache, "pullab", "apt")
		for _, d := range []string{"state/lists/partial", "cache/archives/partial"} {
			if err := os.MkdirAll(filepath.Join(a.private, d), 0o755); err != nil {
				return err
			}
		}
		a.opts = []string{
			"-o", "Dir::State=" + filepath.Join(a.private, "state"), "-o", "Dir::State::status=/var/lib/dpkg/status",
			"-o", "Dir::Cache=" + filepath.Join(a.private, "cache"), "-o", "Debug::NoLocking=1",
		}
	}
	a.say("apt-get update")
	if _, err := a.run(ctx, "", "apt-get", "update", "-q"); err != nil {
		return fmt.Errorf("apt's lists are missing and apt-get update failed: run sudo apt-get update (%w)", err)
	}
	return nil
}

// Open downloads pkg into dir and gives its files as dpkg-deb unpacks them.
func (a *apt) Open(ctx context.Context, pkg, dir string) (io.ReadCloser, error) {
	if _, err := a.run(ctx, dir, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", pkg); err != nil {
		return nil, err
	}
	debs, err := filepath.Glob(filepath.Join(dir, pkg+"_*.deb"))
	if err != nil || len(debs) != 1 {
		return nil, fmt.Errorf("apt-get download left %d files %s_*.deb", len(debs), pkg)
	}
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", debs[0])
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &process{ReadCloser: out, cmd: cmd}, nil
}

// process is the output of a program; Close waits for its end.
type process struct {
	io.ReadCloser
	cmd    *exec.Cmd
	closed bool
	err    error
}

func (p *process) Close() error {
	if p.closed {
		return p.err
	}
	p.closed = true
	if _, err := io.Copy(io.Discard, p.ReadCloser); err != nil {
		p.err = err
	}
	if err := p.cmd.Wait(); err != nil && p.err == nil {
		p.err = fmt.Errorf("dpkg-deb: %w", err)
	}
	return p.err
}
