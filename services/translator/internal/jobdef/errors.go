package jobdef

import (
	"fmt"
	"time"
)

// RefusedError is final: this definition cannot be had, now or later.
type RefusedError struct {
	// Reason is a sentence for whoever wrote the job; it names no secret.
	Reason string
	Err    error
}

func (e *RefusedError) Error() string { return withCause(e.Reason, e.Err) }

// Unwrap gives the cause, if there is one.
func (e *RefusedError) Unwrap() error { return e.Err }

// UnavailableError may be different later: the host is down, slow, or asks to
// wait.
type UnavailableError struct {
	Reason string
	// RetryAfter is what the host asked for; 0 when it did not.
	RetryAfter time.Duration
	Err        error
}

func (e *UnavailableError) Error() string { return withCause(e.Reason, e.Err) }

// Unwrap gives the cause, if there is one.
func (e *UnavailableError) Unwrap() error { return e.Err }

func withCause(reason string, err error) string {
	if err == nil {
		return reason
	}
	return reason + ": " + err.Error()
}

// DecodeError is final: the bytes are not a job definition.
type DecodeError struct {
	// Offset of the offending byte, from 0; Line and Column from 1, Column in
	// bytes.
	Offset, Line, Column int
	// Path of the value, such as tests[0].timeout_s; empty for the document.
	Path   string
	Reason string
}

func (e *DecodeError) Error() string {
	what := e.Path
	if what == "" {
		what = "the job definition"
	}
	return fmt.Sprintf("%s %s (byte %d, line %d, column %d)", what, e.Reason, e.Offset, e.Line, e.Column)
}
