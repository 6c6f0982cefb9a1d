// Package guest is the program inside the machine: PID 1 from an initramfs, on
// the kernel under test. It checks that the running kernel is the one meant,
// loads the modules that the machine needs, runs the plan's tests in the job's
// root file system and reports rows over a port of its own (pkg/channel).
//
// What it holds:
//
//   - Nothing that a test prints is read as a verdict: rows go out signed on a
//     port that tests do not inherit, and the plan with the key is gone from the
//     file system before the first test. A test that runs as root can still ruin
//     its own run (reboot, write over memory); it cannot make another's.
//   - A failure of this program or of the plan is a Refuse message, the lab's;
//     never a kernel panic: its own panics are caught, and no signal ends it.
//   - The machine powers off: after the last row, after a refusal, and at the
//     plan's deadline whatever hangs.
//   - A run always says what became of every test of the plan, in rows, unless
//     the kernel dies first; that the executor sees by the missing Done.
//
// Kernels ask /pullab-guest for modules as they would ask /sbin/modprobe
// (kernel.modprobe), so request_module works without a root file system.
package guest
