package topology

import (
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pullab/pullab/pkg/wire"
)

const (
	day = 24 * time.Hour

	// AckWait is a lease's length: after a crash a message waits this long for
	// its next reader. Readers renew at a third of it (package queue).
	AckWait = 60 * time.Second

	// duplicates is how long a stream knows a Nats-Msg-Id again. It must cover a
	// crash between publishing downstream and acknowledging upstream: the lease
	// (1 min) and a restart that takes its time (a few). Longer would only cost
	// memory, and would swallow a job offered anew for good reason.
	duplicates = 10 * time.Minute

	// maxHeaders is room for the headers beside a payload of wire.MaxPayload:
	// type, node, trace and id are below 1 KiB together.
	maxHeaders = 16 << 10

	// maxMessage of every stream but PULLAB_DEAD.
	maxMessage = wire.MaxPayload + maxHeaders

	// maxDeadMessage holds a message of full size as base64 (256 KiB × 4/3 =
	// 342 KiB) or as quoted JSON, with headers and a reason. It is below
	// nats-server's max_payload, 1 MiB.
	maxDeadMessage = 1<<20 - maxHeaders

	// maxQueued jobs: an outage of a week at 10,000 jobs a day is 70,000. Above
	// it the broker refuses new ones, their publishers wait, and kernelci-api
	// still has them.
	maxQueued = 100_000

	// maxAckPending of translator and runners: leased plus waiting for a retry.
	// 1,000 runs in flight is what one lab's consumer is built for, and as many
	// may wait out a delay before new ones are held back.
	maxAckPending = 1000 + 1000

	// maxResultsPending of a submitter: a batch being collected and batches
	// whose receipts are followed, at 500 rows a batch and few rows a result
	// about 2,000 results, and as many waiting while the far side is down.
	maxResultsPending = 2000 + 2000

	// progressPerRun is about three attempts of eight phases.
	progressPerRun = 24
	// progressAge is a long weekend: watchers come late.
	progressAge = 4 * day
	// maxProgress is 4 days × 2,000 runs a day × 24, rounded up.
	maxProgress = 200_000

	// deadAge is how long people have to look at what was given up.
	deadAge = 30 * day
	// maxDead is 3,000 a day: more is one fault, repeated.
	maxDead = 100_000

	// offersAge must be longer than kernelci-api keeps events (7 days), or the
	// poller would offer a job again that it has forgotten; twice that.
	offersAge = 14 * day
	// recordAge of admissions, runs and receipts must be longer than deadAge, so
	// that a message replayed from PULLAB_DEAD still meets its record and no job
	// is run or reported twice. Half again.
	recordAge = 45 * day
	// rowsAge must be longer than any outage of KCIDB should last: results wait
	// on PULLAB_RESULTS for ever, and their rows lie here.
	rowsAge = 90 * day
	// cursorHistory is how far back an operator can see, and set back, the
	// cursor: the last ten pages.
	cursorHistory = 10
	// maxRecord of a ledger, in bytes. Records are small documents, but the
	// runner's holds a result of full size (256 KiB) until it is published; as
	// much again for the rest.
	maxRecord = 2 * wire.MaxPayload
)

// stream is a JetStream stream, or the one below a bucket, with its consumers.
type stream struct {
	kind      string
	config    jetstream.StreamConfig
	consumers []jetstream.ConsumerConfig
}

// assets are everything that pullab has on a broker, in the order in which it
// is made.
func assets(o Options) []stream {
	all := []stream{
		queueStream(Jobs, "Jobs meant for this lab, until the translator has planned them", jetstream.WorkQueuePolicy,
			[]string{"pullab.jobs.*.*.*"},
			consumer(Translator, "pullab.jobs.*.*.*", maxAckPending)),
		runsStream(),
		queueStream(Results, "Results, until both far sides have them", jetstream.InterestPolicy,
			[]string{"pullab.results.*.*"},
			consumer(SubmitterKCIDB, "pullab.results.*.*", maxResultsPending),
			consumer(SubmitterNode, "pullab.results.*.*", maxResultsPending)),
		logStream(Progress, "Phase changes of runs, for whoever watches", maxProgress, progressPerRun, progressAge, maxMessage,
			"pullab.progress.*"),
		logStream(Dead, "What services gave up on, and why; for people", maxDead, -1, deadAge, maxDeadMessage,
			"pullab.dead.*.*"),
		logStream(Advisories, "Messages that the broker gave up on: a net under PULLAB_DEAD", maxDead, -1, deadAge, -1,
			"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>", "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>"),
		bucket(Cursor, "How far the poller has read kernelci-api's events", cursorHistory, 0),
		bucket(Offers, "The poller's ledger: seen, offered, skipped and why", 1, offersAge),
		bucket(Admissions, "The translator's ledger: claimed, planned, refused and why", 1, recordAge),
		bucket(RunLedger, "The runner's ledger: attempt, phase, machine, owner", 1, recordAge),
		bucket(Receipts, "The submitter's ledger: submissions and nodes written", 1, recordAge),
		objects(ResultRows, "Result rows too large for a message", rowsAge),
	}
	storage := jetstream.FileStorage
	if o.Memory {
		storage = jetstream.MemoryStorage
	}
	for i := range all {
		all[i].config.Storage = storage
		all[i].config.Replicas = max(1, o.Replicas)
	}
	return all
}

// queueStream holds work: one message per subject, so that a job, a plan or a
// result exists once while it is queued or worked on; a second is refused, not
// swapped for the first.
func queueStream(name, what string, r jetstream.RetentionPolicy, subjects []string, cs ...jetstream.ConsumerConfig) stream {
	return stream{kind: "stream", consumers: cs, config: jetstream.StreamConfig{
		Name: name, Description: what, Subjects: subjects, Retention: r,
		Discard: jetstream.DiscardNew, DiscardNewPerSubject: true, MaxMsgsPerSubject: 1,
		MaxMsgs: maxQueued, MaxBytes: -1, MaxMsgSize: maxMessage, Duplicates: duplicates,
	}}
}

// runsStream takes exactly the subjects that some runner's consumer reads: a
// plan for an executor or arch that nobody reads is refused when published
// instead of lying there unseen.
func runsStream() stream {
	var subjects []string
	var cs []jetstream.ConsumerConfig
	for _, e := range Executors {
		for _, a := range Arches {
			filter := "pullab.runs." + wire.Token(e) + "." + wire.Token(a) + ".*"
			subjects = append(subjects, filter)
			cs = append(cs, consumer(RunnerConsumer(e, a), filter, maxAckPending))
		}
	}
	refused := "pullab.runs." + None + ".*.*"
	subjects = append(subjects, refused)
	cs = append(cs, consumer(RunnerConsumer(None, ""), refused, maxAckPending))
	return queueStream(Runs, "Plans, until a runner has a result", jetstream.WorkQueuePolicy, subjects, cs...)
}

// consumer reads filter, each message leased. Deliveries are not limited here:
// on a work queue the broker would leave the message lying unseen at the limit.
// Package queue counts and moves it to PULLAB_DEAD.
func consumer(name, filter string, pending int) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: name, FilterSubject: filter,
		DeliverPolicy: jetstream.DeliverAllPolicy, AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: AckWait, MaxDeliver: -1, MaxAckPending: pending,
	}
}

// logStream keeps the last messages for people and drops the oldest.
func logStream(name, what string, msgs, perSubject int64, age time.Duration, size int32, subjects ...string) stream {
	return stream{kind: "stream", config: jetstream.StreamConfig{
		Name: name, Description: what, Subjects: subjects, Retention: jetstream.LimitsPolicy,
		Discard: jetstream.DiscardOld, MaxMsgsPerSubject: perSubject,
		MaxMsgs: msgs, MaxBytes: -1, MaxAge: age, MaxMsgSize: size, Duplicates: duplicates,
	}}
}

// bucket is the stream below a key-value bucket, as nats.go lays it out
// (ADR-8). Records are never deleted; age removes them.
func bucket(name, what string, history int64, age time.Duration) stream {
	return stream{kind: "bucket", config: jetstream.StreamConfig{
		Name: "KV_" + name, Description: what, Subjects: []string{"$KV." + name + ".>"},
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew, MaxMsgsPerSubject: history,
		MaxMsgs: -1, MaxBytes: -1, MaxAge: age, MaxMsgSize: maxRecord, Duplicates: 2 * time.Minute,
		AllowRollup: true, DenyDelete: true, AllowDirect: true,
	}}
}

// objects is the stream below an object store, as nats.go lays it out (ADR-20).
func objects(name, what string, age time.Duration) stream {
	return stream{kind: "object store", config: jetstream.StreamConfig{
		Name: "OBJ_" + name, Description: what, Subjects: []string{"$O." + name + ".C.>", "$O." + name + ".M.>"},
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew, MaxMsgsPerSubject: -1,
		MaxMsgs: -1, MaxBytes: -1, MaxAge: age, MaxMsgSize: -1, Duplicates: 2 * time.Minute,
		AllowRollup: true, AllowDirect: true,
	}}
}

// name for people: the bucket's, not that of the stream below it.
func (s stream) name() string {
	return s.kind + " " + strings.TrimPrefix(strings.TrimPrefix(s.config.Name, "KV_"), "OBJ_")
}

// summary of a stream to be made, for people.
func (s stream) summary() string {
	what := fmt.Sprintf("%s in %s, kept %s", s.config.Retention, s.config.Storage, age(s.config.MaxAge))
	if s.config.MaxMsgsPerSubject > 0 {
		what += fmt.Sprintf(", %d per subject", s.config.MaxMsgsPerSubject)
	}
	return what
}
