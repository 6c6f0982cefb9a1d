package kernelci

import (
	"crypto/sha256"
	"encoding/hex"
)

// ClaimID is what a lab writes to data.job_id of a node it takes:
// <runtime>:<32 hex digits>. It follows from the lab's name (its KCIDB origin) and
// the node, so that a lab that lost all its records still knows its own claims;
// labs that share a runtime must differ in name.
func ClaimID(runtime, lab, node string) string {
	sum := sha256.Sum256([]byte(lab + "\x00" + node))
	return runtime + ":" + hex.EncodeToString(sum[:16])
}
