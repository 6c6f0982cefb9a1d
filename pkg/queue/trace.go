package queue

import (
	"context"
	"encoding/hex"
	"math/rand/v2"
	"regexp"
)

// traceparent of W3C trace context, version 00: version, trace id, span id,
// flags.
var traceparent = regexp.MustCompile(`^00-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})$`)

type traceKey struct{}

// withTrace puts a message's traceparent into its handler's context. One that is
// not legal is left out: the next message starts a trace.
func withTrace(ctx context.Context, header string) context.Context {
	if !traceparent.MatchString(header) {
		return ctx
	}
	return context.WithValue(ctx, traceKey{}, header)
}

// Trace is the traceparent of the message whose handler has ctx, empty outside
// of one: for log lines and outgoing HTTP requests.
func Trace(ctx context.Context) string {
	s, _ := ctx.Value(traceKey{}).(string)
	return s
}

// nextTrace is the traceparent of a message published with ctx.
func nextTrace(ctx context.Context) string {
	trace, flags := randomHex(16), "01"
	if m := traceparent.FindStringSubmatch(Trace(ctx)); m != nil {
		trace, flags = m[1], m[2]
	}
	return "00-" + trace + "-" + randomHex(8) + "-" + flags
}

// randomHex of n bytes: unique enough to tell traces apart, secret to nobody.
func randomHex(n int) string {
	b := make([]byte, 0, 16)
	for len(b) < n {
		v := rand.Uint64() | 1 // all zeroes are not a legal id
		for range 8 {
			b = append(b, byte(v))
			v >>= 8
		}
	}
	return hex.EncodeToString(b[:n])
}
