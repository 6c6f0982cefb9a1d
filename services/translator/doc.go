// Package translator admits offered jobs and plans them: JobOffered in,
// RunPlanned out.
//
// Per job, in this order, each step recorded in pullab_admissions so that a
// crash between any two resumes with the same run id and the same claim:
//
//  1. Read the node again. A job that is done, or claimed by someone else, is
//     somebody else's to report: it is recorded and let go. A job that is gone,
//     expired or in a strange state goes to PULLAB_DEAD with the reason.
//  2. Record phase "claiming" with the run id and our job id, then write the
//     job id to node.data.job_id, read the node again to see whether it stuck,
//     record "claimed".
//  3. Fetch the definition, walk to the kbuild, plan.
//  4. Publish the plan, or the refusal as a plan for the executor "none"; then
//     record "planned" or "refused".
//
// A job offered again after that is published again under the same run id,
// which the runner's ledger absorbs.
//
// What may not be assumed: that a claim excludes anybody. kernelci-api has no
// compare-and-set (kernelci-wire.md 1.6), so two labs that claim within one
// round trip of each other may both believe that they won.
package translator
