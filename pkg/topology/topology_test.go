package topology_test

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pullab/pullab/pkg/broker"
	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/natstest"
	"github.com/pullab/pullab/pkg/topology"
)

var update = flag.Bool("update", false, "write golden files")

func TestMain(m *testing.M) {
	natstest.Register()
	m.Run()
}

var memory = topology.Options{Replicas: 1, Memory: true}

// bare is a broker without pullab's streams.
func bare(t *testing.T) *bus.Bus {
	t.Helper()
	ctx := context.Background()
	s, err := broker.Start(ctx, broker.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return natstest.Connect(t, s, "test")
}

func plan(t *testing.T, b *bus.Bus) []string {
	t.Helper()
	lines, err := topology.Plan(context.Background(), b, memory)
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func TestApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := bare(t)
		golden := filepath.Join("testdata", "plan.txt")
		got := strings.Join(plan(t, b), "\n") + "\n"
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("plan for a bare broker (-update writes it):\n%s", got)
		}
		if err := topology.Verify(ctx, b, memory); !errors.Is(err, topology.ErrDrift) || !strings.Contains(err.Error(), "stream PULLAB_JOBS: create") {
			t.Errorf("Verify on a bare broker: %v", err)
		}
		for range 2 {
			if err := topology.Apply(ctx, b, memory); err != nil {
				t.Fatal(err)
			}
			if err := topology.Verify(ctx, b, memory); err != nil {
				t.Fatal(err)
			}
			if lines := plan(t, b); len(lines) > 0 {
				t.Errorf("plan after apply: %q", lines)
			}
		}
	})
}

// Four services apply at the same moment when a lab starts.
func TestApplyTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := bare(t)
		errs := make(chan error)
		for range 4 {
			go func() { errs <- topology.Apply(ctx, b, memory) }()
		}
		for range 4 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if err := topology.Verify(ctx, b, memory); err != nil {
			t.Error(err)
		}
	})
}

// The buckets must be what nats.go itself would have made of them.
func TestBucketsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := natstest.Start(t)
		for _, name := range []string{topology.Cursor, topology.Offers, topology.Admissions, topology.RunLedger, topology.Receipts} {
			st := streamConfig(t, b, "KV_"+name)
			kv, err := b.JS.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: name, Description: st.Description,
				History: uint8(st.MaxMsgsPerSubject), TTL: st.MaxAge, MaxValueSize: st.MaxMsgSize, Storage: jetstream.MemoryStorage})
			if err != nil {
				t.Errorf("%s differs from what nats.go makes: %v", name, err)
				continue
			}
			if name == topology.Offers && st.MaxAge <= 7*24*time.Hour {
				t.Errorf("offers are kept %s, events of kernelci-api 7 days", st.MaxAge)
			}
			if _, err := kv.Put(ctx, "key", []byte("{}")); err != nil {
				t.Error(err)
			}
		}
		st := streamConfig(t, b, "OBJ_"+topology.ResultRows)
		if _, err := b.JS.CreateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: topology.ResultRows, Description: st.Description,
			TTL: st.MaxAge, Storage: jetstream.MemoryStorage}); err != nil {
			t.Errorf("the object store differs from what nats.go makes: %v", err)
		}
	})
}

func streamConfig(t *testing.T, b *bus.Bus, name string) jetstream.StreamConfig {
	t.Helper()
	s, err := b.JS.Stream(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().Config
}

func TestDrift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := natstest.Start(t)
		c := streamConfig(t, b, topology.Jobs)
		c.Duplicates, c.MaxMsgs = time.Minute, 7
		c.Metadata = map[string]string{"owner": "ops"}
		if _, err := b.JS.UpdateStream(ctx, c); err != nil {
			t.Fatal(err)
		}
		cons, err := b.JS.Consumer(ctx, topology.Jobs, topology.Translator)
		if err != nil {
			t.Fatal(err)
		}
		cc := cons.CachedInfo().Config
		cc.AckWait, cc.MaxDeliver, cc.BackOff = time.Second, 5, nil
		if _, err := b.JS.UpdateConsumer(ctx, topology.Jobs, cc); err != nil {
			t.Fatal(err)
		}
		if err := b.JS.DeleteConsumer(ctx, topology.Results, topology.SubmitterNode); err != nil {
			t.Fatal(err)
		}
		want := []string{
			"stream PULLAB_JOBS: max messages 7 → 100000",
			"stream PULLAB_JOBS: duplicate window 1m0s → 10m0s",
			"consumer PULLAB_JOBS/translator: ack wait 1s → 1m0s",
			"consumer PULLAB_JOBS/translator: max deliver 5 → -1",
			"consumer PULLAB_RESULTS/submitter-node: create, filter pullab.results.*.*",
		}
		if got := plan(t, b); !slices.Equal(got, want) {
			t.Errorf("plan\n got %q\nwant %q", got, want)
		}
		err = topology.Verify(ctx, b, memory)
		for _, line := range want {
			if err == nil || !strings.Contains(err.Error(), line) {
				t.Errorf("Verify does not say %q: %v", line, err)
			}
		}
		if err := topology.Apply(ctx, b, memory); err != nil {
			t.Fatal(err)
		}
		if err := topology.Verify(ctx, b, memory); err != nil {
			t.Error(err)
		}
		if c := streamConfig(t, b, topology.Jobs); c.Metadata["owner"] != "ops" {
			t.Errorf("apply took away what is the operator's: %v", c.Metadata)
		}
	})
}

func TestRetentionCannotChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := bare(t)
		_, err := b.JS.CreateStream(ctx, jetstream.StreamConfig{Name: topology.Jobs, Subjects: []string{"pullab.jobs.>"}, Storage: jetstream.MemoryStorage})
		if err != nil {
			t.Fatal(err)
		}
		_, err = topology.Plan(ctx, b, memory)
		for _, want := range []string{"retention", "Limits", "WorkQueue", "nats stream rm PULLAB_JOBS"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Plan does not say %q: %v", want, err)
			}
		}
		if err := topology.Apply(ctx, b, memory); err == nil {
			t.Error("Apply succeeds")
		}
		if _, err := b.JS.Stream(ctx, topology.Runs); !errors.Is(err, jetstream.ErrStreamNotFound) {
			t.Errorf("Apply changed something although it cannot do all: %v", err)
		}
	})
}

// An Interest stream that a crash left half made is completed.
func TestHalfMadeInterest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := natstest.Start(t)
		c := streamConfig(t, b, topology.Results)
		c.Retention = jetstream.LimitsPolicy
		if _, err := b.JS.UpdateStream(ctx, c); err != nil {
			t.Fatal(err)
		}
		if got, want := plan(t, b), []string{"stream PULLAB_RESULTS: retention Limits → Interest"}; !slices.Equal(got, want) {
			t.Errorf("plan %q", got)
		}
		if err := topology.Apply(ctx, b, memory); err != nil {
			t.Fatal(err)
		}
		if got := streamConfig(t, b, topology.Results).Retention; got != jetstream.InterestPolicy {
			t.Errorf("retention %s", got)
		}
	})
}

func TestPausedStaysPaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := natstest.Start(t)
		until := time.Now().Add(time.Hour)
		if _, err := b.JS.PauseConsumer(ctx, topology.Jobs, topology.Translator, until); err != nil {
			t.Fatal(err)
		}
		cons, err := b.JS.Consumer(ctx, topology.Jobs, topology.Translator)
		if err != nil {
			t.Fatal(err)
		}
		cc := cons.CachedInfo().Config
		cc.MaxAckPending = 3
		if _, err := b.JS.UpdateConsumer(ctx, topology.Jobs, cc); err != nil {
			t.Fatal(err)
		}
		if err := topology.Apply(ctx, b, memory); err != nil {
			t.Fatal(err)
		}
		i, err := cons.Info(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !i.Paused || i.Config.MaxAckPending != 2000 {
			t.Errorf("paused %v, max ack pending %d", i.Paused, i.Config.MaxAckPending)
		}
	})
}

func TestUnknownConsumer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := natstest.Start(t)
		if _, err := b.JS.CreateConsumer(ctx, topology.Results, jetstream.ConsumerConfig{Durable: "curious", AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
			t.Fatal(err)
		}
		err := topology.Verify(ctx, b, memory)
		if err == nil || !strings.Contains(err.Error(), "nats consumer rm PULLAB_RESULTS curious") {
			t.Errorf("Verify: %v", err)
		}
		if lines := plan(t, b); len(lines) != 0 {
			t.Errorf("plan %q", lines)
		}
	})
}

// Every subject that a service may publish on has exactly one consumer for each
// thing that must happen to it: a subject without one is a strand.
func TestFiltersCoverSubjects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := natstest.Start(t)
		ask := func(stream, subject string, want ...string) {
			t.Helper()
			var got []string
			s, err := b.JS.Stream(context.Background(), stream)
			if err != nil {
				t.Fatal(err)
			}
			infos := s.ListConsumers(context.Background())
			for i := range infos.Info() {
				if matches(i.Config.FilterSubject, subject) {
					got = append(got, i.Name)
				}
			}
			slices.Sort(got)
			if infos.Err() != nil || !slices.Equal(got, want) {
				t.Errorf("%s is read by %q, want %q (%v)", subject, got, want, infos.Err())
			}
			if !slices.ContainsFunc(s.CachedInfo().Config.Subjects, func(f string) bool { return matches(f, subject) }) {
				t.Errorf("%s is not a subject of %s", subject, stream)
			}
		}
		node := "65f1a2b3c4d5e6f708192a3b"
		ask(topology.Jobs, topology.JobSubject("pull-labs.aws", "aws-ec2 x86", node), topology.Translator)
		ask(topology.Results, topology.ResultSubject("pull-labs.aws", node), topology.SubmitterKCIDB, topology.SubmitterNode)
		for _, a := range append([]string{"riscv", ""}, topology.Arches...) {
			ask(topology.Runs, topology.RunSubject(topology.None, a, node), topology.RunnerConsumer(topology.None, a))
		}
		for _, e := range topology.Executors {
			for _, a := range topology.Arches {
				ask(topology.Runs, topology.RunSubject(e, a, node), topology.RunnerConsumer(e, a))
			}
		}
	})
}

// matches is NATS subject matching, enough for our filters.
func matches(filter, subject string) bool {
	f, s := strings.Split(filter, "."), strings.Split(subject, ".")
	for i := range f {
		if f[i] == ">" {
			return len(s) > i
		}
		if i >= len(s) || f[i] != "*" && f[i] != s[i] {
			return false
		}
	}
	return len(f) == len(s)
}

// PULLAB_ADVISORIES catches what an operator's nats CLI ends.
func TestAdvisories(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := natstest.Start(t)
		if _, err := b.JS.Publish(ctx, topology.JobSubject("l", "p", "n"), []byte("{}")); err != nil {
			t.Fatal(err)
		}
		c, err := b.JS.Consumer(ctx, topology.Jobs, topology.Translator)
		if err != nil {
			t.Fatal(err)
		}
		m, err := c.Next(jetstream.FetchMaxWait(time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.TermWithReason("by hand"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		s, err := b.JS.Stream(ctx, topology.Advisories)
		if err != nil {
			t.Fatal(err)
		}
		if n := s.CachedInfo().State.Msgs; n != 1 {
			t.Errorf("%d advisories", n)
		}
	})
}

// A result published between any two steps of Apply reaches both submitters: an
// Interest stream without consumers would acknowledge it and drop it.
func TestNothingIsLostWhileApplying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := bare(t)
		var sent uint64
		err := topology.Steps(ctx, b, memory, func(line string) {
			if !strings.Contains(line, topology.Results) {
				return
			}
			sent++
			if _, err := b.JS.Publish(ctx, topology.ResultSubject("lab", strings.Repeat("n", int(sent))), nil); err != nil {
				t.Errorf("after %q: %v", line, err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for _, name := range []string{topology.SubmitterKCIDB, topology.SubmitterNode} {
			c, err := b.JS.Consumer(ctx, topology.Results, name)
			if err != nil {
				t.Fatal(err)
			}
			if n := c.CachedInfo().NumPending; n != sent || sent < 4 {
				t.Errorf("%s has %d of %d results", name, n, sent)
			}
		}
	})
}
