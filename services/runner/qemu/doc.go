// Package qemu is the executor that boots a job's kernel in QEMU on this host.
//
// A machine is a directory below DataDir/machines, named <run id>-<attempt>: the
// inputs, state.json, and what package proc puts there about the processes.
// Console, channel and QEMU's own log lie in the run's directory.
//
// Guarantees:
//
//   - Start makes at most one QEMU per run and attempt, whoever crashes when: a
//     lock covers the preparation, and the process itself takes the directory by
//     a step that only one can make.
//   - The machine does not need the runner. It is a session of its own under
//     coreutils' timeout, which ends it at the deadline; the guest powers off a
//     little earlier. Await may be called by another process and gives the same
//     outcome, from the files alone, until Stop.
//   - A PASS of boot needs a signed Hello from the guest in which the running
//     kernel is the one under test. The key is in the machine's initial file
//     system and in state.json (mode 0600), nowhere else.
//   - What decides is the channel first, then how QEMU ended, then the console.
//     A machine that was ended from outside (killed, host rebooted) is the lab's
//     failure, never the kernel's.
//
// A job's rootfs becomes a disk of its own, with the archive of kselftests at
// /opt/kselftests when one of the tests is a kselftest. Disks and module trees
// are kept by the content of what they are made from.
//
// What may not be assumed: that a machine of another host can be seen, or that
// KVM works where /dev/kvm exists. With accelerator auto a program of a few
// bytes is run under KVM with a time limit, once per Executor.
//
// The guest program is taken from GuestDir: pullab-guest-amd64 and
// pullab-guest-arm64. Who has it embedded writes it there first.
package qemu
