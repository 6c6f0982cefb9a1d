package jobdef

import "time"

// MaxSize of a definition in bytes. Upstream's are about 1 KiB.
const MaxSize = 1 << 20

// DefaultTimeout is for a test without timeout_s, as the predecessor had it
// (predecessor.md 1.1, max_runtime).
const DefaultTimeout = time.Hour

// maxTimeout of one test. Longer ones are taken for a mistake of unit.
const maxTimeout = 30 * 24 * time.Hour

// Artifacts that a definition may name (kernelci-wire.md 3.1).
const (
	Kernel    = "kernel"
	Modules   = "modules"
	Kselftest = "kselftest"
	Rootfs    = "rootfs"
	Ramdisk   = "ramdisk"
	Initrd    = "initrd"
	DTB       = "dtb"
)

var artifactNames = []string{Kernel, Modules, Kselftest, Rootfs, Ramdisk, Initrd, DTB}

// Definition is a job definition as written, checked for form only.
type Definition struct {
	// Artifacts has a URL for each of the names above that is present.
	Artifacts map[string]string
	// Checksums has 64 lower-case hex digits for each artifact that
	// integrity.sha256 covers; upstream's covers none.
	Checksums map[string]string
	Tests     []Test
	// Platform and Arch of the environment; empty when absent.
	Platform, Arch string
	// Parameters at top level.
	Parameters map[string]string
	// Unknown lists what was present and has no meaning here, one path and
	// remark each.
	Unknown []string
	// SHA256 of the bytes, hex.
	SHA256 string
}

// Test is one element of tests.
type Test struct {
	ID, Type string
	// Timeout is positive.
	Timeout    time.Duration
	Depends    []string
	Parameters map[string]string
	// Pre and Post are shell commands.
	Pre, Post []string
	// Subset is JSON text; empty when absent.
	Subset string
}
