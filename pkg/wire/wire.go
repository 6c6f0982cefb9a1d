// Package wire puts pullab's messages on the bus and takes them off: protojson
// payloads that an operator can read with the nats CLI, and headers that say
// what they are. A type that this build does not know is ErrUnknownType, never
// a crash.
package wire

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
)

// Headers of every message.
const (
	// HeaderType names the message: pullab.v1.JobOffered.
	HeaderType = "Pullab-Type"
	// HeaderNode is the job node's id.
	HeaderNode = "Pullab-Node"
	// HeaderTrace is W3C trace context (https://www.w3.org/TR/trace-context/).
	HeaderTrace = "traceparent"
)

// MaxPayload is the largest message that goes on the bus, in bytes. Rows that
// would make a result larger go to the object store.
const MaxPayload = 256 << 10

// Errors of Decode.
var (
	ErrUnknownType = errors.New("unknown message type")
	ErrMalformed   = errors.New("malformed message")
)

// known is every message that may be on the bus, by its Pullab-Type.
var known = func() map[string]proto.Message {
	m := map[string]proto.Message{}
	for _, p := range []proto.Message{
		&pullabv1.JobOffered{}, &pullabv1.RunPlanned{}, &pullabv1.RunProgress{},
		&pullabv1.RunFinished{}, &pullabv1.DeadLetter{},
	} {
		m[TypeOf(p)] = p
	}
	return m
}()

// TypeOf is m's Pullab-Type.
func TypeOf(m proto.Message) string { return string(m.ProtoReflect().Descriptor().FullName()) }

// Encode gives m's payload.
func Encode(m proto.Message) ([]byte, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", TypeOf(m), err)
	}
	return b, nil
}

// Decode reads a payload whose Pullab-Type is typ. Fields that a newer sender
// added are skipped, so that services can be upgraded in any order.
func Decode(typ string, payload []byte) (proto.Message, error) {
	p, ok := known[typ]
	if !ok {
		return nil, fmt.Errorf("%w %q: a newer pullab sent it; upgrade this service", ErrUnknownType, typ)
	}
	m := p.ProtoReflect().New().Interface()
	if err := DecodeInto(payload, m); err != nil {
		return nil, err
	}
	return m, nil
}

// DecodeInto reads a payload of a known type.
func DecodeInto(payload []byte, m proto.Message) error {
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(payload, m); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMalformed, TypeOf(m), err)
	}
	return nil
}

var plainToken = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// Token makes s a legal subject token and KV key: bytes other than letters,
// digits, '_' and '-' become '=' and two hex digits. Different inputs give
// different tokens; the empty string gives "=".
func Token(s string) string {
	if plainToken.MatchString(s) {
		return s
	}
	if s == "" {
		return "="
	}
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c == '_' || c == '-' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
			b.WriteByte(c)
			continue
		}
		fmt.Fprintf(&b, "=%02x", c)
	}
	return b.String()
}
