// Package run takes one plan to one result: the runner's state machine.
//
// # Guarantees
//
//  1. Every effect (a machine started, a machine stopped, a result published) is
//     recorded in the ledger before and after it, by compare-and-set.
//  2. After a crash the message comes again, and whoever gets it adopts: same
//     attempt, same handle, same deadline. Taking over raises the epoch; the
//     former owner's next write fails, and it stops without effects.
//  3. A result is decided once. From then on it is in the ledger, and only that is
//     published, however often, always under the run's id.
//  4. Three outcomes, told apart by type where they are seen. The kernel's
//     failure and a test's are Outcomes: reported, never retried. *LabError is
//     the lab's: tried again here, in the end reported as incomplete with MISS
//     rows. An ended context is neither: the machine stays, the message goes
//     back.
//  5. An attempt is begun only when all of run_timeout fits before finish_before.
//     A machine stopped early would look like a kernel that hung. What no longer
//     fits is reported as incomplete, node_timeout: what KernelCI itself says of
//     a job whose time is over.
//
// # What may not be assumed
//
//   - That two owners never work at the same time: a lease is not a fence. They
//     may both await one machine; only one of them can write.
//   - That a stopped owner's machine is stopped: see package reaper.
package run
