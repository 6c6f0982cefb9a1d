// Package command is the executor for people who do not write Go: any program
// runs the plan.
//
// # The program
//
// It is started once per attempt, in the run's directory, with one JSON object
// on its standard input (see Input):
//
//	{"run_id": "...", "attempt": 1, "deadline": "2026-01-01T00:00:00Z", "dir": "/...", "plan": {...}}
//
// plan is a RunPlanned as protojson with the field names of
// proto/pullab/v1/run_planned.proto. It answers on its standard output, one JSON
// object per line with exactly one key, and may do so at any time:
//
//	{"progress": {"phase": "booting", "detail": "power on"}}
//	{"kernel": {"fate": "booted", "release": "6.12.0"}}
//	{"kernel": {"fate": "failed", "reason": "Kernel panic - not syncing"}}
//	{"row": {"path": "boot", "status": "PASS", "test_id": "boot", "duration_s": 3.2}}
//	{"row": {"path": "ltp.abs01", "status": "FAIL", "log_excerpt": "...", "reason": "..."}}
//	{"file": {"name": "console.log", "log": true}}
//	{"lab_error": {"reason": "power", "message": "the board does not answer", "fix": "Look at its plug."}}
//	{"done": {"device": "board-3", "facts": {"firmware": "2.1"}}}
//
// progress.phase is fetching, booting or testing. kernel says how the kernel
// under test fared: booted, failed or hung; a PASS counts only after booted. row
// has path, status (PASS, FAIL, SKIP, ERROR, MISS, DONE) and optionally test_id,
// start_time (RFC 3339), duration_s, log_excerpt, reason, number {value, unit,
// prefix} and misc. file names a file in dir; with log it is the console that
// rows link to. lab_error ends the attempt: the lab failed, not the kernel; with
// "permanent": true another attempt would end the same way. done ends the run
// with what was said so far. testdata/lab.sh is an example.
//
// Standard error goes to program.log in the run's directory. The exit code does
// not matter; to end without done or lab_error is the lab's failure. A line that
// is not of this form, or too long, is too, with the line's number.
//
// # Guarantees
//
//   - The program runs in a session of its own and outlives the runner. Whoever
//     adopts the run reads the same output from the start.
//   - timeout(1) from coreutils stands over the program, also without a runner:
//     SIGTERM to its process group at the deadline, SIGKILL ten seconds later.
//   - The machine exists for as long as timeout(1) holds a lock on the file
//     alive. No process number is ever trusted alone: a process is signalled only
//     when number and start time are those that were written down.
//   - One program per attempt: starting is serialized by a lock, and the marks
//     that it was started are made before the program gets to run.
//
// # What may not be assumed
//
// A process that leaves the session (a daemon) is not ours any more: it is
// neither awaited nor killed.
package command
