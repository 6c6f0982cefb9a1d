// Package batch brings the rows of many jobs to KCIDB in few submissions and
// sees each job to its end: accepted, or guilty.
//
// # Guarantees
//
//  1. Deliver returns nil only when KCIDB says of a submission with the job's
//     rows that it is processed, and *Guilty only when the job's rows alone were
//     refused, or failed twice while KCIDB was seen to process what it was sent.
//     Otherwise it waits, for as long as KCIDB is down or refuses the token.
//  2. A submission's id is told to the job's owner as soon as KCIDB has given
//     it, before anything is concluded from it.
//  3. Only documents of rows that passed kcidb.Pack are sent.
//  4. All requests go through one Client; at any time at most one fresh batch is
//     being sent, so that while KCIDB is down jobs gather instead of knocking.
//
// # How a failure is taken apart
//
// A failed batch is sent once more, as its failure may be a neighbour's fault
// (kernelci-wire.md 5.3). If it fails again it is halved until the guilty job
// stands alone. Alone it is sent again with growing pauses, and found guilty
// when an attempt fails that was made after something else had been processed:
// a database that is down fails everybody, and is nobody's guilt. Without any
// such witness it is found guilty after Settings.ConvictAfter.
//
// # What may not be assumed
//
// That rows are sent once: a lost reply, a crash before the owner wrote the id
// down, or a failure of a neighbour sends them again. KCIDB keeps the first
// value, so that does no harm.
package batch
