package submitter

import (
	"github.com/pullab/pullab/services/submitter/internal/kcidb"
)

// Check tells what New would refuse although the configuration loads: missing or
// malformed KCIDB credentials. env looks variables up; see Environment.
func Check(cfg Config, env func(string) (string, bool)) error {
	if !cfg.Report.KCIDB {
		return nil
	}
	_, err := kcidb.Resolve(env, cfg.KernelCI)
	return err
}
