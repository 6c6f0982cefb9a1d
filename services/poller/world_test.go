package poller

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/pkg/kernelci"
	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/natstest"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/poller/internal/cursor"
	"github.com/pullab/pullab/services/poller/internal/offers"
)

const (
	runtime = "pull-labs-aws-ec2"
	token   = "eyJ.secret.token"
)

func TestMain(m *testing.M) {
	natstest.Register()
	m.Run()
}

type doc = map[string]any

// world is kernelci-api, without sockets: as strict as kernelci-wire.md 1.3 to
// 1.5 in what the poller touches.
type world struct {
	mu     sync.Mutex
	nodes  map[string]doc
	events []doc
	// ahead is how far the API's clock is ahead of this machine's.
	ahead time.Duration
	// shuffle the events, differently for each from, equally for its pages.
	shuffle bool
	// anyState does not filter events by state: for samples of all kinds.
	anyState bool
	whoami   http.HandlerFunc
	// before is called ahead of each request, and may answer or fail it.
	before func(http.ResponseWriter, *http.Request) (answered bool, err error)
	asked  []string
	tokens []string
}

func newWorld() *world {
	return &world{nodes: map[string]doc{}, whoami: answer(200, `{"username":"lab","is_superuser":true,"groups":[]}`)}
}

func answer(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// now is the API's time; it stores milliseconds.
func (w *world) now() time.Time { return time.Now().Add(w.ahead).UTC().Truncate(time.Millisecond) }

func stamp(t time.Time) string {
	if t.Nanosecond() == 0 {
		return t.UTC().Format("2006-01-02T15:04:05")
	}
	return t.UTC().Format("2006-01-02T15:04:05.000000")
}

func nodeID(n int) string { return fmt.Sprintf("6a86d157c5867fba%08x", n) }

// job adds node n, and its event unless the changes say otherwise.
func (w *world) job(n int, change ...func(node doc)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := w.now()
	node := doc{
		"id": nodeID(n), "kind": "job", "name": "baseline-x86-aws-ec2", "path": []string{"checkout", "kbuild", "baseline-x86-aws-ec2"},
		"group": "baseline", "parent": "6a86cc10c5867fba94730b11", "state": "available", "result": nil,
		"artifacts": doc{"job_definition": "https://files.kernelci.org/pull_labs_jobs/" + nodeID(n) + ".json"},
		"data":      doc{"runtime": runtime, "platform": "aws-ec2-x86_64", "arch": "x86_64"},
		"created":   stamp(at), "updated": stamp(at), "timeout": stamp(at.Add(6 * time.Hour)), "retry_counter": 0,
	}
	for _, c := range change {
		c(node)
	}
	w.nodes[nodeID(n)] = node
	if node["no_event"] == nil {
		w.event(nodeID(n), at)
	}
	delete(node, "no_event")
}

func silently(node doc) { node["no_event"] = true }

func platform(p string) func(doc) { return func(n doc) { n["data"].(doc)["platform"] = p } }

func (w *world) event(node string, at time.Time) {
	n := w.nodes[node]
	w.events = append(w.events, doc{
		"timestamp": stamp(at), "sequence_id": len(w.events), "channel": "node", "owner": "production", "id": fmt.Sprintf("%024x", len(w.events)),
		"data": doc{"op": "updated", "id": node, "kind": n["kind"], "name": n["name"], "state": n["state"], "data": n["data"]},
	})
}

func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	w.asked = append(w.asked, r.URL.Path+"?"+r.URL.RawQuery)
	w.tokens = append(w.tokens, r.Header.Get("Authorization"))
	before := w.before
	w.mu.Unlock()
	rec := httptest.NewRecorder()
	if before != nil {
		if answered, err := before(rec, r); err != nil {
			return nil, err
		} else if answered {
			return rec.Result(), nil
		}
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	rec.Header().Set("Date", w.now().Format(http.TimeFormat))
	switch r.URL.Path {
	case "/latest/events":
		w.serveEvents(rec, r)
	case "/latest/nodes":
		w.serveNodes(rec, r)
	case "/latest/whoami":
		w.whoami(rec, r)
	default:
		answer(404, `{"detail":"Not Found"}`)(rec, r)
	}
	return rec.Result(), nil
}

func (w *world) serveEvents(rw http.ResponseWriter, r *http.Request) {
	q := map[string]string{}
	for k, v := range r.URL.Query() {
		q[k] = v[len(v)-1]
	}
	limit, _ := strconv.Atoi(q["limit"])
	offset, _ := strconv.Atoi(q["offset"])
	if q["recursive"] != "" && (limit == 0 || limit > 1000) {
		answer(400, `{"detail":"Recursive limit is too large, max is 1000"}`)(rw, r)
		return
	}
	from, err := kernelci.ParseTime(q["from"])
	if err != nil {
		answer(400, `{"detail":"Invalid 'from' parameter, must be an ISO 8601 datetime"}`)(rw, r)
		return
	}
	from = from.Truncate(time.Millisecond)
	// An imagined filter matches nothing.
	for k := range q {
		if !slices.Contains([]string{"limit", "offset", "recursive", "from", "state", "kind", "channel"}, k) {
			answer(200, "[]")(rw, r)
			return
		}
	}
	var out []doc
	for _, e := range w.events {
		at, _ := kernelci.ParseTime(e["timestamp"].(string))
		data, _ := e["data"].(doc)
		if at.After(from) && (w.anyState || data["state"] == q["state"]) && data["kind"] == q["kind"] && e["channel"] == q["channel"] {
			e = maps.Clone(e)
			id, _ := data["id"].(string)
			if n := w.nodes[id]; n != nil && q["recursive"] != "" {
				e["node"] = n
			}
			out = append(out, e)
		}
	}
	if w.shuffle {
		rnd := rand.New(rand.NewPCG(uint64(from.UnixNano()), 7))
		rnd.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	}
	out = out[min(offset, len(out)):]
	send(rw, out[:min(limit, len(out))])
}

func (w *world) serveNodes(rw http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	limit, _ := strconv.Atoi(q.Get("limit"))
	offset, _ := strconv.Atoi(q.Get("offset"))
	if limit < 1 {
		answer(422, `{"detail":[{"loc":["query","limit"],"msg":"Input should be greater than or equal to 1"}]}`)(rw, r)
		return
	}
	var out []doc
	for _, id := range slices.Sorted(maps.Keys(w.nodes)) {
		n := w.nodes[id]
		data, _ := n["data"].(doc)
		if n["kind"] == q.Get("kind") && n["state"] == q.Get("state") && data["runtime"] == q.Get("data.runtime") &&
			(q.Get("data.job_id") != "null" || data["job_id"] == nil) {
			out = append(out, n)
		}
	}
	total := len(out)
	out = out[min(offset, total):]
	send(rw, doc{"items": append([]doc{}, out[:min(limit, len(out))]...), "total": total, "limit": limit, "offset": offset})
}

func send(rw http.ResponseWriter, v any) {
	if l, ok := v.([]doc); ok && l == nil {
		v = []doc{}
	}
	_ = json.NewEncoder(rw).Encode(v)
}

// load a sample page of events with their nodes.
func (w *world) load(t testing.TB, name string) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var events []doc
	if err := json.Unmarshal(b, &events); err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if n, ok := e["node"].(doc); ok {
			w.nodes[n["id"].(string)] = n
			delete(e, "node")
		}
		w.events = append(w.events, e)
	}
}

func (w *world) count(path string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, a := range w.asked {
		if strings.HasPrefix(a, "/latest"+path) {
			n++
		}
	}
	return n
}

func settings() Config {
	return Config{
		KernelCI: config.KernelCI{
			APIBaseURI: "https://api.example:9000/latest", APIToken: token, RuntimeName: runtime, PollIntervalSec: 30,
		},
		Poller: Settings{
			State: "available", Limit: 1000, Overlap: time.Minute, Lookback: 24 * time.Hour, SweepInterval: 10 * time.Minute,
			ReofferAfter: 30 * time.Minute, MinRuntime: 15 * time.Minute, Concurrency: 16, RequestTimeout: time.Minute,
		},
	}
}

// lab is one poller against world and a broker.
type lab struct {
	*Service
	t   testing.TB
	bus *bus.Bus
	log *buffer
	ctx context.Context
}

// buffer is a log that goroutines share.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newLab(t testing.TB, b *bus.Bus, w *world, change ...func(*Config)) *lab {
	t.Helper()
	cfg := settings()
	for _, c := range change {
		c(&cfg)
	}
	log := &buffer{}
	ctx := zerolog.New(log).WithContext(t.Context())
	s, err := New(ctx, cfg, b, WithTransport(w))
	if err != nil {
		t.Fatal(err)
	}
	return &lab{Service: s, t: t, bus: b, log: log, ctx: ctx}
}

func (l *lab) once() {
	l.t.Helper()
	if err := l.Once(l.ctx); err != nil {
		l.t.Fatalf("%v\n%s", err, l.log)
	}
}

func noSweep(c *Config) { c.Poller.SweepInterval = 0 }

// run in the background; the returned function stops it and waits.
func (l *lab) run() (stop func()) {
	ctx, cancel := context.WithCancel(l.ctx)
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("Run: %v", err)
		}
	}
}

// queued counts what is on PULLAB_JOBS.
func queued(t testing.TB, b *bus.Bus) int {
	t.Helper()
	s, err := b.JS.Stream(t.Context(), topology.Jobs)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return int(info.State.Msgs)
}

// take reads all offers, as the translator does, and gives their node ids,
// sorted.
func take(t testing.TB, b *bus.Bus) []string {
	t.Helper()
	var mu sync.Mutex
	var ids []string
	in := queue.NewInbox(b, queue.InboxConfig{Service: "translator", Stream: topology.Jobs, Consumer: topology.Translator})
	err := in.Drain(t.Context(), queue.FixedSlots(8), func(_ context.Context, d *queue.Delivery) error {
		mu.Lock()
		defer mu.Unlock()
		ids = append(ids, d.Message.(*pullabv1.JobOffered).GetOrigin().GetNodeId())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(ids)
	return ids
}

func (l *lab) record(id string) offers.Record {
	l.t.Helper()
	records, err := ledger.Open[offers.Record](l.t.Context(), l.bus, topology.Offers)
	if err != nil {
		l.t.Fatal(err)
	}
	r, _, err := records.Get(l.t.Context(), id)
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

// position of the cursor, in the API's form.
func (l *lab) position(platforms ...string) string {
	l.t.Helper()
	return l.cursorRecord(platforms...).Timestamp
}

func (l *lab) cursorRecord(platforms ...string) cursor.Record {
	l.t.Helper()
	cursors, err := ledger.Open[cursor.Record](l.t.Context(), l.bus, topology.Cursor)
	if err != nil {
		l.t.Fatal(err)
	}
	r, _, err := cursors.Get(l.t.Context(), cursor.Key("api.example:9000", l.rules.Runtime, platforms))
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

func (l *lab) said(words ...string) {
	l.t.Helper()
	for _, w := range words {
		if !strings.Contains(l.log.String(), w) {
			l.t.Errorf("the log lacks %q:\n%s", w, l.log)
		}
	}
}

// later lets fake time pass.
func later(t testing.TB, d time.Duration) {
	t.Helper()
	if err := backoff.Sleep(t.Context(), d); err != nil {
		t.Fatal(err)
	}
}

func sampleText(name string) string {
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		panic(err)
	}
	return string(b)
}
