package pullab_test

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/pkg/executor"
	"github.com/pullab/pullab/pkg/executor/executortest"
	"github.com/pullab/pullab/pkg/natstest"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/pkg/wire"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/poller"
	"github.com/pullab/pullab/services/pullab"
	"github.com/pullab/pullab/services/pullab/lab"
	"github.com/pullab/pullab/services/runner"
	"github.com/pullab/pullab/services/standin"
	"github.com/pullab/pullab/services/standin/fault"
	"github.com/pullab/pullab/services/submitter"
	"github.com/pullab/pullab/services/translator"
)

func TestMain(m *testing.M) {
	natstest.Register()
	os.Exit(m.Run()) //nolint:forbidigo // how TestMain ends
}

const (
	chaosJobs = 60
	// trouble is how long everything fails; then the far sides are well again and
	// the lab is left alone.
	trouble = 2 * time.Hour
	// patience is less than a node's life of 6 h.
	patience = 5 * time.Hour
)

// TestChaos runs the whole lab while the API, the storage and KCIDB fail at
// random and the process dies every few minutes without a word. Then every job
// has been reported once, truly, and no attempt ever had two machines.
func TestChaos(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { newChaos(t, seed).run() })
		})
	}
}

// TestLostStore takes the broker's whole store away while jobs are queued,
// claimed, running and being reported. kernelci-api still has them all.
func TestLostStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newChaos(t, 9)
		nodes := c.offer()
		server, b := natstest.StartServer(t)
		stop := c.live(lab.New(c.context(), c.cfg, b, c.options()))
		c.pass(4 * time.Minute)
		b.Close()
		stop()
		server.Stop()
		claimed := 0
		for _, id := range nodes {
			if n, _ := c.world.Node(id); n.State == "available" && strings.Contains(string(n.Data), `"job_id"`) {
				claimed++
			}
		}
		if claimed == 0 {
			t.Fatal("no job was claimed and unfinished when the store was lost: the test shows nothing")
		}
		_, b = natstest.StartServer(t)
		c.end(b, nodes)
	})
}

type chaos struct {
	t     *testing.T
	rand  *rand.Rand
	world *standin.World
	fake  *executortest.Fake
	cfg   lab.Config
}

func newChaos(t *testing.T, seed uint64) *chaos {
	world, err := standin.New(standin.Options{Seed: seed + 1})
	if err != nil {
		t.Fatal(err)
	}
	c := &chaos{t: t, rand: rand.New(rand.NewPCG(seed, 7)), world: world, fake: executortest.NewFake(t, "qemu")}
	c.fake.Host = "lab"
	c.fake.Script = script
	set := append(pullab.DemoSettings(world), "runner.data_dir="+t.TempDir(), "runner.arches=x86_64", "runner.slots=qemu=8",
		"kernelci.poll_interval_sec=30", "poller.sweep_interval=5m")
	if _, err := config.Load(&c.cfg, config.Source{Set: set}); err != nil {
		t.Fatal(err)
	}
	return c
}

// script is decided by the node, so that every attempt at it tells the same
// truth: a quarter panics, and of a fifth the first attempt fails for the lab's
// reasons.
func script(run executor.Run) executortest.Script {
	h := fnv.New32a()
	h.Write([]byte(run.Plan.GetOrigin().GetNodeId()))
	n := h.Sum32()
	s := executortest.Passing()
	if panics(run.Plan.GetOrigin().GetNodeId()) {
		s = executortest.Panicking()
	} else {
		s.Outcome.Rows = append(s.Outcome.Rows, &pullabv1.TestRow{Path: "baseline.dmesg.crit", Status: pullabv1.Status_STATUS_PASS, TestId: s.Outcome.Rows[0].GetTestId()})
	}
	s.Launch, s.Takes = time.Duration(n%7)*time.Second, time.Duration(n%600)*time.Second
	if n%5 == 0 && run.Attempt == 1 {
		s.AwaitErr = &executor.LabError{Reason: "lost", Fix: "Nothing: this machine was made to fail"}
	}
	return s
}

func panics(node string) bool { return node[len(node)-1]%4 == 0 }

func (c *chaos) faults() fault.Config {
	everywhere := []fault.Rule{
		{Probability: 0.06, Status: 503}, {Probability: 0.03, Status: 429, RetryAfterS: 9}, {Probability: 0.05, Truncate: 60},
		{Probability: 0.05, Drop: true}, {Probability: 0.06, Lose: true}, {Probability: 0.1, LatencyMS: 40_000},
	}
	html := fault.Rule{Probability: 0.03, Body: "<html>it works</html>", ContentType: "text/html"}
	return fault.Config{Seed: c.rand.Uint64(), API: append([]fault.Rule{html}, everywhere...), Storage: everywhere, KCIDB: append([]fault.Rule{html}, everywhere...)}
}

func (c *chaos) run() {
	server, _ := natstest.StartServer(c.t)
	nodes := c.offer()
	c.world.SetFaults(c.faults())
	start := time.Now()
	lives := 0
	for ; time.Since(start) < trouble; lives++ {
		c.world.KCIDB.FailBatches(c.rand.IntN(3))
		b := natstest.Connect(c.t, server, fmt.Sprint("life ", lives))
		stop := c.live(lab.New(c.context(), c.cfg, b, c.options()))
		c.pass(time.Minute + time.Duration(c.rand.Int64N(int64(12*time.Minute))))
		b.Close() // the process is gone: it can neither acknowledge nor hand back
		stop()
	}
	c.world.SetFaults(fault.Config{})
	c.world.KCIDB.FailBatches(0)
	c.t.Logf("%d jobs, %d lives", len(nodes), lives+1)
	c.end(natstest.Connect(c.t, server, "the last life"), nodes)
}

func (c *chaos) offer() []string {
	var nodes []string
	for range chaosJobs {
		id, err := c.world.OfferJob(c.t.Context(), standin.Job{Platform: "qemu-x86_64", Kernel: "http://storage.standin.test/bzImage"})
		if err != nil {
			c.t.Fatal(err)
		}
		nodes = append(nodes, id)
	}
	return nodes
}

// end lets a lab live undisturbed until all is done, and looks.
func (c *chaos) end(b *bus.Bus, nodes []string) {
	start := time.Now()
	stop := c.live(lab.New(c.context(), c.cfg, b, c.options()))
	for time.Since(start) < patience-trouble && !c.done(nodes) {
		c.pass(time.Minute)
	}
	// Machines that only a lost store knew of end at their own deadline.
	c.pass(30 * time.Minute)
	stop()
	c.check(nodes)
	c.buried(b)
}

// buried prints what services gave up on; there must be none, since everything
// that failed did so only for a while.
func (c *chaos) buried(b *bus.Bus) {
	dead, err := b.JS.Stream(c.t.Context(), topology.Dead)
	if err != nil {
		c.t.Fatal(err)
	}
	last := dead.CachedInfo().State.LastSeq
	for seq := uint64(1); seq <= last; seq++ {
		m, err := dead.GetMsg(c.t.Context(), seq)
		if err != nil {
			c.t.Fatal(err)
		}
		var d pullabv1.DeadLetter
		if err := wire.DecodeInto(m.Data, &d); err != nil {
			c.t.Fatal(err)
		}
		c.t.Errorf("dead letter of the %s, node %s, delivery %d: %s", d.GetService(), d.GetNodeId(), d.GetDeliveries(), d.GetReason())
	}
}

func (c *chaos) context() context.Context {
	return zerolog.Nop().WithContext(context.Background())
}

func (c *chaos) options() lab.Options {
	rt := c.world.Transport()
	return lab.Options{
		Poller:     []poller.Option{poller.WithTransport(rt)},
		Translator: []translator.Option{translator.WithTransport(rt)},
		Runner: []runner.Option{runner.WithTransport(rt), runner.WithHost("lab"),
			runner.WithExecutors(map[string]executor.Executor{"qemu": c.fake.Executor()})},
		Submitter: []submitter.Option{submitter.WithTransport(rt)},
	}
}

// live runs a lab until stop is called.
func (c *chaos) live(l *lab.Lab, err error) (stop func()) {
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(c.context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.Run(ctx) // a dead connection is what this test is about
	}()
	return func() { cancel(); <-done }
}

func (c *chaos) pass(d time.Duration) {
	if err := backoff.Sleep(c.t.Context(), d); err != nil {
		c.t.Fatal(err)
	}
}

func (c *chaos) done(nodes []string) bool {
	for _, id := range nodes {
		if n, _ := c.world.Node(id); n.State != "done" || len(c.world.Rows(id)) == 0 {
			return false
		}
	}
	return true
}

func (c *chaos) check(nodes []string) {
	for _, id := range nodes {
		n, _ := c.world.Node(id)
		result, status, rows := "pass", "PASS", 2
		if panics(id) {
			result, status, rows = "fail", "FAIL", 1
		}
		if n.State != "done" || n.Result == nil || *n.Result != result {
			c.t.Errorf("node %s is %s with result %v, want %s", id, n.State, n.Result, result)
		}
		have := c.world.Rows(id)
		if len(have) != rows || have[0].Text("path") != "boot" || have[0].Text("status") != status {
			c.t.Errorf("node %s has rows %v, want %d with boot %s", id, have, rows, status)
		}
		if children := c.children(id); children != rows-1 {
			c.t.Errorf("node %s has %d children in the tree, want %d", id, children, rows-1)
		}
	}
	if live := c.fake.Live(); live != 0 {
		c.t.Errorf("%d machines are left", live)
	}
}

// children counts the nodes directly below, as anybody can ask.
func (c *chaos) children(id string) int {
	client := http.Client{Transport: c.world.Transport()}
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, c.world.APIURL()+"/nodes?limit=100&parent="+id, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	var page struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&page); err != nil {
		c.t.Fatal(err)
	}
	return len(page.Items)
}
