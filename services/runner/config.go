package runner

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/services/runner/command"
	"github.com/pullab/pullab/services/runner/internal/logs"
	"github.com/pullab/pullab/services/runner/qemu"
)

// Config of the runner.
type Config struct {
	NATS    config.NATS      `section:"nats"`
	Runner  Settings         `section:"runner"`
	Logs    logs.Settings    `section:"logs"`
	Command command.Settings `section:"command"`
	QEMU    qemu.Settings    `section:"qemu"`
}

// Settings of the section `runner`.
type Settings struct {
	Executors  []string          `key:"executors" env:"PULLAB_EXECUTORS" default:"qemu" help:"Executors that this runner serves: qemu, command."`
	Arches     []string          `key:"arches" env:"PULLAB_ARCHES" default:"arm64,x86_64" help:"Arches whose plans this runner takes, in KernelCI's spelling."`
	Slots      map[string]string `key:"slots" env:"PULLAB_SLOTS" help:"Machines at a time per executor, for example qemu=2,command=8. Default: half the CPUs for qemu, the CPUs for command."`
	DataDir    string            `key:"data_dir" env:"PULLAB_DATA_DIR" default:"pullab-data" help:"Directory for the runs' files (logs/run_*) and the executors' state. Runners of one host may share it."`
	Attempts   int               `key:"attempts" default:"3" help:"Attempts at a run when the lab fails. The kernel's and the tests' failures are never tried again."`
	BackoffMin time.Duration     `key:"backoff_min" default:"10s" help:"Delay before the second attempt; it doubles from there to backoff_max."`
	BackoffMax time.Duration     `key:"backoff_max" default:"5m" help:"Longest delay between attempts."`
}

// Validate checks the section.
func (s Settings) Validate() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf("runner."+format, args...)) }
	if len(s.Executors) == 0 {
		complain("executors is empty: name at least one of %v", topology.Executors)
	}
	for _, e := range s.Executors {
		if !slices.Contains(topology.Executors, e) {
			complain("executors: %q is none of %v", e, topology.Executors)
		}
	}
	if len(s.Arches) == 0 {
		complain("arches is empty: name at least one of %v", topology.Arches)
	}
	for _, a := range s.Arches {
		if !slices.Contains(topology.Arches, a) {
			complain("arches: %q is none of %v", a, topology.Arches)
		}
	}
	for _, e := range slices.Sorted(maps.Keys(s.Slots)) {
		if !slices.Contains(topology.Executors, e) {
			complain("slots: %q is no executor; there are %v", e, topology.Executors)
		}
		if n, err := strconv.Atoi(s.Slots[e]); err != nil || n < 1 {
			complain("slots: %s=%s must be a whole number from 1", e, s.Slots[e])
		}
	}
	if s.DataDir == "" {
		complain("data_dir is empty: name a directory")
	}
	if s.Attempts < 1 {
		complain("attempts is %d: it must be at least 1", s.Attempts)
	}
	if s.BackoffMin < 0 || s.BackoffMax < s.BackoffMin {
		complain("backoff_min %v and backoff_max %v: write 0 <= min <= max", s.BackoffMin, s.BackoffMax)
	}
	return errors.Join(errs...)
}

// Validate asks for what the served executors cannot do without.
func (c Config) Validate() error {
	if slices.Contains(c.Runner.Executors, "command") && c.Command.Path == "" {
		return errors.New("runner.executors has command but command.path is empty: name the program that runs a plan")
	}
	return nil
}

// slots of an executor.
func (s Settings) slots(name string) int {
	if n, err := strconv.Atoi(s.Slots[name]); err == nil && n > 0 {
		return n
	}
	if name == "qemu" {
		// A guest has two virtual CPUs by default.
		return max(1, runtime.NumCPU()/2)
	}
	return runtime.NumCPU()
}

func (s Settings) logsDir() (string, error) {
	return filepath.Abs(filepath.Join(s.DataDir, "logs"))
}
