package submitter_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/natstest"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/pkg/wire"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/submitter"
	"github.com/pullab/pullab/services/submitter/internal/kcidb"
	"github.com/pullab/pullab/services/submitter/internal/receipt"
)

func TestMain(m *testing.M) {
	natstest.Register()
	m.Run()
}

func settings() submitter.Config {
	return submitter.Config{
		KernelCI: config.KernelCI{
			APIBaseURI: "http://api.test/latest", APIToken: apiToken, RuntimeName: "pull-labs-aws-ec2",
			KCIDBSubmitURL: "http://kcidb.test/submit", KCIDBOrigin: "pullab_cloud_aws", KCIDBJWT: jwt,
		},
		Report: submitter.Report{KCIDB: true, Node: "auto"},
		Submitter: submitter.Settings{
			BatchRows: 1000, BatchBytes: 4 << 20, BatchAge: 250 * time.Millisecond, StatusPoll: 250 * time.Millisecond, ResubmitAfter: 30 * time.Second,
			NotFoundAfter: 10 * time.Minute, ConvictAfter: 24 * time.Hour, RequestTimeout: time.Minute, Slots: 512, NodeSlots: 16,
		},
	}
}

// story is one lab in one bubble.
type story struct {
	testing.TB
	*world
	bus *bus.Bus
	cfg submitter.Config
}

func tell(t *testing.T, f func(s *story)) {
	synctest.Test(t, func(t *testing.T) {
		f(&story{TB: t, world: newWorld(t), bus: natstest.Start(t), cfg: settings()})
	})
}

// start runs a submitter until the returned function is called.
func (s *story) start() (stop func()) {
	s.Helper()
	svc, err := submitter.New(s.Context(), s.cfg, s.bus, submitter.WithTransport(s.world))
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.Context())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	return func() {
		s.Helper()
		cancel()
		if err := <-done; err != nil {
			s.Errorf("Run: %v", err)
		}
	}
}

// run makes a result with a node behind it: nodeID(i), from a fixture.
func (s *story) run(i int, fixture string) *pullabv1.RunFinished {
	s.Helper()
	b, err := os.ReadFile("testdata/runs/" + fixture + ".json")
	if err != nil {
		s.Fatal(err)
	}
	fin := &pullabv1.RunFinished{}
	if err := wire.DecodeInto(b, fin); err != nil {
		s.Fatal(err)
	}
	fin.Origin.NodeId = nodeID(i)
	fin.RunId = "run_pulllab-" + fin.Arch + "-" + fin.Origin.NodeId
	b, err = os.ReadFile("internal/nodes/testdata/node.job.available.json")
	if err != nil {
		s.Fatal(err)
	}
	doc := decode(s.TB, b)
	doc["id"], doc["name"], doc["retry_counter"] = fin.Origin.NodeId, fin.Origin.NodeName, json.Number("2")
	doc["data"].(map[string]any)["job_id"] = fin.JobId
	s.api.set(func() { s.api.nodes[fin.Origin.NodeId] = doc })
	return fin
}

func nodeID(i int) string { return fmt.Sprintf("6a86d157c5867fba%08x", i) }

func rowID(i int) string { return "pullab_cloud_aws:" + nodeID(i) }

func (s *story) publish(fins ...*pullabv1.RunFinished) {
	s.Helper()
	out := queue.NewOutbox(s.bus, topology.Results)
	for _, f := range fins {
		if _, err := out.Publish(s.Context(), topology.ResultSubject(f.Origin.Runtime, f.Origin.NodeId), f.Origin.NodeId, f.RunId, f); err != nil {
			s.Fatal(err)
		}
	}
}

// until waits in fake time for at most limit.
func (s *story) until(limit time.Duration, what string, ok func() bool) {
	s.Helper()
	for end := time.Now().Add(limit); !ok(); {
		if time.Now().After(end) {
			s.Fatalf("after %s: not %s", limit, what)
		}
		s.pass(max(100*time.Millisecond, limit/1000))
	}
}

// pass lets fake time go by.
func (s *story) pass(d time.Duration) {
	s.Helper()
	if err := backoff.Sleep(s.Context(), d); err != nil {
		s.Fatal(err)
	}
	synctest.Wait()
}

// queued is how many results are not yet acknowledged by both sides.
func (s *story) queued() uint64 {
	s.Helper()
	st, err := s.bus.JS.Stream(s.Context(), topology.Results)
	if err != nil {
		s.Fatal(err)
	}
	info, err := st.Info(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	return info.State.Msgs
}

func (s *story) empty() bool { return s.queued() == 0 }

// left is what one side has not acknowledged.
func (s *story) left(consumer string) uint64 {
	s.Helper()
	c, err := s.bus.JS.Consumer(s.Context(), topology.Results, consumer)
	if err != nil {
		s.Fatal(err)
	}
	info, err := c.Info(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	return info.NumPending + uint64(info.NumAckPending)
}

func (s *story) receipt(i int) receipt.Receipt {
	s.Helper()
	l, err := ledger.Open[receipt.Receipt](s.Context(), s.bus, topology.Receipts)
	if err != nil {
		s.Fatal(err)
	}
	r, _, err := l.Get(s.Context(), nodeID(i))
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		s.Fatal(err)
	}
	return r
}

// dead is the letter about a node, nil without one.
func (s *story) dead(i int) *pullabv1.DeadLetter {
	s.Helper()
	st, err := s.bus.JS.Stream(s.Context(), topology.Dead)
	if err != nil {
		s.Fatal(err)
	}
	m, err := st.GetLastMsgForSubject(s.Context(), topology.DeadSubject("submitter", nodeID(i)))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	if err != nil {
		s.Fatal(err)
	}
	l := &pullabv1.DeadLetter{}
	if err := wire.DecodeInto(m.Data, l); err != nil {
		s.Fatal(err)
	}
	return l
}

func (s *story) counts(i int) (sent, stored int) {
	s.kcidb.set(func() { sent, stored = s.kcidb.sent[rowID(i)], s.kcidb.stored[rowID(i)] })
	return sent, stored
}

func (s *story) node(i int) (doc map[string]any) {
	s.api.set(func() { doc = s.api.nodes[nodeID(i)] })
	return doc
}

func TestOneResult(t *testing.T) {
	tell(t, func(s *story) {
		stop := s.start()
		s.publish(s.run(1, "boot-pass"))
		s.until(time.Minute, "reported", s.empty)
		stop()
		sent, stored := s.counts(1)
		r := s.receipt(1)
		if sent != 1 || stored != 1 || r.KCIDB.State != receipt.Processed || r.Node.State != receipt.Written || r.KCIDB.Submission == "" {
			s.Errorf("sent %d, stored %d, receipt %+v", sent, stored, r)
		}
		if n := s.node(1); n["state"] != "done" || n["result"] != "pass" {
			s.Errorf("node %v", n)
		}
	})
}

func TestBatches(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*submitter.Settings)
		want   string
	}{
		{"by age", func(*submitter.Settings) {}, "[40]"},
		{"by rows", func(b *submitter.Settings) { b.BatchRows = 12; b.BatchAge = time.Hour }, "[12 12 12]"},
		{"rows of a job stay together", func(b *submitter.Settings) { b.BatchRows = 10; b.BatchAge = time.Hour }, "[8 8 8 8]"},
		{"by bytes", func(b *submitter.Settings) { b.BatchBytes = 16_000; b.BatchAge = time.Hour }, ""},
		{"one above the limit goes alone", func(b *submitter.Settings) { b.BatchRows = 1; b.BatchAge = time.Hour }, "[4 4 4 4 4 4 4 4 4 4]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tell(t, func(s *story) {
				c.change(&s.cfg.Submitter)
				for i := range 10 {
					s.publish(s.run(i, "boot-pass"))
				}
				stop := s.start()
				s.pass(30 * time.Second)
				stop()
				got := fmt.Sprint(s.kcidb.sizes)
				if c.want != "" && got != c.want {
					s.Errorf("batches of %s rows, want %s", got, c.want)
				}
				for _, sub := range s.kcidb.subs {
					if c.name == "by bytes" && (len(sub.doc) > 16_100 || len(s.kcidb.subs) < 2) {
						s.Errorf("%d bytes in one of %d submissions", len(sub.doc), len(s.kcidb.subs))
					}
				}
			})
		})
	}
}

func contains(i int) func(doc []byte) bool {
	return func(doc []byte) bool { return bytes.Contains(doc, []byte(`"`+rowID(i)+`"`)) }
}

// TestGuiltyAmongGood: one job makes every submission fail that it is in. It
// ends in PULLAB_DEAD alone, all others are accepted.
func TestGuiltyAmongGood(t *testing.T) {
	for _, way := range []string{"failed", "400"} {
		t.Run(way, func(t *testing.T) {
			tell(t, func(s *story) {
				bad := contains(5)
				if way == "400" {
					s.kcidb.refuse = bad
				} else {
					s.kcidb.verdict = func(_ int, doc []byte) kcidb.State {
						if bad(doc) {
							return kcidb.Failed
						}
						return kcidb.Processed
					}
				}
				for i := range 16 {
					s.publish(s.run(i, "boot-pass"))
				}
				stop := s.start()
				s.until(time.Hour, "reported", s.empty)
				stop()
				for i := range 16 {
					_, stored := s.counts(i)
					d := s.dead(i)
					if i == 5 && (stored != 0 || d == nil || !strings.Contains(d.Reason, nodeID(5)) || s.receipt(i).KCIDB.State != receipt.Failed) {
						s.Errorf("guilty: stored %d, letter %v, receipt %+v", stored, d, s.receipt(i).KCIDB)
					}
					if i != 5 && (stored == 0 || d != nil) {
						s.Errorf("node %d: stored %d, letter %v", i, stored, d)
					}
				}
			})
		})
	}
}

// TestInvalidRowsAreNotSent: the local check isolates a job before anything is
// sent of it.
func TestInvalidRowsAreNotSent(t *testing.T) {
	tell(t, func(s *story) {
		bad := s.run(1, "boot-pass")
		bad.Build.BuildId = "no colon"
		s.publish(s.run(0, "boot-pass"), bad, s.run(2, "boot-pass"))
		stop := s.start()
		s.until(time.Minute, "reported", s.empty)
		stop()
		sent, _ := s.counts(1)
		if d := s.dead(1); sent != 0 || d == nil || !strings.Contains(d.Reason, "$.tests[0].build_id: pattern") {
			s.Errorf("sent %d, letter %v", sent, d)
		}
		if s.node(1)["state"] != "done" {
			s.Error("the node waits for KCIDB")
		}
		for _, i := range []int{0, 2} {
			if sent, stored := s.counts(i); sent != 1 || stored != 1 {
				s.Errorf("node %d: sent %d, stored %d", i, sent, stored)
			}
		}
	})
}

// TestNeighboursFault: a submission that failed with somebody else's is sent
// once more, whole, and nobody is blamed.
func TestNeighboursFault(t *testing.T) {
	tell(t, func(s *story) {
		s.kcidb.verdict = func(n int, _ []byte) kcidb.State {
			if n == 1 {
				return kcidb.Failed
			}
			return kcidb.Processed
		}
		for i := range 8 {
			s.publish(s.run(i, "boot-pass"))
		}
		stop := s.start()
		s.until(10*time.Minute, "reported", s.empty)
		stop()
		if got := fmt.Sprint(s.kcidb.sizes); got != "[32 32]" {
			s.Errorf("submissions of %s rows", got)
		}
	})
}

// TestDatabaseDown: KCIDB takes submissions and fails them all, for hours. That
// is nobody's guilt.
func TestDatabaseDown(t *testing.T) {
	tell(t, func(s *story) {
		up := time.Now().Add(5 * time.Hour)
		s.kcidb.verdict = func(int, []byte) kcidb.State {
			if time.Now().Before(up) {
				return kcidb.Failed
			}
			return kcidb.Processed
		}
		for i := range 6 {
			s.publish(s.run(i, "boot-pass"))
		}
		stop := s.start()
		s.until(8*time.Hour, "reported", s.empty)
		stop()
		for i := range 6 {
			if _, stored := s.counts(i); stored == 0 || s.dead(i) != nil {
				s.Errorf("node %d: stored %d, letter %v", i, stored, s.dead(i))
			}
		}
	})
}

// TestLoneGuilty: without a witness the verdict takes convict_after.
func TestLoneGuilty(t *testing.T) {
	tell(t, func(s *story) {
		s.kcidb.verdict = func(int, []byte) kcidb.State { return kcidb.Failed }
		s.publish(s.run(1, "boot-pass"))
		stop := s.start()
		s.pass(20 * time.Hour)
		if s.dead(1) != nil {
			s.Error("convicted without a witness")
		}
		s.until(8*time.Hour, "given up", func() bool { return s.dead(1) != nil })
		stop()
		if d := s.dead(1); !strings.Contains(d.Reason, "says no reason") || !strings.Contains(d.Reason, "submission-sub") {
			s.Error(d.Reason)
		}
	})
}

// TestKCIDBDownForHours: nothing is lost, nothing is sent twice, and the node
// side does not wait.
func TestKCIDBDownForHours(t *testing.T) {
	for name, breakIt := range map[string]func(*fakeKCIDB){
		"connection": func(k *fakeKCIDB) { k.down = true },
		"500":        func(k *fakeKCIDB) { k.status = 500 },
		"401":        func(k *fakeKCIDB) { k.status = 401 },
	} {
		t.Run(name, func(t *testing.T) {
			tell(t, func(s *story) {
				s.kcidb.set(func() { breakIt(s.kcidb) })
				stop := s.start()
				for i := range 30 {
					s.publish(s.run(i, "boot-pass"))
					s.pass(10 * time.Minute)
				}
				if n := s.left(topology.SubmitterKCIDB); n != 30 {
					s.Errorf("%d of 30 results wait for KCIDB", n)
				}
				if n := s.left(topology.SubmitterNode); n != 0 {
					s.Errorf("%d nodes wait for KCIDB", n)
				}
				s.kcidb.set(func() { s.kcidb.down, s.kcidb.status = false, 0 })
				s.until(time.Hour, "reported", s.empty)
				stop()
				for i := range 30 {
					if sent, stored := s.counts(i); sent != 1 || stored != 1 || s.dead(i) != nil {
						s.Errorf("node %d: sent %d, stored %d", i, sent, stored)
					}
				}
				if s.kcidb.posts > 3 {
					s.Errorf("%d submissions for what had gathered", s.kcidb.posts)
				}
			})
		})
	}
}

// TestAPIDown: the node side waits, the KCIDB side does not.
func TestAPIDown(t *testing.T) {
	tell(t, func(s *story) {
		s.api.set(func() { s.api.down = true })
		stop := s.start()
		s.publish(s.run(1, "boot-pass"), s.run(2, "boot-panic"))
		s.pass(3 * time.Hour)
		if n := s.left(topology.SubmitterKCIDB); n != 0 {
			s.Errorf("%d results wait for the API", n)
		}
		if n := s.left(topology.SubmitterNode); n != 2 {
			s.Errorf("%d nodes wait, want 2", n)
		}
		s.api.set(func() { s.api.down = false })
		s.until(time.Hour, "reported", s.empty)
		stop()
		if s.node(1)["result"] != "pass" || s.node(2)["result"] != "fail" {
			s.Error("nodes are not finished")
		}
	})
}

// TestRestart: the submitter ends at each step of a submission's life, and
// another one takes over. What has a receipt is not sent again.
func TestRestart(t *testing.T) {
	for _, c := range []struct {
		name string
		at   time.Duration
		sent int
	}{
		{"before the batch", 100 * time.Millisecond, 1},
		{"while it is spooled", 1500 * time.Millisecond, 1},
		{"after it was processed", time.Minute, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			tell(t, func(s *story) {
				s.publish(s.run(1, "boot-pass"), s.run(2, "ltp"))
				stop := s.start()
				s.pass(c.at)
				stop()
				stop = s.start()
				s.until(10*time.Minute, "reported", s.empty)
				stop()
				for i := 1; i <= 2; i++ {
					if sent, stored := s.counts(i); sent != c.sent || stored != 1 {
						s.Errorf("node %d: sent %d, stored %d", i, sent, stored)
					}
				}
				if n := len(s.api.nodes) - 2; n != s.api.made {
					s.Errorf("%d children of %d made", n, s.api.made)
				}
			})
		})
	}
}

// TestCrashBetweenSubmitAndReceipt: the reply is lost; the rows are sent again,
// which KCIDB takes for the same.
func TestCrashBetweenSubmitAndReceipt(t *testing.T) {
	tell(t, func(s *story) {
		var stop func()
		crash := make(chan struct{})
		s.kcidb.onPost = func(n int) {
			if n == 1 {
				s.kcidb.down = true // the connection breaks after the file is stored
				close(crash)
			}
		}
		s.publish(s.run(1, "boot-pass"))
		stop = s.start()
		<-crash
		stop()
		s.kcidb.set(func() { s.kcidb.down = false })
		stop = s.start()
		s.until(10*time.Minute, "reported", s.empty)
		stop()
		if _, stored := s.counts(1); stored == 0 || s.dead(1) != nil {
			s.Errorf("stored %d", stored)
		}
	})
}

// TestSubmissionForgotten: KCIDB does not know a submission any more.
func TestSubmissionForgotten(t *testing.T) {
	tell(t, func(s *story) {
		s.publish(s.run(1, "boot-pass"))
		stop := s.start()
		s.pass(2 * time.Second)
		s.kcidb.set(func() { clear(s.kcidb.subs) })
		s.pass(5 * time.Minute)
		if sent, _ := s.counts(1); sent != 1 {
			s.Errorf("sent %d times before it is certain", sent)
		}
		s.until(time.Hour, "reported", s.empty)
		stop()
		if sent, stored := s.counts(1); sent != 2 || stored != 1 {
			s.Errorf("sent %d, stored %d", sent, stored)
		}
	})
}

func TestSecondResultOfANode(t *testing.T) {
	tell(t, func(s *story) {
		stop := s.start()
		s.publish(s.run(1, "boot-pass"))
		s.until(time.Minute, "reported", s.empty)
		again := s.run(1, "boot-panic")
		again.RunId += "_again"
		s.publish(again)
		s.until(time.Minute, "reported", s.empty)
		stop()
		if sent, _ := s.counts(1); sent != 1 {
			s.Errorf("sent %d times", sent)
		}
	})
}

func TestRowsApart(t *testing.T) {
	tell(t, func(s *story) {
		blobs, err := ledger.OpenBlobs(s.Context(), s.bus, topology.ResultRows)
		if err != nil {
			s.Fatal(err)
		}
		many := &pullabv1.RunRows{}
		for i := range 3000 {
			many.Rows = append(many.Rows, &pullabv1.TestRow{Path: fmt.Sprintf("ltp.t%04d", i), Status: pullabv1.Status_STATUS_PASS, LogExcerpt: strings.Repeat("x", 100)})
		}
		b, err := wire.Encode(many)
		if err != nil {
			s.Fatal(err)
		}
		fin, lost := s.run(1, "ltp"), s.run(2, "ltp")
		fin.Rows, fin.RowsObject = nil, fin.RunId
		lost.Rows, lost.RowsObject = nil, "nowhere"
		if err := blobs.Put(s.Context(), fin.RunId, bytes.NewReader(b)); err != nil {
			s.Fatal(err)
		}
		s.publish(fin, lost)
		stop := s.start()
		s.until(10*time.Minute, "reported", s.empty)
		stop()
		if len(s.kcidb.stored) != 3001 || s.api.made != 3001 {
			s.Errorf("%d rows, %d children", len(s.kcidb.stored), s.api.made)
		}
		if d := s.dead(2); d == nil || !strings.Contains(d.Reason, "rows of this result are lost") || s.node(2)["state"] != "done" {
			s.Errorf("letter %v, node %v", d, s.node(2)["state"])
		}
	})
}

func TestLocalRunsAreNotReported(t *testing.T) {
	tell(t, func(s *story) {
		fin := s.run(1, "boot-pass")
		fin.Origin.ApiBaseUri = ""
		s.publish(fin)
		stop := s.start()
		s.until(time.Minute, "acknowledged", s.empty)
		stop()
		if s.kcidb.posts != 0 || len(s.api.writes) != 0 {
			s.Errorf("%d posts, writes %v", s.kcidb.posts, s.api.writes)
		}
	})
}

func TestOnce(t *testing.T) {
	tell(t, func(s *story) {
		for i := range 5 {
			s.publish(s.run(i, "boot-pass"))
		}
		svc, err := submitter.New(s.Context(), s.cfg, s.bus, submitter.WithTransport(s.world))
		if err != nil {
			s.Fatal(err)
		}
		if err := svc.Once(s.Context()); err != nil {
			s.Fatal(err)
		}
		if !s.empty() || len(s.kcidb.stored) != 20 {
			s.Errorf("%d left, %d rows", s.queued(), len(s.kcidb.stored))
		}
	})
}

func TestKCIDBOff(t *testing.T) {
	tell(t, func(s *story) {
		s.cfg.Report.KCIDB, s.cfg.KernelCI.KCIDBJWT = false, ""
		s.publish(s.run(1, "boot-pass"))
		stop := s.start()
		s.until(time.Minute, "acknowledged", s.empty)
		stop()
		if s.kcidb.posts != 0 || s.node(1)["state"] != "done" {
			s.Errorf("%d posts, node %v", s.kcidb.posts, s.node(1)["state"])
		}
	})
}

func TestMissingToken(t *testing.T) {
	tell(t, func(s *story) {
		s.cfg.KernelCI.KCIDBJWT = ""
		_, err := submitter.New(s.Context(), s.cfg, s.bus)
		if err == nil || err.Error() != "Missing required configuration: kernelci.kcidb_jwt" {
			s.Errorf("got %v", err)
		}
	})
}

// keep the fixtures honest: what is published decodes to what was made.
func TestFixtures(t *testing.T) {
	t.Parallel()
	entries, err := os.ReadDir("testdata/runs")
	if err != nil || len(entries) < 6 {
		t.Fatal(len(entries), err)
	}
	for _, e := range entries {
		b, err := os.ReadFile("testdata/runs/" + e.Name())
		if err != nil {
			t.Fatal(err)
		}
		a, c := &pullabv1.RunFinished{}, &pullabv1.RunFinished{}
		if err := wire.DecodeInto(b, a); err != nil {
			t.Errorf("%s: %v", e.Name(), err)
			continue
		}
		b, _ = wire.Encode(a)
		if wire.DecodeInto(b, c) != nil || !proto.Equal(a, c) {
			t.Errorf("%s does not survive the bus", e.Name())
		}
	}
}
