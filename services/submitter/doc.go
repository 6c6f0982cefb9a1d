// Package submitter reports finished runs: rows to KCIDB, and the finished node
// to kernelci-api.
//
// The two sides are independent consumers of PULLAB_RESULTS: one being down does
// not hold the other. A message leaves the stream when both have acknowledged.
//
// # KCIDB side (consumer submitter-kcidb)
//
// A result's rows are built and checked against the schema, then sent with those
// of others (package batch) and followed until KCIDB has processed them; only
// then the message is acknowledged. The submission's id is recorded in
// pullab_receipts: a message that comes again after a restart is followed, not
// sent again. Results wait as long as KCIDB is down or refuses the token. A
// result whose rows can never be accepted goes to PULLAB_DEAD with the reason.
//
// # Node side (consumer submitter-node)
//
// The node is read again, merged with the result, and written: by PATCH when
// the job's own row is all there is, by one PUT /nodes with the tree of rows
// otherwise. One write, so that KernelCI sees one event: its retry service acts
// on each. PUT /nodes drops keys of the job's data that KernelCI's model does
// not have (tree_priority), as it does for KernelCI's own results. A tree that
// the API refuses is left away rather than the job left open.
//
// A node whose data.job_id is not ours belongs to somebody else: our result goes
// to PULLAB_DEAD, loudly, and the node is left alone. A node that the API does
// not know any more is acknowledged with a warning. A node that KernelCI has
// timed out is written all the same: its state machine takes a late result.
//
// # What may not be assumed
//
// That a node is written once: after a crash between the write and its receipt
// it is written again, with the same content and onto the same children.
package submitter
