package maestro

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pullab/pullab/services/standin/internal/node"
	"github.com/pullab/pullab/services/standin/internal/pytime"
	"github.com/pullab/pullab/services/standin/internal/query"
)

// badRequest is a 400 with its detail; another error is a 500.
type badRequest string

func (e badRequest) Error() string { return string(e) }

// refuse answers for an error of a query.
func refuse(w http.ResponseWriter, err error) {
	var bad badRequest
	if errors.As(err, &bad) {
		detail(w, http.StatusBadRequest, bad)
		return
	}
	fail(w)
}

// eventQuery is a parsed query string of GET /events.
type eventQuery struct {
	from          time.Time
	conds         []query.Cond
	limit, offset int
	recursive     bool
}

// fields that a short parameter name stands for.
var eventFields = map[string]string{
	"kind": "data.kind", "state": "data.state", "result": "data.result", "op": "data.op", "name": "data.name",
	"group": "data.group", "owner": "data.owner", "channel": "channel", "node_id": "data.id",
}

var objectID = regexp.MustCompile(`^[0-9a-fA-F]{24}$`)

// lastValues is a query string as the original sees it: of a repeated parameter
// the last one wins.
func lastValues(raw string) (map[string]string, []string) {
	values, _ := url.ParseQuery(raw)
	out := map[string]string{}
	var keys []string
	for k, v := range values {
		out[k] = v[len(v)-1]
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return out, keys
}

func parseEventQuery(raw string) (q eventQuery, err error) {
	params, keys := lastValues(raw)
	if v := params["from"]; v != "" {
		t, ok := pytime.Parse(v)
		if !ok {
			return q, badRequest("Invalid 'from' parameter, must be an ISO 8601 datetime")
		}
		q.from = pytime.Truncate(t)
	}
	if q.limit, err = pyInt(params["limit"]); err != nil {
		return q, err
	}
	if q.offset, err = pyInt(params["offset"]); err != nil {
		return q, err
	}
	q.limit, q.offset = max(q.limit, -q.limit), max(q.offset, 0)
	q.recursive = params["recursive"] != ""
	if q.recursive && (params["limit"] == "" || q.limit > maxRecursive) {
		return q, badRequest(fmt.Sprintf("Recursive limit is too large, max is %d", maxRecursive))
	}
	if err := checkIDs(params); err != nil {
		return q, err
	}
	for _, k := range keys {
		c, err := eventCond(k, params[k])
		if err != nil {
			return q, err
		}
		if c != nil {
			q.conds = append(q.conds, *c)
		}
	}
	return q, nil
}

func checkIDs(params map[string]string) error {
	switch {
	case params["id"] != "" && params["ids"] != "":
		return badRequest("Provide either id or ids, not both")
	case params["node_id"] != "" && params["data.id"] != "":
		return badRequest("Provide either node_id or data.id, not both")
	case params["id"] != "" && !objectID.MatchString(params["id"]):
		return badRequest("Invalid id format")
	case params["ids"] == "":
		return nil
	}
	ids := splitIDs(params["ids"])
	if len(ids) == 0 {
		return badRequest("ids must contain at least one id")
	}
	for _, id := range ids {
		if !objectID.MatchString(id) {
			return badRequest("Invalid ids format")
		}
	}
	return nil
}

func splitIDs(s string) []string {
	var out []string
	for id := range strings.SplitSeq(s, ",") {
		if id = strings.ToLower(strings.TrimSpace(id)); id != "" {
			out = append(out, id)
		}
	}
	return out
}

// eventCond is the condition of one parameter; nil when it has none. Whatever
// is not known is an equality on the stored document, so that a typo matches
// nothing and dotted keys work.
func eventCond(key, value string) (*query.Cond, error) {
	field, simple := eventFields[key]
	var c query.Cond
	var err error
	switch {
	case key == "from" || key == "limit" || key == "offset" || key == "recursive":
		return nil, nil
	case (simple || key == "path" || key == "id" || key == "ids") && value == "":
		return nil, nil
	case key == "id" || key == "ids":
		c = query.In("id", splitIDs(value))
	case key == "path":
		c, err = query.Regexp("data.path", value)
	case simple:
		c = query.Equal(field, value)
	default:
		c = query.Equal(key, value)
	}
	return &c, err
}

// pyInt is Python's int(s), and 0 for an empty s.
func pyInt(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	t := strings.TrimSpace(s)
	n, err := strconv.Atoi(strings.ReplaceAll(t, "_", ""))
	if err != nil || strings.HasPrefix(t, "_") || strings.HasSuffix(t, "_") || strings.Contains(t, "__") {
		return 0, badRequest("invalid literal for int() with base 10: " + node.Repr(s))
	}
	return n, nil
}

func (s *Server) getEvents(w http.ResponseWriter, r *http.Request) {
	q, err := parseEventQuery(r.URL.RawQuery)
	if err != nil {
		refuse(w, err)
		return
	}
	var b bytes.Buffer
	b.WriteByte('[')
	for i, e := range s.page(q) {
		if i > 0 {
			b.WriteByte(',')
		}
		if !q.recursive {
			b.Write(e.raw)
			continue
		}
		if e.nodeID == "" {
			fail(w)
			return
		}
		b.Write(e.raw[:len(e.raw)-1])
		if n := s.store.get(e.nodeID); n != nil {
			b.WriteString(`,"node":`)
			b.Write(n.raw)
		}
		b.WriteByte('}')
	}
	b.WriteByte(']')
	replyRaw(w, http.StatusOK, b.Bytes())
}

// page selects and orders the events of one reply.
func (s *Server) page(q eventQuery) []*event {
	s.mu.Lock()
	order := s.order
	s.mu.Unlock()
	want := 0
	if q.limit > 0 && order != Scattered {
		want = q.offset + q.limit
	}
	found := s.store.findEvents(q.from, q.conds, want)
	if order == Scattered {
		slices.SortFunc(found, func(a, b *event) int { return cmp.Compare(s.scatter(a.id), s.scatter(b.id)) })
	}
	found = found[min(q.offset, len(found)):]
	if q.limit > 0 {
		found = found[:min(q.limit, len(found))]
	}
	if order == Shuffled {
		shuffle(found, s.opts.Seed)
	}
	return found
}

// scatter places an event somewhere, always in the same place.
func (s *Server) scatter(id string) uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, s.opts.Seed, id)
	return h.Sum64()
}

// shuffle mixes v the same way for the same seed and length.
func shuffle[T any](v []T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, uint64(len(v))))
	r.Shuffle(len(v), func(i, j int) { v[i], v[j] = v[j], v[i] })
}
