// Package jobdef fetches and reads PULL_LABS job definitions
// (kernelci-wire.md section 3).
//
// A definition is untrusted: it lies on whatever host the node names and its
// content is made by templates that upstream changes. What holds:
//
//   - At most MaxSize bytes are read, within one time limit that covers
//     connecting, redirects and body.
//   - No token, cookie or other credential is ever sent: the fetcher is given
//     none, so no redirect can carry one away.
//   - A key that this build does not know never breaks a job; it is listed in
//     Definition.Unknown. A value of the wrong type, a key given twice,
//     truncated JSON and anything after the document are a *DecodeError that
//     says where.
//   - Errors tell what to do by their type: *RefusedError and *DecodeError are
//     final, *UnavailableError may be different later.
//
// What may not be assumed: that URLs in a Definition are safe to fetch
// (planner checks them), or that tests and artifacts suit each other.
package jobdef
