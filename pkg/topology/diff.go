package topology

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// field is one setting that pullab decides. What is not listed (placement,
// compression, metadata …) is the operator's, and stays as it is.
type field struct {
	name string
	// want and have as an operator reads them.
	want, have string
	// set makes it so in a configuration read from the broker; nil when
	// JetStream cannot change it.
	set func()
}

func (f field) differs() bool { return f.want != f.have }

func (f field) String() string { return fmt.Sprintf("%s %s → %s", f.name, f.have, f.want) }

// streamFields compares want with have; their set functions change have.
func streamFields(want jetstream.StreamConfig, have *jetstream.StreamConfig) []field {
	fs := []field{
		{"subjects", list(want.Subjects), list(have.Subjects), func() { have.Subjects = want.Subjects }},
		{"retention", want.Retention.String(), have.Retention.String(), nil},
		{"storage", want.Storage.String(), have.Storage.String(), nil},
		{"discard", want.Discard.String(), have.Discard.String(), func() { have.Discard = want.Discard }},
		{"description", want.Description, have.Description, func() { have.Description = want.Description }},
		number("replicas", want.Replicas, &have.Replicas),
		number("max messages per subject", want.MaxMsgsPerSubject, &have.MaxMsgsPerSubject),
		number("max messages", want.MaxMsgs, &have.MaxMsgs),
		number("max message size", want.MaxMsgSize, &have.MaxMsgSize),
		toggle("discard new per subject", want.DiscardNewPerSubject, &have.DiscardNewPerSubject),
		toggle("allow rollup", want.AllowRollup, &have.AllowRollup),
		toggle("deny delete", want.DenyDelete, &have.DenyDelete),
		toggle("allow direct", want.AllowDirect, &have.AllowDirect),
		span("max age", want.MaxAge, &have.MaxAge),
		span("duplicate window", want.Duplicates, &have.Duplicates),
	}
	// Limits and Interest can become each other; a work queue stays one.
	if want.Retention != jetstream.WorkQueuePolicy && have.Retention != jetstream.WorkQueuePolicy {
		fs[1].set = func() { have.Retention = want.Retention }
	}
	return fs
}

func consumerFields(want jetstream.ConsumerConfig, have *jetstream.ConsumerConfig) []field {
	return []field{
		{"filter", want.FilterSubject, filters(*have), func() { have.FilterSubject, have.FilterSubjects = want.FilterSubject, nil }},
		{"ack policy", want.AckPolicy.String(), have.AckPolicy.String(), nil},
		{"deliver policy", want.DeliverPolicy.String(), have.DeliverPolicy.String(), nil},
		span("ack wait", want.AckWait, &have.AckWait),
		number("max deliver", want.MaxDeliver, &have.MaxDeliver),
		number("max ack pending", want.MaxAckPending, &have.MaxAckPending),
		{"backoff", "none", spans(have.BackOff), func() { have.BackOff = nil }},
	}
}

func filters(c jetstream.ConsumerConfig) string {
	if c.FilterSubject != "" {
		return c.FilterSubject
	}
	return list(c.FilterSubjects)
}

func list(s []string) string {
	s = slices.Sorted(slices.Values(s))
	return strings.Join(s, " ")
}

func number[N int | int32 | int64](name string, want N, have *N) field {
	return field{name, fmt.Sprint(want), fmt.Sprint(*have), func() { *have = want }}
}

func toggle(name string, want bool, have *bool) field {
	return field{name, fmt.Sprint(want), fmt.Sprint(*have), func() { *have = want }}
}

func span(name string, want time.Duration, have *time.Duration) field {
	return field{name, age(want), age(*have), func() { *have = want }}
}

func age(d time.Duration) string {
	switch {
	case d == 0:
		return "for ever"
	case d%day == 0:
		return fmt.Sprintf("%dd", d/day)
	default:
		return d.String()
	}
}

func spans(ds []time.Duration) string {
	if len(ds) == 0 {
		return "none"
	}
	return fmt.Sprint(ds)
}
