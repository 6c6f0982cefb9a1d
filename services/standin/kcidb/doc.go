// Package kcidb is a development stand-in for kcidb-restd-rs and the ingester
// behind it (kernelci-wire.md 5): 200 means spooled, not accepted; the schema is
// looked at later, and only /status tells. Rows keep the first value they saw.
//
// The spool is the original's: submission-<id>.json.temp is renamed to
// submission-<id>.json, and ends in archive/ or failed/. Without a directory it
// is in memory.
//
// Two differences: documents of a major version other than 5 fail here, while
// the original validates them against their own schema and then stores them
// wrongly (5.4); and GET /rows is an extra for people who debug. The package
// starts no goroutine: submissions are ingested when somebody asks for a status
// or for rows, and by Run.
package kcidb
