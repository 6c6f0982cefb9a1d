// Package kcidb speaks to kcidb-restd-rs: the KCIDB v5.3 document, the check
// that the far side will make of it, and the three requests of its protocol.
//
// What the protocol does not say, and callers must know (kernelci-wire.md
// section 5):
//
//   - 200 from /submit means stored on disk. Whether the document was accepted
//     is only in /status, later, and why not is never said.
//   - "failed" may be a neighbour's fault: the ingester moves all files of one
//     database transaction to failed.
//   - The first value of a field wins, for ever. Sending the same document twice
//     is therefore harmless, and sending anything preliminary is not.
package kcidb
