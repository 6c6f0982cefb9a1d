// Package scrub takes secrets out of text that becomes public: consoles, files
// of a run, excerpts in rows.
//
// It works on streams. What it guarantees:
//
//   - The output depends on the input's bytes only, never on how reads and
//     writes cut them.
//   - Memory is bounded (about half a megabyte per stream) and time is linear,
//     whatever the input: no newline, NUL bytes, broken UTF-8, a million anchors.
//   - What no rule takes leaves byte for byte as it came.
//   - Scrubbing what is scrubbed changes nothing. (Except for an own secret that
//     begins or ends with a square bracket, or a secret that a look-ahead of
//     64 KiB cannot see the end of, or keys nested in the values of others in
//     ways that about one in a million random texts has: then the second pass
//     takes more, never less.)
//   - It counts what it took by kind, and keeps no text of it.
//
// A secret becomes [REDACTED:<kind>], as the predecessor had it (predecessor.md
// 1.2), with the predecessor's seven kinds and names. Where the place of a secret
// says more than the secret itself (key=value, Bearer, Authorization, Cookie, URLs
// with a password) the place is kept and the value alone is taken out: by its
// position, not by its text (predecessor.md 6.5).
//
// First go the lab's own secrets by value, also inside base64, URLs and JSON;
// then the rules, from left to right, in one pass: a table of the first two bytes
// of everything finds the few places where a rule can begin, and the rule looks
// ahead at most 64 KiB from there.
//
// Out of reach: a secret wrapped over console lines or with kernel messages in
// it, a bare random string that nothing names (an AWS secret key without its
// key=), text that is compressed, encrypted, UTF-16, hex, or base64 of anything
// but the lab's own secrets.
package scrub
