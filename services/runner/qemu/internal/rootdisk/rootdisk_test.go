package rootdisk

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func archiveFile(t *testing.T, files int, body []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "full.rootfs.tar.gz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	add := func(h tar.Header, body []byte) {
		if h.Size = int64(len(body)); h.Typeflag != tar.TypeXGlobalHeader {
			h.ModTime = time.Unix(1_700_000_000, 0)
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		w.Write(body)
	}
	add(tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}, nil)
	add(tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}, nil)
	add(tar.Header{Typeflag: tar.TypeDir, Name: "./usr/", Mode: 0o755}, nil)
	add(tar.Header{Typeflag: tar.TypeDir, Name: "./usr/bin/", Mode: 0o755}, nil)
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "./bin", Linkname: "usr/bin", Mode: 0o777}, nil)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "./usr/bin/sudo", Mode: 0o4755}, []byte("setuid"))
	add(tar.Header{Typeflag: tar.TypeLink, Name: "./usr/bin/sudoedit", Linkname: "./usr/bin/sudo"}, nil)
	add(tar.Header{Typeflag: tar.TypeChar, Name: "./dev/null", Devmajor: 1, Devminor: 3, Mode: 0o666}, nil)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "./usr/bin/ping", Mode: 0o755, Uid: 1000, Gid: 70000,
		PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y"}}, []byte("p"))
	for i := range files {
		add(tar.Header{Typeflag: tar.TypeReg, Name: "./srv/" + strconv.Itoa(i), Mode: 0o644}, body)
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func disk(t *testing.T, archive string, size int64) (string, error) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "root.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return f.Name(), Convert(t.Context(), f, Archives{Root: archive}, size)
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path = "/usr/sbin/" + name
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("NOT RUN: %s is not installed (package e2fsprogs), so the disk image was not checked", name)
	}
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

func TestConvert(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		files int
		body  []byte
		size  int64
	}{
		"small":                       {3, []byte("x"), 100 << 20},
		"many inodes":                 {10_000, []byte("x"), 2 << 30},
		"several groups":              {40, bytes.Repeat([]byte("0123456789abcdef"), 1<<18), 3 << 30},
		"more than a block of groups": {1, []byte("x"), 40 << 30},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img, err := disk(t, archiveFile(t, c.files, c.body), c.size)
			if err != nil {
				t.Fatal(err)
			}
			tool(t, "e2fsck", "-f", "-n", img)
			info := tool(t, "dumpe2fs", "-h", img)
			free := field(t, info, "Free blocks:")
			if free < int(c.size/blockSize)-c.files*(len(c.body)/blockSize+2)-20_000 {
				t.Errorf("%d free blocks of %d", free, c.size/blockSize)
			}
			if field(t, info, "Free inodes:") < 5 {
				t.Error("no free inodes")
			}
			if strings.Contains(info, "read-only") {
				t.Error("still read-only")
			}
			if out := tool(t, "debugfs", "-R", "stat /usr/bin/sudo", img); !strings.Contains(out, "Mode:  04755") || !strings.Contains(out, "Links: 2") {
				t.Errorf("sudo: %s", out)
			}
			if out := tool(t, "debugfs", "-R", "ea_get /usr/bin/ping user.x", img); !strings.Contains(out, "y") {
				t.Errorf("xattr: %s", out)
			}
		})
	}
}

func field(t *testing.T, info, name string) int {
	t.Helper()
	for line := range strings.Lines(info) {
		if v, ok := strings.CutPrefix(line, name); ok {
			n, err := strconv.Atoi(strings.TrimSpace(v))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %q in %s", name, info)
	return 0
}

// testsFile is an archive of kselftests with its members below top.
func testsFile(t *testing.T, top string, names ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kselftest.tar.gz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	put := func(h tar.Header, body string) {
		h.Size = int64(len(body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, body)
	}
	put(tar.Header{Typeflag: tar.TypeDir, Name: top, Mode: 0o755}, "")
	for _, name := range names {
		put(tar.Header{Typeflag: tar.TypeReg, Name: top + name, Mode: 0o744}, "new "+name)
	}
	if len(names) > 0 {
		put(tar.Header{Typeflag: tar.TypeLink, Name: top + "hard", Linkname: top + names[0]}, "")
		put(tar.Header{Typeflag: tar.TypeSymlink, Name: top + "soft", Linkname: "./hard"}, "")
	}
	if err := errors.Join(w.Close(), z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestKselftest(t *testing.T) {
	t.Parallel()
	// What make gen_tar installs beside the collections.
	names := []string{"kselftest/runner.sh", "run_kselftest.sh", "arm64/fp/fp-stress"}
	for _, top := range []string{"./", "kselftest/", "./kselftest_install/"} {
		t.Run(top, func(t *testing.T) {
			t.Parallel()
			f, err := os.Create(filepath.Join(t.TempDir(), "root.img"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			// The root file system has older tests in the same place.
			root := testsFile(t, "./opt/kselftests/", append(names, "stale")...)
			if err := Convert(t.Context(), f, Archives{Root: root, Kselftest: testsFile(t, top, names...)}, 128<<20); err != nil {
				t.Fatal(err)
			}
			tool(t, "e2fsck", "-f", "-n", f.Name())
			for _, name := range names {
				if got := tool(t, "debugfs", "-R", "cat /opt/kselftests/"+name, f.Name()); !strings.Contains(got, "new "+name) {
					t.Errorf("%s: %q", name, got)
				}
			}
			list := tool(t, "debugfs", "-R", "ls -p /opt/kselftests", f.Name())
			if !strings.Contains(list, "/100744/0/0/run_kselftest.sh/") || !strings.Contains(list, "/soft/") || !strings.Contains(list, "/hard/") || strings.Contains(list, "stale") {
				t.Errorf("%s", list)
			}
		})
	}
}

func TestBrokenKselftest(t *testing.T) {
	t.Parallel()
	root := archiveFile(t, 1, []byte("x"))
	html := filepath.Join(t.TempDir(), "page")
	if err := os.WriteFile(html, []byte(strings.Repeat("<html>", 500)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string]string{
		"no run_kselftest.sh": testsFile(t, "./", "other"),
		"too deep":            testsFile(t, "a/b/", "run_kselftest.sh"),
		"html":                html,
	} {
		f, err := os.Create(filepath.Join(t.TempDir(), "root.img"))
		if err != nil {
			t.Fatal(err)
		}
		if err := Convert(t.Context(), f, Archives{Root: root, Kselftest: file}, 128<<20); !errors.Is(err, ErrKselftest) {
			t.Errorf("%s gave %v", name, err)
		}
		f.Close()
	}
}

func TestTooSmall(t *testing.T) {
	t.Parallel()
	body := make([]byte, 5<<20)
	_, err := disk(t, archiveFile(t, 30, body), 128<<20)
	if !errors.Is(err, ErrTooSmall) {
		t.Errorf("150 MiB on 128 MiB gave %v", err)
	}
}

func TestBrokenArchive(t *testing.T) {
	t.Parallel()
	good, err := os.ReadFile(archiveFile(t, 100, bytes.Repeat([]byte("z9"), 5000)))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"truncated": good[:len(good)/2],
		"html":      []byte(strings.Repeat("<html>", 500)),
	} {
		path := filepath.Join(t.TempDir(), "a")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := disk(t, path, 256<<20); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s gave %v", name, err)
		}
	}
}
