// Package maestro is a development stand-in for kernelci-api ("Maestro"), as
// strict as the original in every respect that kernelci-wire.md sections 1 and 2
// describe: an exclusive `from` at millisecond resolution, pages without order,
// naive stamps, null for unknown nodes, PUT that resets what was left out, the
// state machine, lack of permission as 401, the enum of error codes.
//
// What it has not: users and logins (tokens are given to it), pub/sub (a
// subscription is never found), /kv, /push and /pop, reading telemetry. State is
// in memory, and also in a directory when it is given one. It starts no
// goroutine and reads time.Now only, so it works in a testing/synctest bubble.
package maestro
