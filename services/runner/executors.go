package runner

import (
	"fmt"
	"path/filepath"

	"github.com/pullab/pullab/pkg/executor"
	"github.com/pullab/pullab/services/runner/command"
	"github.com/pullab/pullab/services/runner/qemu"
)

// hostBound are executors whose machines are processes on the runner's host: a
// run that was being launched there can be adopted only there.
var hostBound = map[string]bool{"command": true, "qemu": true}

// open makes the executor of that name. A new executor gets its line here and
// its name in topology.Executors.
func open(cfg Config, name, host string) (executor.Executor, error) {
	switch name {
	case "command":
		dir, err := filepath.Abs(filepath.Join(cfg.Runner.DataDir, "command"))
		if err != nil {
			return nil, err
		}
		return command.New(cfg.Command, dir, host)
	case "qemu":
		return qemu.New(cfg.QEMU)
	default:
		return nil, fmt.Errorf("there is no executor %q", name)
	}
}

// executors opens those that are configured.
func executors(cfg Config, host string) (map[string]executor.Executor, error) {
	m := map[string]executor.Executor{}
	for _, name := range cfg.Runner.Executors {
		ex, err := open(cfg, name, host)
		if err != nil {
			return nil, fmt.Errorf("executor %s: %w", name, err)
		}
		m[name] = ex
	}
	return m, nil
}
