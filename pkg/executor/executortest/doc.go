// Package executortest holds every executor to the contract of package
// executor: Suite is the conformance suite, Fake an executor made for tests that
// passes it.
//
// An executor's own test gives Suite a Harness: how to open the executor as a
// process does that has just started, and a plan for each Scenario. The suite
// opens it several times over the same machines; that is how it plays a crash.
// Fake works beside real time and inside a testing/synctest bubble.
package executortest
