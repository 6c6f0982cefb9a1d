// Package fetch brings the inputs of a run to this host: kernels, module
// archives, root file systems.
//
// Guarantees:
//
//   - A file that Get returns is complete: its length is what the server
//     announced and its SHA-256 is the one asked for, if one was. It appears
//     under its name only then (written elsewhere, synced, renamed).
//   - A file that Get returned stays until its release function was called,
//     whatever other processes share the directory: eviction needs an exclusive
//     flock where every user holds a shared one.
//   - What is cached for a URL is used only after the server said that it is
//     still current (a conditional GET), or when the caller named its SHA-256.
//   - Callers that ask for one URL at the same moment share one download; it is
//     given up when the last of them leaves.
//   - Nothing but http, https and, when allowed, file is read. Redirects are
//     bounded and held to the same rule. No credentials are ever sent, and
//     errors show URLs without their query.
//
// What may not be assumed: that two calls for one URL give the same file. The
// server may have changed it in between.
//
// Layout of the directory:
//
//	objects/<sha256>          content; the modification time is the last use
//	urls/<sha256 of URL>.json what a URL held when it was last asked
//	parts/<sha256 of URL>     an unfinished download, with .json for its validator
//
// Every error that is not the context's is an *executor.LabError with reason
// "download": that a file cannot be had says nothing about the kernel.
package fetch
