package maestro

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/pullab/pullab/services/standin/internal/node"
)

// fixedID is an ObjectId made of a name, so that it stays the same.
func fixedID(name string) string {
	h := sha256.Sum256([]byte(name))
	return hex.EncodeToString(h[:12])
}

func (s *Server) whoami(w http.ResponseWriter, _ *http.Request, u User) {
	type group struct {
		ID   string `json:"id"`
		Name string `json:"name"`
	}
	groups := []group{}
	for _, g := range u.Groups {
		groups = append(groups, group{fixedID("group " + g), g})
	}
	email := u.Email
	if email == "" {
		email = u.Username + "@example.org"
	}
	reply(w, http.StatusOK, struct {
		ID          string  `json:"id"`
		Email       string  `json:"email"`
		IsActive    bool    `json:"is_active"`
		IsSuperuser bool    `json:"is_superuser"`
		IsVerified  bool    `json:"is_verified"`
		Username    string  `json:"username"`
		Groups      []group `json:"groups"`
	}{fixedID("user " + u.Username), email, true, u.IsSuperuser, true, u.Username, groups})
}

// postTelemetry takes all events or none.
func (s *Server) postTelemetry(w http.ResponseWriter, r *http.Request, _ User) {
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	var events []json.RawMessage
	if json.Unmarshal(body, &events) != nil {
		refuseNode(w, node.Problems{{Type: "list_type", Loc: []any{"body"}, Msg: "Input should be a valid list"}})
		return
	}
	if len(events) == 0 {
		detail(w, http.StatusBadRequest, "Events list cannot be empty")
		return
	}
	for _, raw := range events {
		var e struct {
			Kind    *string `json:"kind"`
			Runtime *string `json:"runtime"`
		}
		if err := json.Unmarshal(raw, &e); err != nil || e.Kind == nil || e.Runtime == nil {
			field := "kind"
			if e.Kind != nil {
				field = "runtime"
			}
			p := node.Problems{{Type: "missing", Loc: []any{field}, Msg: "Field required", Input: map[string]any{}}}
			detail(w, http.StatusBadRequest, p.Text("TelemetryEvent"))
			return
		}
	}
	s.mu.Lock()
	s.telemetry = append(s.telemetry, events...)
	s.mu.Unlock()
	reply(w, http.StatusOK, map[string]int{"inserted": len(events)})
}

// noSubscription answers for pub/sub, of which the stand-in has none.
func noSubscription(w http.ResponseWriter, r *http.Request, _ User) {
	id := r.PathValue("id")
	detail(w, http.StatusNotFound, "Subscription id not found: 'Subscription "+id+" not found'")
}

func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	s.store.mu.RLock()
	nodes, events := len(s.store.nodes), len(s.store.events)
	s.store.mu.RUnlock()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	fmt.Fprintf(w, "# TYPE standin_nodes gauge\nstandin_nodes %d\n# TYPE standin_events gauge\nstandin_events %d\n", nodes, events)
}

// Callback is the pipeline's callback service as deployed, which a PULL_LABS
// definition points at and which parses LAVA payloads only (kernelci-wire.md
// 2.7): a lab that reports there gets a 500.
type Callback struct {
	// Tokens that are accepted in a bare Authorization header.
	Tokens map[string]bool
}

func (c Callback) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	message := func(status int, text string) { reply(w, status, map[string]string{"message": text}) }
	if !c.Tokens[r.Header.Get("Authorization")] {
		message(http.StatusUnauthorized, "Unauthorized")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	var doc any
	if err != nil || json.Unmarshal(body, &doc) != nil {
		message(http.StatusBadRequest, "Error decoding JSON")
		return
	}
	if m, ok := doc.(map[string]any); !ok || m["definition"] == nil {
		message(http.StatusInternalServerError, "Internal server error")
		return
	}
	message(http.StatusAccepted, "OK")
}
