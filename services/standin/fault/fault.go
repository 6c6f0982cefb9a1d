// Package fault breaks an http.Handler on purpose: latency, error codes, cut
// bodies, dropped connections, lost replies, wrong content; the first n times or
// by chance, by method and path.
package fault

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"sigs.k8s.io/yaml"
)

// Rule says which requests suffer what. Of the kinds of fault, latency goes with
// any other; of the others give one.
type Rule struct {
	// Method and Path prefix that the request must have; empty is any.
	Method string `json:"method,omitempty"`
	Path   string `json:"path,omitempty"`
	// Skip lets this many matching requests through first.
	Skip int `json:"skip,omitempty"`
	// Times is how many requests suffer; 0 is every one.
	Times int `json:"times,omitempty"`
	// Probability of suffering, over 0 to 1; 0 is 1.
	Probability float64 `json:"probability,omitempty"`

	// LatencyMS is waited before anything else, in milliseconds.
	LatencyMS int `json:"latency_ms,omitempty"`
	// Status answers with this code, without asking the server.
	Status int `json:"status,omitempty"`
	// RetryAfterS is the Retry-After header of Status, in seconds.
	RetryAfterS int `json:"retry_after_s,omitempty"`
	// Body is what is answered: with Status, or with 200 instead of the truth.
	Body string `json:"body,omitempty"`
	// ContentType of Body; "" is text/plain.
	ContentType string `json:"content_type,omitempty"`
	// Truncate drops the connection after this many bytes of the true body.
	Truncate int `json:"truncate,omitempty"`
	// Drop closes the connection without an answer; the server sees nothing.
	Drop bool `json:"drop,omitempty"`
	// Lose lets the server do its work and then drops the answer.
	Lose bool `json:"lose,omitempty"`
}

// Validate refuses what would do nothing or two things.
func (r Rule) Validate() error {
	kinds := 0
	for _, on := range []bool{r.Status != 0 || r.Body != "", r.Truncate != 0, r.Drop, r.Lose} {
		if on {
			kinds++
		}
	}
	switch {
	case kinds > 1:
		return fmt.Errorf("rule for %q: give only one of status or body, truncate, drop, lose", r.Path)
	case kinds == 0 && r.LatencyMS == 0:
		return fmt.Errorf("rule for %q does nothing: give latency_ms, status, body, truncate, drop or lose", r.Path)
	case r.Status != 0 && (r.Status < 200 || r.Status > 599):
		return fmt.Errorf("rule for %q: status %d is not an HTTP status of 200 to 599", r.Path, r.Status)
	case r.Probability < 0 || r.Probability > 1:
		return fmt.Errorf("rule for %q: probability %v is not within 0 to 1", r.Path, r.Probability)
	case r.LatencyMS < 0 || r.Skip < 0 || r.Times < 0 || r.Truncate < 0 || r.RetryAfterS < 0:
		return fmt.Errorf("rule for %q: no number may be negative", r.Path)
	}
	return nil
}

// Config is the rules file: faults of each stand-in.
type Config struct {
	// Seed makes chance repeatable.
	Seed    uint64 `json:"seed,omitempty"`
	API     []Rule `json:"api,omitempty"`
	Storage []Rule `json:"storage,omitempty"`
	KCIDB   []Rule `json:"kcidb,omitempty"`
}

// Load reads a YAML or JSON rules file; unknown keys are refused.
func Load(name string) (Config, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return Config{}, fmt.Errorf("fault rules: %w", err)
	}
	c, err := Parse(b)
	if err != nil {
		return Config{}, fmt.Errorf("fault rules in %s: %w", name, err)
	}
	return c, nil
}

// Parse reads the text of a rules file.
func Parse(b []byte) (Config, error) {
	var c Config
	if err := yaml.UnmarshalStrict(b, &c); err != nil {
		return Config{}, err
	}
	for _, rules := range [][]Rule{c.API, c.Storage, c.KCIDB} {
		for _, r := range rules {
			if err := r.Validate(); err != nil {
				return Config{}, err
			}
		}
	}
	return c, nil
}

// Injector is the handler in front of another.
type Injector struct {
	next http.Handler

	mu     sync.Mutex
	rules  []Rule
	seen   []int // matching requests per rule
	struck []int // those that suffered
	rand   *rand.Rand
}

// New puts an injector without rules in front of next.
func New(next http.Handler, seed uint64) *Injector {
	return &Injector{next: next, rand: rand.New(rand.NewPCG(seed, 1))}
}

// Set replaces the rules and forgets all counts. The first rule that strikes a
// request is the only one that does. A rule that is not valid panics: it is a
// mistake in a test.
func (i *Injector) Set(rules ...Rule) {
	for _, r := range rules {
		if err := r.Validate(); err != nil {
			panic(err)
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rules, i.seen, i.struck = rules, make([]int, len(rules)), make([]int, len(rules))
}

// Struck is how many requests each rule has hit, in the order of Set.
func (i *Injector) Struck() []int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]int(nil), i.struck...)
}

func (i *Injector) choose(r *http.Request) (Rule, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for n, rule := range i.rules {
		if rule.Method != "" && !strings.EqualFold(rule.Method, r.Method) || !strings.HasPrefix(r.URL.Path, rule.Path) {
			continue
		}
		i.seen[n]++
		if i.seen[n] <= rule.Skip || rule.Times > 0 && i.struck[n] >= rule.Times ||
			rule.Probability > 0 && i.rand.Float64() >= rule.Probability {
			continue
		}
		i.struck[n]++
		return rule, true
	}
	return Rule{}, false
}

func (i *Injector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rule, ok := i.choose(r)
	if !ok {
		i.next.ServeHTTP(w, r)
		return
	}
	if rule.LatencyMS > 0 && !wait(r, time.Duration(rule.LatencyMS)*time.Millisecond) {
		panic(http.ErrAbortHandler)
	}
	switch {
	case rule.Drop:
		panic(http.ErrAbortHandler)
	case rule.Lose:
		i.next.ServeHTTP(&void{header: http.Header{}}, r)
		panic(http.ErrAbortHandler)
	case rule.Truncate > 0:
		i.next.ServeHTTP(&cutter{w, rule.Truncate}, r)
	case rule.Status != 0 || rule.Body != "":
		rule.answer(w)
	default:
		i.next.ServeHTTP(w, r)
	}
}

// wait returns false when the client goes away first.
func wait(r *http.Request, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-r.Context().Done():
		return false
	case <-t.C:
		return true
	}
}

func (r Rule) answer(w http.ResponseWriter) {
	ct := r.ContentType
	if ct == "" {
		ct = "text/plain; charset=utf-8"
	}
	w.Header().Set("Content-Type", ct)
	if r.RetryAfterS > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(r.RetryAfterS))
	}
	status := r.Status
	if status == 0 {
		status = http.StatusOK
	}
	w.WriteHeader(status)
	body := r.Body
	if body == "" && status >= 300 {
		body = "injected fault: " + http.StatusText(status) + "\n"
	}
	fmt.Fprint(w, body)
}

// void swallows an answer.
type void struct{ header http.Header }

func (v *void) Header() http.Header         { return v.header }
func (v *void) Write(b []byte) (int, error) { return len(b), nil }
func (v *void) WriteHeader(int)             {}

// cutter lets n bytes of the body through and then drops the connection.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(b []byte) (int, error) {
	if len(b) <= c.left {
		c.left -= len(b)
		return c.ResponseWriter.Write(b)
	}
	if _, err := c.ResponseWriter.Write(b[:c.left]); err != nil {
		return 0, err
	}
	if f, ok := c.ResponseWriter.(http.Flusher); ok {
		f.Flush() // else nothing at all leaves this machine
	}
	panic(http.ErrAbortHandler)
}
