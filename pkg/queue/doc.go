// Package queue takes work from JetStream one message at a time and puts work
// on it: the Inbox and Outbox of every service.
//
// # Use
//
// A service opens one Inbox on its consumer and one Outbox on the next stream.
// Its Handler does the service's verb: it publishes downstream, then returns
// nil, and the message is acknowledged. An error says what happens to the
// message instead: Drop, Retry, RetryAfter, Stop. Any other error is Retry.
//
// # Guarantees
//
//  1. A message is pulled only when a slot for it is held, one per slot. None
//     waits in a buffer while another process has a free machine.
//  2. While a handler runs, its message's lease is renewed every third of the
//     consumer's AckWait, and every renewal is confirmed by the broker. The
//     lease is trusted until AckWait less a twelfth after the *start* of the
//     last confirmed renewal; then the handler's context ends with ErrLeaseLost,
//     before the broker gives the message to anybody else.
//  3. A message is acknowledged, and the acknowledgement confirmed, only after
//     its handler returned nil, or after a copy of it is on PULLAB_DEAD.
//  4. A handler that fails, panics, or dies with its process gets the message
//     again, here or elsewhere, with Delivery.Deliveries one higher.
//  5. A message that cannot be decoded, that is of a type this build does not
//     know, or that was delivered more than MaxDeliveries times, goes to
//     PULLAB_DEAD with the reason. It stops no other message.
//  6. When Run's context ends, nothing more is pulled, handlers' contexts end
//     with ErrStopping at once, and Run returns when the last one has returned.
//     What they did not finish, and a message that arrived in that moment, is
//     handed back and available to others without delay.
//  7. Publish returns nil only when the broker has stored the message, or has
//     it already: the same id within the stream's duplicate window, or another
//     message on the same subject that is still queued or being worked on.
//
// Less formally: at least once, one at a time, never silently gone.
//
// # What may not be assumed
//
//   - That a message is handled once. A lease is not a fence: the broker
//     accepts acknowledgements of a process whose lease has ended. Every effect
//     must be idempotent by key, or guarded by compare-and-set (package ledger).
//   - Order. Messages are started in the order of the stream, retries come when
//     they are due, and handlers run at the same time.
//   - That Deliveries counts failures. It counts crashes, retries, waits and
//     shutdowns alike; the broker keeps it. Set MaxDeliveries far above what an
//     honest message needs, and count attempts in your own ledger.
//   - That a message which Publish did not report as fresh was published by
//     someone else: it may be this call's own earlier attempt, whose
//     acknowledgement was lost.
//   - That Tell arrives.
//
// # When things fail
//
// The broker is gone: open pulls end after a few seconds, the inbox asks again
// until it is back. Running handlers keep their lease as long as it is trusted,
// then end with ErrLeaseLost. Publish tries until its context ends.
//
// The consumer or stream was deleted: Run returns an error that says so.
//
// The acknowledgement fails for ten seconds: the message is delivered again
// when its lease ends. That is why effects are idempotent.
//
// A copy for PULLAB_DEAD cannot be stored: the message is not acknowledged, it
// is delivered again.
//
// # Trace
//
// A message's traceparent header (W3C trace context) is in its handler's
// context; Publish and Tell send its trace id on, with a new span id. A message
// published outside any handler starts a trace.
package queue
