// Package planner turns a job into a plan, or says why it cannot be run. It is a
// pure function of its inputs: no clock, no network, no log.
//
// A plan always has at least one test, a kernel, a KCIDB-legal path per test,
// tests in an order that respects depends, URLs of allowed schemes without
// credentials, an executor and arch that some runner serves, a positive run
// timeout, and fits into one message. Everything else is a *Refusal.
package planner
