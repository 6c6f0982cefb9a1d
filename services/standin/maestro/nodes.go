package maestro

import (
	"bytes"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/pullab/pullab/services/standin/internal/node"
	"github.com/pullab/pullab/services/standin/internal/pytime"
	"github.com/pullab/pullab/services/standin/internal/query"
)

// defaultPage is the limit of GET /nodes when none is given.
const defaultPage = 50

// validID answers for a malformed id.
func validID(w http.ResponseWriter, id string) bool {
	if !objectID.MatchString(id) {
		detail(w, http.StatusBadRequest, badID(id))
		return false
	}
	return true
}

func badID(id string) badRequest {
	return badRequest(node.Repr(id) + " is not a valid ObjectId, it must be a 12-byte input or a 24-character hex string")
}

func (s *Server) getNode(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if !validID(w, id) {
		return
	}
	if e := s.store.get(id); e != nil {
		replyRaw(w, http.StatusOK, e.raw)
		return
	}
	replyRaw(w, http.StatusOK, []byte("null"))
}

// nodeConds reads the filters of /nodes, /nodes/fast and /count.
func nodeConds(raw string) ([]query.Cond, error) {
	params, keys := lastValues(raw)
	var conds []query.Cond
	for _, k := range keys {
		if k == "limit" || k == "offset" {
			continue
		}
		c, err := nodeCond(k, params[k])
		if err != nil {
			return nil, err
		}
		conds = append(conds, c)
	}
	return conds, nil
}

var stampFields = []string{"created", "updated", "timeout", "holdoff"}

func nodeCond(key, value string) (query.Cond, error) {
	field, op := key, ""
	if parts := strings.Split(key, "__"); len(parts) == 2 {
		field, op = parts[0], parts[1]
	}
	if slices.Contains(stampFields, field) && value != "null" {
		t, ok := pytime.Parse(value)
		if !ok {
			return query.Cond{}, badRequest("Invalid isoformat string: " + node.Repr(value))
		}
		value = pytime.Format(t)
	}
	if field == "parent" && value != "null" {
		if !objectID.MatchString(value) {
			return query.Cond{}, badID(value)
		}
		value = strings.ToLower(value)
	}
	switch {
	case op != "":
		if c, ok, err := query.Operator(field, op, value); ok {
			return c, err
		}
		return query.Equal(key, value), nil
	case field == "id" || field == "_id":
		// The original's documents have _id, an ObjectId that no text equals.
		return query.In("id", nil), nil
	case value == "null":
		return query.Null(field), nil
	default:
		return query.Equal(field, value), nil
	}
}

// pageParam reads limit or offset of the paged listings; it answers for itself.
func pageParam(w http.ResponseWriter, r *http.Request, name string, fallback, least int) (int, bool) {
	params, _ := lastValues(r.URL.RawQuery)
	v, given := params[name]
	if !given {
		return fallback, true
	}
	n, err := strconv.Atoi(v)
	loc := []any{"query", name}
	if err != nil {
		detail(w, http.StatusUnprocessableEntity, node.Problems{{
			Type: "int_parsing", Loc: loc, Msg: "Input should be a valid integer, unable to parse string as an integer", Input: v,
		}})
		return 0, false
	}
	if n < least {
		detail(w, http.StatusUnprocessableEntity, node.Problems{{
			Type: "greater_than_equal", Loc: loc, Msg: "Input should be greater than or equal to " + strconv.Itoa(least), Input: v,
			Ctx: map[string]any{"ge": least},
		}})
		return 0, false
	}
	return n, true
}

// list finds and cuts one page; it answers for itself when it cannot.
func (s *Server) list(w http.ResponseWriter, r *http.Request, fallback int) (page []*entry, total, limit, offset int, ok bool) {
	least := 1
	if fallback == 0 {
		least = 0
	}
	if limit, ok = pageParam(w, r, "limit", fallback, least); !ok {
		return nil, 0, 0, 0, false
	}
	if offset, ok = pageParam(w, r, "offset", 0, 0); !ok {
		return nil, 0, 0, 0, false
	}
	conds, err := nodeConds(r.URL.RawQuery)
	if err != nil {
		refuse(w, err)
		return nil, 0, 0, 0, false
	}
	page = s.store.find(conds)
	total = len(page)
	page = page[min(offset, total):]
	if limit > 0 {
		page = page[:min(limit, len(page))]
	}
	s.mu.Lock()
	order := s.order
	s.mu.Unlock()
	if order != Ascending {
		shuffle(page, s.opts.Seed)
	}
	return page, total, limit, offset, true
}

func array(entries []*entry) []byte {
	var b bytes.Buffer
	b.WriteByte('[')
	for i, e := range entries {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(e.raw)
	}
	b.WriteByte(']')
	return b.Bytes()
}

func (s *Server) getNodes(w http.ResponseWriter, r *http.Request) {
	page, total, limit, offset, ok := s.list(w, r, defaultPage)
	if !ok {
		return
	}
	b := append([]byte(`{"items":`), array(page)...)
	b = append(b, `,"total":`+strconv.Itoa(total)+`,"limit":`+strconv.Itoa(limit)+`,"offset":`+strconv.Itoa(offset)+`}`...)
	replyRaw(w, http.StatusOK, b)
}

func (s *Server) getNodesFast(w http.ResponseWriter, r *http.Request) {
	if page, _, _, _, ok := s.list(w, r, 0); ok {
		replyRaw(w, http.StatusOK, array(page))
	}
}

func (s *Server) getCount(w http.ResponseWriter, r *http.Request) {
	conds, err := nodeConds(r.URL.RawQuery)
	if err != nil {
		refuse(w, err)
		return
	}
	reply(w, http.StatusOK, len(s.store.find(conds)))
}
