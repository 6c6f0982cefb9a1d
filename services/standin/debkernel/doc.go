// Package debkernel finds a real kernel for demonstrations, without root and
// without installing anything: one that it is given, the cloud kernel package of
// Debian or Ubuntu, or the one in /boot. What it makes of a package is kept in a
// directory and used again:
//
//	vmlinuz         the image
//	modules.tar.gz  lib/modules/<release>/, plain .ko files and modules.dep, the
//	                shape of KernelCI's modules archives
//	kernel.json     release, arch, and where it came from
package debkernel
