// Package channel is what the program inside the machine and the executor say
// to each other over a serial port of their own: one signed JSON line per
// message. The console is not part of it, so nothing that a test prints can be
// taken for a verdict; the key, known to the guest program alone, keeps a test
// that opens the port itself from forging one.
package channel

// Plan is what the guest gets to do, as /pullab/plan.json in its initramfs.
// The guest removes the file before it starts anything else.
type Plan struct {
	RunID   string `json:"run_id"`
	Attempt int    `json:"attempt"`
	// Key signs every line of this attempt.
	Key string `json:"key"`
	// Port is the device to report on, for example ttyS1.
	Port string `json:"port"`
	// Releases are the kernel releases (uname -r) that the kernel under test may
	// call itself: from the modules archive, else from the kernel image. Empty
	// means that neither told.
	Releases []string `json:"releases"`
	// RootSerial is the serial number of the disk with the job's root file
	// system (ext4), by which the guest finds it; empty without one. The job's
	// module tree needs no name: it is /lib/modules/<uname -r> in the initramfs.
	RootSerial string `json:"root_serial,omitempty"`
	Tests      []Test `json:"tests"`
	// DeadlineS is when the guest powers off whatever runs; seconds of
	// uptime.
	DeadlineS int `json:"deadline_s"`
}

// Test is one suite to run.
type Test struct {
	ID           string            `json:"id"`
	Type         string            `json:"type"`
	Path         string            `json:"path"`
	TimeoutS     int               `json:"timeout_s"`
	Parameters   map[string]string `json:"parameters,omitempty"`
	PreCommands  []string          `json:"pre_commands,omitempty"`
	PostCommands []string          `json:"post_commands,omitempty"`
	Depends      []string          `json:"depends,omitempty"`
}

// Message is one line. Exactly one of the pointers is set.
type Message struct {
	// Seq counts from 1 without gaps.
	Seq    int     `json:"seq"`
	Hello  *Hello  `json:"hello,omitempty"`
	Phase  *Phase  `json:"phase,omitempty"`
	Row    *Row    `json:"row,omitempty"`
	Refuse *Refuse `json:"refuse,omitempty"`
	Done   *Done   `json:"done,omitempty"`
}

// Hello is the first message: the kernel under test reached user space.
type Hello struct {
	Release string  `json:"release"`
	Version string  `json:"version"`
	Machine string  `json:"machine"`
	UptimeS float64 `json:"uptime_s"`
	Cmdline string  `json:"cmdline"`
	// Match is false when Release is none of Plan.Releases.
	Match bool `json:"match"`
}

// Phase says what the guest does now.
type Phase struct {
	Name   string `json:"name"`
	Detail string `json:"detail,omitempty"`
}

// Row is one test row.
type Row struct {
	TestID  string            `json:"test_id"`
	Path    string            `json:"path"`
	Status  string            `json:"status"` // PASS, FAIL, SKIP, ERROR, MISS, DONE
	StartS  float64           `json:"start_s"`
	TookS   float64           `json:"took_s"`
	Excerpt string            `json:"excerpt,omitempty"`
	Reason  string            `json:"reason,omitempty"`
	Number  *Number           `json:"number,omitempty"`
	Misc    map[string]string `json:"misc,omitempty"`
}

// Number is a measurement.
type Number struct {
	Value  float64 `json:"value"`
	Unit   string  `json:"unit,omitempty"`
	Prefix string  `json:"prefix,omitempty"`
}

// Refuse is the guest's own failure: the lab's, never the kernel's.
type Refuse struct {
	Reason string `json:"reason"`
}

// Done is the last message; a channel that ends without it ended early.
type Done struct {
	Rows    int     `json:"rows"`
	UptimeS float64 `json:"uptime_s"`
}

// MaxLine is the longest line on the channel in bytes; a longer excerpt is cut
// by the writer.
const MaxLine = 256 << 10
