package qemu

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

// PlanOptions is what a plan may choose about its machine: the catalog's
// machine.options and the job's extra command line.
type PlanOptions struct {
	// Machine is -machine: q35 on x86_64, virt on arm64 unless given.
	Machine string
	// CPU is -cpu: host under KVM, max under TCG unless given.
	CPU string
	// Disk is how the root disk is attached: virtio or nvme; empty lets the
	// kernel's drivers decide.
	Disk string
	// Cmdline comes after the executor's own and the setting's: the kernel takes
	// the last of two contradicting words.
	Cmdline string
}

// Options reads a plan's options. An option that this executor does not know
// is refused by name.
func Options(plan *pullabv1.RunPlanned) (PlanOptions, error) {
	var o PlanOptions
	known := map[string]*string{"machine": &o.Machine, "cpu": &o.CPU, "disk": &o.Disk, "cmdline": &o.Cmdline}
	for _, name := range slices.Sorted(maps.Keys(plan.GetMachine().GetOptions())) {
		field, ok := known[name]
		if !ok {
			return o, fmt.Errorf("the catalog's machine option %q is unknown to the qemu executor, which knows %s",
				name, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
		*field = plan.GetMachine().GetOptions()[name]
	}
	if o.Disk != "" && o.Disk != "virtio" && o.Disk != "nvme" {
		return o, fmt.Errorf("the catalog's machine option disk is %q; it must be virtio or nvme", o.Disk)
	}
	o.Cmdline = strings.TrimSpace(o.Cmdline + " " + plan.GetBoot().GetExtraCmdline())
	if strings.ContainsAny(o.Cmdline, "\n\r\x00") {
		return o, fmt.Errorf("the extra kernel command line holds a line break or NUL")
	}
	return o, nil
}
