// Package admission is the gate between an offer and a plan: it reads the node
// again, lets go of what is finished or someone else's, claims the rest, and
// keeps a record per node so that a crash anywhere resumes with the same run id
// and the same claim.
//
// A claim is best effort. kernelci-api has no compare-and-set
// (kernelci-wire.md 1.6), so reading back what was written finds a rival that
// wrote within the same moment only if it wrote last.
package admission
