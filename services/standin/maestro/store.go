package maestro

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pullab/pullab/services/standin/internal/node"
	"github.com/pullab/pullab/services/standin/internal/pytime"
	"github.com/pullab/pullab/services/standin/internal/query"
)

// eventTTL is how long events are kept (kernelci-wire.md 1.3).
const eventTTL = 604800 * time.Second

// entry is a stored node: the document, its bytes, and the form that queries
// read. It is never changed.
type entry struct {
	node Node
	raw  []byte
	doc  query.Doc
}

// event is a stored event; raw has no node.
type event struct {
	at     time.Time
	seq    int64
	id     string
	nodeID string
	raw    []byte
	doc    query.Doc
}

type store struct {
	dir string
	ids *objectIDs

	mu     sync.RWMutex
	nodes  map[string]*entry
	order  []string // node ids as they came
	events []*event // by at
	seq    int64
	// held collects events while a test holds them back; nil otherwise.
	held    []*event
	holding bool
}

func openStore(dir string, seed uint64) (*store, error) {
	s := &store{dir: dir, ids: newObjectIDs(seed), nodes: map[string]*entry{}}
	if dir == "" {
		return s, nil
	}
	if err := os.MkdirAll(filepath.Join(dir, "nodes"), 0o755); err != nil {
		return nil, fmt.Errorf("state of the stand-in kernelci-api: %w", err)
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("state of the stand-in kernelci-api in %s: %w. Remove the directory to start afresh", dir, err)
	}
	return s, nil
}

func (s *store) load() error {
	files, err := filepath.Glob(filepath.Join(s.dir, "nodes", "*.json"))
	if err != nil {
		return err
	}
	slices.Sort(files)
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		var n Node
		if err := json.Unmarshal(raw, &n); err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		e, err := newEntry(n)
		if err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		s.nodes[n.ID] = e
		s.order = append(s.order, n.ID)
	}
	b, err := os.ReadFile(s.eventsFile())
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, MaxBody)
	for sc.Scan() {
		e, err := readEvent(slices.Clone(sc.Bytes()))
		if err != nil {
			return fmt.Errorf("events.jsonl: %w", err)
		}
		s.insert(e)
		s.seq = max(s.seq, e.seq)
	}
	return sc.Err()
}

func (s *store) eventsFile() string { return filepath.Join(s.dir, "events.jsonl") }

func newEntry(n Node) (*entry, error) {
	raw, err := json.Marshal(n)
	if err != nil {
		return nil, err
	}
	doc, err := decode(raw)
	return &entry{n, raw, doc}, err
}

func decode(raw []byte) (query.Doc, error) {
	var doc query.Doc
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	err := d.Decode(&doc)
	return doc, err
}

func readEvent(raw []byte) (*event, error) {
	doc, err := decode(raw)
	if err != nil {
		return nil, err
	}
	stamp, _ := doc["timestamp"].(string)
	at, ok := pytime.Parse(stamp)
	if !ok {
		return nil, fmt.Errorf("no timestamp in %.100s", raw)
	}
	e := &event{at: at, raw: raw, doc: doc}
	e.id, _ = doc["id"].(string)
	if seq, ok := doc["sequence_id"].(json.Number); ok {
		if e.seq, err = seq.Int64(); err != nil {
			return nil, err
		}
	}
	if data, ok := doc["data"].(map[string]any); ok {
		e.nodeID, _ = data["id"].(string)
	}
	return e, nil
}

func (s *store) get(id string) *entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.nodes[strings.ToLower(id)]
}

// put stores n under its id.
func (s *store) put(n Node) (*entry, error) {
	e, err := newEntry(n)
	if err != nil {
		return nil, err
	}
	if s.dir != "" {
		if err := replaceFile(filepath.Join(s.dir, "nodes", n.ID+".json"), e.raw); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes[n.ID] == nil {
		s.order = append(s.order, n.ID)
	}
	s.nodes[n.ID] = e
	return e, nil
}

func replaceFile(path string, b []byte) error {
	if err := os.WriteFile(path+".tmp", b, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// find lists the nodes that match, in the order they came.
func (s *store) find(conds []query.Cond) []*entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []*entry
	for _, id := range s.order {
		if e := s.nodes[id]; query.Match(e.doc, conds) {
			out = append(out, e)
		}
	}
	return out
}

// findEvents lists the events later than from that match, by time, at most max
// if it is not 0.
func (s *store) findEvents(from time.Time, conds []query.Cond, max int) []*event {
	if oldest := time.Now().Add(-eventTTL); from.Before(oldest) {
		from = oldest
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	start, _ := slices.BinarySearchFunc(s.events, from, func(e *event, t time.Time) int {
		if e.at.After(t) {
			return 1
		}
		return -1
	})
	var out []*event
	for _, e := range s.events[start:] {
		if query.Match(e.doc, conds) {
			out = append(out, e)
			if len(out) == max {
				break
			}
		}
	}
	return out
}

type wireEvent struct {
	Timestamp node.Stamp `json:"timestamp"`
	Sequence  int64      `json:"sequence_id"`
	Channel   string     `json:"channel"`
	Owner     *string    `json:"owner"`
	Data      any        `json:"data"`
	ID        string     `json:"id"`
}

// publish stores an event stamped now. doc is what queries see of data; nil has
// it decoded.
func (s *store) publish(channel string, owner *string, data any, doc query.Doc) error {
	now := pytime.Truncate(time.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	id := s.ids.next(now)
	raw, err := json.Marshal(wireEvent{node.Stamp(now), s.seq, channel, owner, data, id})
	if err != nil {
		return err
	}
	e := &event{at: now, seq: s.seq, id: id, raw: raw}
	if doc == nil {
		if e, err = readEvent(raw); err != nil {
			return err
		}
	} else {
		e.nodeID, _ = doc["id"].(string)
		e.doc = query.Doc{"channel": channel, "owner": node.Text(owner), "data": doc, "id": id, "timestamp": pytime.Format(now)}
	}
	if s.dir != "" {
		if err := appendLine(s.eventsFile(), raw); err != nil {
			return err
		}
	}
	if s.holding {
		s.held = append(s.held, e)
		return nil
	}
	s.insert(e)
	return nil
}

// insert keeps events sorted by time.
func (s *store) insert(e *event) {
	i := len(s.events)
	for i > 0 && s.events[i-1].at.After(e.at) {
		i--
	}
	s.events = slices.Insert(s.events, i, e)
}

func (s *store) hold() (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holding = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, e := range s.held {
			s.insert(e)
		}
		s.held, s.holding = nil, false
	}
}

func appendLine(path string, line []byte) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(slices.Clone(line), '\n'))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// objectIDs makes MongoDB ObjectIds: four bytes of creation second, five random
// ones, a counter of three.
type objectIDs struct {
	mu      sync.Mutex
	machine [5]byte
	counter uint32
}

func newObjectIDs(seed uint64) *objectIDs {
	r := rand.New(rand.NewPCG(seed, 0x6b63692d617069))
	if seed == 0 {
		r = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	o := &objectIDs{counter: r.Uint32()}
	for i := range o.machine {
		o.machine[i] = byte(r.Uint32())
	}
	return o
}

func (o *objectIDs) next(now time.Time) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.counter++
	var b [12]byte
	binary.BigEndian.PutUint32(b[:4], uint32(now.Unix()))
	copy(b[4:9], o.machine[:])
	b[9], b[10], b[11] = byte(o.counter>>16), byte(o.counter>>8), byte(o.counter)
	return hex.EncodeToString(b[:])
}
