package queue

import (
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

// Causes of a handler's ended context.
var (
	ErrLeaseLost = errors.New("lease lost")
	ErrStopping  = errors.New("stopping")
)

// DropError is what Drop returns.
type DropError struct{ Err error }

func (e *DropError) Error() string { return e.Err.Error() }
func (e *DropError) Unwrap() error { return e.Err }

// RetryError is what Retry and RetryAfter return.
type RetryError struct {
	Err error
	// After is the delay; negative means the inbox's backoff.
	After time.Duration
}

func (e *RetryError) Error() string { return e.Err.Error() }
func (e *RetryError) Unwrap() error { return e.Err }

// StopError is what Stop returns.
type StopError struct{ Err error }

func (e *StopError) Error() string { return e.Err.Error() }
func (e *StopError) Unwrap() error { return e.Err }

// Drop wraps err: give up; the message is copied to PULLAB_DEAD with the
// error's text as its reason, then acknowledged.
func Drop(err error) error { return &DropError{given(err)} }

// Retry wraps err: deliver again after the inbox's backoff.
func Retry(err error) error { return &RetryError{Err: given(err), After: -1} }

// RetryAfter wraps err: deliver again after d.
func RetryAfter(d time.Duration, err error) error {
	return &RetryError{Err: given(err), After: max(d, 0)}
}

// Stop wraps err: hand the message back and end Inbox.Run with err; nothing
// this process does can help.
func Stop(err error) error { return &StopError{given(err)} }

// given keeps a handler that wrapped nil by mistake from acknowledging.
func given(err error) error {
	if err == nil {
		return errors.New("no reason given")
	}
	return err
}

// word is what the error types of this package have in common.
type word interface {
	error
	word()
}

func (*DropError) word()  {}
func (*RetryError) word() {}
func (*StopError) word()  {}

// verdict is the outermost word of a handler's error; nil stays nil, and an
// error without a word is a Retry.
func verdict(err error) error {
	if err == nil {
		return nil
	}
	if w := word(nil); errors.As(err, &w) {
		return w
	}
	return &RetryError{Err: err, After: -1}
}

// PanicError is a handler's panic, treated as Retry: the same message may do
// better in a newer build, and MaxDeliveries ends it otherwise.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("handler panicked: %v", e.Value) }

// Unwrap gives the panic's value when it was an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

func panicked(v any) error { return &PanicError{Value: v, Stack: debug.Stack()} }
