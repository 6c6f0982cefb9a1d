// Package poller offers the jobs of one runtime, as kernelci-api has them, on
// PULLAB_JOBS.
//
// # How jobs are found
//
// Twice. Every poll interval it reads /events from the cursor, less an overlap,
// to the end; every sweep interval it lists /nodes that are open and unclaimed.
// Events are quick and may be missed: they become visible out of order, expire
// after 7 days, and cannot all be read by a lab that was down. The sweep is slow
// and complete.
//
// # Guarantees
//
//  1. A job is judged by its node as it is now, not as the event says it was.
//  2. The cursor never passes a job that is neither offered nor deliberately
//     skipped: it moves when a drain of the events is complete, to the greatest
//     timestamp, and no further than before the first job that could not be
//     handled.
//  3. Cursor arithmetic uses the API's timestamps and its Date header, never
//     this machine's clock.
//  4. Any number of pollers of one runtime may run: the ledger and the cursor
//     are written with compare-and-set, publishing is idempotent by key.
//  5. Losing the whole JetStream store loses no open job: the sweep offers the
//     unclaimed ones again, and the first start's reading of events those whose
//     claim is our own (kernelci.ClaimID) and unknown to the ledger.
//
// # What may not be assumed
//
//   - That a job is offered once. See package offers.
//   - That an offered job is still wanted: admission is the translator's.
//   - That every offer will be read: a job that its poller skipped as too late
//     has a record, and no message.
package poller
