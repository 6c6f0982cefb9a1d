package translator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pullab/pullab/pkg/backoff"
	"github.com/pullab/pullab/pkg/bus"
	"github.com/pullab/pullab/pkg/config"
	"github.com/pullab/pullab/pkg/ledger"
	"github.com/pullab/pullab/pkg/natstest"
	"github.com/pullab/pullab/pkg/queue"
	"github.com/pullab/pullab/pkg/topology"
	"github.com/pullab/pullab/pkg/wire"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/translator/internal/admission"
)

func TestMain(m *testing.M) {
	natstest.Register()
	m.Run()
}

// story is a broker, an outside world and a configuration.
type story struct {
	*testing.T
	bus   *bus.Bus
	world *world
	cfg   Config
	log   *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// tell runs f in a bubble: waiting costs no time in it.
func tell(t *testing.T, f func(*story)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f(&story{T: t, bus: natstest.Start(t), world: newWorld(t), cfg: testConfig(), log: &syncBuffer{}})
	})
}

func testConfig() Config {
	return Config{
		KernelCI: config.KernelCI{
			APIBaseURI: "https://" + apiHost + "/latest", APIToken: token, RuntimeName: "pull-labs-aws-ec2", KCIDBOrigin: "pullab_cloud_aws",
		},
		Translator: Settings{
			Claim: "auto", States: []string{"available"}, BuildOrigin: "maestro", Concurrency: 16, BootMargin: 10 * time.Minute,
			MaxRuntime: 6 * time.Hour, FetchTimeout: 30 * time.Second, FetchPatience: 30 * time.Minute,
		},
	}
}

func (s *story) context() context.Context {
	return zerolog.Ctx(s.Context()).Output(s.log).Level(zerolog.DebugLevel).WithContext(s.Context())
}

func (s *story) service() *Service {
	s.Helper()
	svc, err := New(s.context(), s.cfg, s.bus, WithTransport(s.world))
	if err != nil {
		s.Fatal(err)
	}
	return svc
}

func origin(node string) *pullabv1.Origin {
	return &pullabv1.Origin{
		ApiBaseUri: "https://" + apiHost + "/latest", Runtime: "pull-labs-aws-ec2", Platform: "aws-ec2-x86_64", NodeId: node,
		NodeName: "baseline-x86-aws-ec2", NodePath: []string{"checkout", "kbuild-gcc-15-x86-aws-ec2", "baseline-x86-aws-ec2"},
		ParentId: kbuildID, JobDefinitionUrl: "https://" + fileHost + definitionPath, NodeCreated: timestamppb.Now(), EventId: "e1",
	}
}

// offer publishes the job as the poller does; n tells offers of one job apart.
func (s *story) offer(node string, n int) {
	s.Helper()
	o := origin(node)
	_, err := queue.NewOutbox(s.bus, topology.Jobs).Publish(s.Context(), topology.JobSubject(o.GetRuntime(), o.GetPlatform(), node), node,
		fmt.Sprint(node, n), &pullabv1.JobOffered{Origin: o})
	if err != nil {
		s.Fatal(err)
	}
}

// once lets a service handle what is offered, retries included, for so long.
func (s *story) once(svc *Service, d time.Duration) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.context(), d)
	defer cancel()
	if err := svc.Run(ctx); err != nil {
		s.Fatal(err)
	}
}

// take removes and gives all messages of a stream.
func take[M proto.Message](s *story, stream string) []M {
	s.Helper()
	js, err := s.bus.JS.Stream(s.Context(), stream)
	if err != nil {
		s.Fatal(err)
	}
	info, err := js.Info(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	var out []M
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq && seq > 0; seq++ {
		raw, err := js.GetMsg(s.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			s.Fatal(err)
		}
		m, err := wire.Decode(raw.Header.Get(wire.HeaderType), raw.Data)
		if err != nil {
			s.Fatal(err)
		}
		out = append(out, m.(M))
		if err := js.DeleteMsg(s.Context(), seq); err != nil {
			s.Fatal(err)
		}
	}
	return out
}

func (s *story) plans() []*pullabv1.RunPlanned { return take[*pullabv1.RunPlanned](s, topology.Runs) }

// plan is the only one.
func (s *story) plan() *pullabv1.RunPlanned {
	s.Helper()
	all := s.plans()
	if len(all) != 1 {
		s.Fatalf("%d plans on the bus, want 1\n%s", len(all), s.log)
	}
	return all[0]
}

// nothing is on the bus: no plan, no offer, no letter.
func (s *story) nothing() {
	s.Helper()
	if p, o, d := s.plans(), take[*pullabv1.JobOffered](s, topology.Jobs), s.letters(); len(p)+len(o)+len(d) > 0 {
		s.Errorf("on the bus: plans %v, offers %v, dead letters %v", p, o, d)
	}
}

func (s *story) letters() []*pullabv1.DeadLetter {
	return take[*pullabv1.DeadLetter](s, topology.Dead)
}

// dead checks that the job ended as a dead letter with the reason.
func (s *story) dead(reason string) {
	s.Helper()
	ls := s.letters()
	if len(ls) != 1 || !strings.Contains(ls[0].GetReason(), reason) {
		s.Errorf("dead letters %v, want one with %q", ls, reason)
	}
	s.nothing()
}

func (s *story) record(node string) admission.Record {
	s.Helper()
	l, err := ledger.Open[admission.Record](s.Context(), s.bus, topology.Admissions)
	if err != nil {
		s.Fatal(err)
	}
	r, _, err := l.Get(s.Context(), node)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		s.Fatal(err)
	}
	return r
}

func (s *story) logged(text string) int { return strings.Count(s.log.String(), text) }

func TestPlanned(t *testing.T) {
	t.Parallel()
	tell(t, func(s *story) {
		s.offer(jobID, 1)
		start := time.Now()
		if err := s.service().Once(s.context()); err != nil {
			s.Fatal(err)
		}
		plan := s.plan()
		s.nothing()
		if plan.GetExecutor() != "qemu" || plan.GetArch() != "x86_64" || plan.GetRefusal() != nil || plan.GetTests()[0].GetPath() != "boot" {
			s.Errorf("got %v", plan)
		}
		if want := "run_pulllab-x86_64-" + jobID + "_" + start.UTC().Format("20060102_150405"); plan.GetRunId() != want {
			s.Errorf("run id %s, want %s", plan.GetRunId(), want)
		}
		b := plan.GetBuild()
		if b.GetBuildId() != "maestro:"+kbuildID || b.GetCheckoutNodeId() != "6a86cb72c5867fba94730a01" || b.GetTree() != "mainline" ||
			b.GetCommit() != "5f3c2b1a9d8e7f60112233445566778899aabbcc" || b.GetCompiler() != "gcc-15" || b.GetKernelType() != "bzimage" {
			s.Errorf("build %v", b)
		}
		if got, want := plan.GetFinishBefore().AsTime(), time.Date(2026, 8, 20, 16, 5, 11, 204e6, time.UTC); !got.Equal(want) {
			s.Errorf("finish_before %s, want %s", got, want)
		}
		o := origin(jobID)
		o.NodeCreated = plan.GetOrigin().GetNodeCreated()
		if !proto.Equal(o, plan.GetOrigin()) {
			s.Errorf("origin %v", plan.GetOrigin())
		}
		s.checkClaim(plan)
		if r := s.record(jobID); r.Phase != admission.Planned || r.RunID != plan.GetRunId() || r.JobID != plan.GetJobId() || r.ClaimedAt.IsZero() || r.DecidedAt.IsZero() {
			s.Errorf("record %+v", r)
		}
	})
}

// checkClaim tells whether the claim is on the node and nothing else changed.
func (s *story) checkClaim(plan *pullabv1.RunPlanned) {
	s.Helper()
	if got := s.world.claim(); got != plan.GetJobId() || !strings.HasPrefix(got, "pull-labs-aws-ec2:") || len(got) != len("pull-labs-aws-ec2:")+32 {
		s.Errorf("claim %q, plan has %q", got, plan.GetJobId())
	}
	before := newWorld(s)
	was, is := before.node(jobID), s.world.node(jobID)
	was["data"].(map[string]any)["job_id"] = plan.GetJobId()
	for k, v := range was {
		a, _ := json.Marshal(v)
		b, _ := json.Marshal(is[k])
		if !bytes.Equal(a, b) {
			s.Errorf("the claim changed %s from %s to %s", k, a, b)
		}
	}
}

// An API without PATCH gets the whole document, or the retry counter would be
// lost and KernelCI would retry for ever.
func TestClaimWithoutPATCH(t *testing.T) {
	t.Parallel()
	tell(t, func(s *story) {
		s.world.patch = false
		s.offer(jobID, 1)
		s.once(s.service(), time.Second)
		s.checkClaim(s.plan())
	})
}

func TestLetGo(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*world)
		reason string
	}{
		"done":    {func(w *world) { w.node(jobID)["state"], w.node(jobID)["result"] = "done", "fail" }, "is done already (result fail)"},
		"claimed": {func(w *world) { w.data(jobID)["job_id"] = "pull-labs-aws-ec2:abc" }, "claimed by someone else (job_id pull-labs-aws-ec2:abc)"},
		"claimed at the same moment": {func(w *world) {
			w.after = func(r *http.Request) error {
				if r.Method == http.MethodPatch {
					w.data(jobID)["job_id"] = "rival:1"
				}
				return nil
			}
		}, "claimed by someone else at the same moment (job_id rival:1)"},
		"done at the same moment": {func(w *world) {
			w.after = func(r *http.Request) error {
				if r.Method == http.MethodPatch {
					w.node(jobID)["state"] = "done"
				}
				return nil
			}
		}, "became done (result none) while it was claimed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tell(t, func(s *story) {
				c.change(s.world)
				s.offer(jobID, 1)
				s.once(s.service(), time.Minute)
				s.nothing()
				if r := s.record(jobID); r.Phase != admission.LetGo || !strings.Contains(r.Reason, c.reason) {
					s.Errorf("record %+v, want let go because %q", r, c.reason)
				}
			})
		})
	}
}

// What nobody will report goes where people look.
func TestDead(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		node   string
		change func(*world)
		reason string
	}{
		"unknown":     {"6a86d157c5867fba94731eff", func(*world) {}, "no such node"},
		"not an id":   {"../whoami", func(*world) {}, `the node "../whoami", which is no kernelci-api node id`},
		"upper case":  {"6A86D157C5867FBA94731E66", func(*world) {}, "no kernelci-api node id"},
		"empty":       {"", func(*world) {}, "no kernelci-api node id"},
		"other state": {jobID, func(w *world) { w.node(jobID)["state"] = "running" }, "is in state running; translator.states allows [available]"},
		"expired":     {jobID, func(w *world) { w.node(jobID)["timeout"] = "1999-12-31T23:59:59" }, "expired at 1999-12-31T23:59:59Z"},
		"400": {jobID, func(w *world) {
			w.before = func(r *http.Request) (*http.Response, error) { return respond(r, http.StatusBadRequest), nil }
		}, "400"},
		"claim 400": {jobID, func(w *world) {
			w.before = func(r *http.Request) (*http.Response, error) {
				if r.Method != http.MethodPatch {
					return nil, nil
				}
				return respond(r, http.StatusBadRequest), nil
			}
		}, "claiming node " + jobID},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tell(t, func(s *story) {
				c.change(s.world)
				s.offer(c.node, 1)
				s.once(s.service(), time.Minute)
				s.dead(c.reason)
				if n := s.world.count(http.MethodPatch, ""); c.node != jobID && n > 0 {
					s.Errorf("%d writes", n)
				}
			})
		})
	}
}

// An hour's disagreement of clocks neither loses a job nor expires it: the
// node's life is six.
func TestClockAnHourOff(t *testing.T) {
	t.Parallel()
	for _, off := range []time.Duration{-time.Hour, time.Hour} {
		tell(t, func(s *story) {
			const form = "2006-01-02T15:04:05.999999"
			s.world.node(jobID)["created"] = time.Now().UTC().Add(off).Format(form)
			s.world.node(jobID)["timeout"] = time.Now().UTC().Add(off + 6*time.Hour).Format(form)
			s.offer(jobID, 1)
			s.once(s.service(), time.Second)
			if plan := s.plan(); plan.GetRefusal() != nil {
				s.Errorf("%s off: %v", off, plan.GetRefusal())
			}
		})
	}
}

func TestDefinitions(t *testing.T) {
	t.Parallel()
	good := newWorld(t).files[definitionPath]
	location := func(u string) func(*world) {
		return func(w *world) { w.node(jobID)["artifacts"] = map[string]any{"job_definition": u} }
	}
	content := func(s string) func(*world) {
		return func(w *world) { w.files[definitionPath] = answer(s) }
	}
	moved := func(to string) func(*world) {
		return func(w *world) {
			w.files[definitionPath] = func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, to, http.StatusFound) }
			w.files["/moved.json"] = good
		}
	}
	const kernel = `{"artifacts":{"kernel":"KERNEL"},"tests":[{"id":"b","type":"boot","timeout_s":60}],"environment":{"platform":"aws-ec2-x86_64"}}`
	for name, c := range map[string]struct {
		change func(*world)
		// want is the refusal's reason; empty when the job is planned.
		want, code string
	}{
		"good":           {func(*world) {}, "", ""},
		"at the API":     {location("https://" + apiHost + definitionPath), "", ""},
		"moved":          {moved("http://mirror.example/moved.json"), "", ""},
		"moved to API":   {moved("https://" + apiHost + "/moved.json"), "", ""},
		"redirect loop":  {moved("https://" + fileHost + definitionPath), "redirects in a loop", "invalid_job_params"},
		"redirect file":  {moved("file:///etc/passwd"), "redirects to a URL that is a file:// URL", "invalid_job_params"},
		"10 MB":          {content(strings.Repeat(" ", 10<<20)), "larger than 1048576 bytes", "invalid_job_params"},
		"truncated":      {content(`{"artifacts": {"kernel": "htt`), "is cut off: the JSON ends too early (byte 29, line 1, column 30)", "invalid_job_params"},
		"wrong type":     {content(`{"tests": {}}`), "tests must be a list, not an object (byte 10, line 1, column 11)", "invalid_job_params"},
		"trailing":       {content(`{} {}`), "after top-level value (byte 3,", "invalid_job_params"},
		"HTML":           {content(`<html>`), "is not valid JSON", "invalid_job_params"},
		"404":            {func(w *world) { delete(w.files, definitionPath) }, "answered 404 Not Found", "invalid_job_params"},
		"LAVA":           {location("https://" + fileHost + "/job.yaml"), `"job.yaml" is a LAVA job (.yaml)`, "invalid_job_params"},
		"ftp":            {location("ftp://" + fileHost + "/job.json"), `has the scheme "ftp"`, "invalid_job_params"},
		"file":           {location("file:///etc/passwd"), "is a file:// URL", "invalid_job_params"},
		"credentials":    {location("https://user:hunter2@" + fileHost + definitionPath), "carries credentials", "invalid_job_params"},
		"no kernel":      {content(strings.Replace(kernel, `"kernel":"KERNEL"`, "", 1)), "missing required artifacts.kernel", "invalid_job_params"},
		"kernel s3":      {content(strings.Replace(kernel, "KERNEL", "s3://b/k", 1)), `artifacts.kernel has the scheme "s3"`, "invalid_job_params"},
		"kernel secret":  {content(strings.Replace(kernel, "KERNEL", "https://u:hunter2@h/k", 1)), "artifacts.kernel carries credentials", "invalid_job_params"},
		"other platform": {content(strings.NewReplacer("KERNEL", "https://h/k", "aws-ec2-x86_64", "imx6dl").Replace(kernel)), `is for platform "imx6dl", its node for "aws-ec2-x86_64"`, "invalid_job_params"},
		"only in offer":  {func(w *world) { w.node(jobID)["artifacts"] = map[string]any{} }, "", ""},
		"unknown to us":  {content(strings.NewReplacer("KERNEL", "https://h/k", `"tests"`, `"new":1,"tests"`).Replace(kernel)), "", ""},
		"denied for good": {func(w *world) {
			w.files[definitionPath] = func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(403) }
		}, "answered 403", "invalid_job_params"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tell(t, func(s *story) {
				c.change(s.world)
				s.offer(jobID, 1)
				s.once(s.service(), time.Second)
				plan := s.plan()
				s.nothing()
				r := plan.GetRefusal()
				if r.GetErrorCode() != c.code || !strings.Contains(r.GetErrorMsg(), c.want) || (r == nil) != (c.want == "") {
					s.Errorf("refusal %v, want %s: %s", r, c.code, c.want)
				}
				phase := admission.Planned
				if r != nil {
					phase = admission.Refused
					if s.logged("Translation failed for node "+jobID+": ") != 1 {
						s.Errorf("the log does not say so:\n%s", s.log)
					}
					if plan.GetArch() != "x86_64" || plan.GetBuild().GetBuildId() != "maestro:"+kbuildID || plan.GetJobId() == "" {
						s.Errorf("the refusal lacks what a report needs: %v", plan)
					}
				}
				if rec := s.record(jobID); rec.Phase != phase {
					s.Errorf("record %+v", rec)
				}
				if strings.Contains(s.log.String(), "hunter2") || strings.Contains(plan.String(), "hunter2") {
					s.Error("a password was told")
				}
				s.noTokenAbroad()
			})
		})
	}
}

// noTokenAbroad: the token goes to the API's nodes only.
func (s *story) noTokenAbroad() {
	s.Helper()
	if len(s.world.seen) == 0 {
		s.Error("no requests at all")
	}
	for _, r := range s.world.seen {
		if r.Authorization != "" && (r.Host != apiHost || !strings.HasPrefix(r.Path, "/latest/")) {
			s.Errorf("Authorization sent to %s%s", r.Host, r.Path)
		}
	}
	if strings.Contains(s.log.String(), token) {
		s.Error("the token is in the log")
	}
}

func TestPlatformNotInCatalog(t *testing.T) {
	t.Parallel()
	tell(t, func(s *story) {
		file := s.TempDir() + "/lab.yaml"
		if err := os.WriteFile(file, []byte("platforms: {rack: {executor: command, arch: arm64}}"), 0o600); err != nil {
			s.Fatal(err)
		}
		s.cfg.Translator.Catalog = file
		s.offer(jobID, 1)
		s.once(s.service(), time.Second)
		r := s.plan().GetRefusal()
		want := `platform "aws-ec2-x86_64" is not in this lab's catalog (it has rack): add it to ` + file
		if r.GetErrorCode() != "Configuration" || r.GetErrorMsg() != want {
			s.Errorf("got %v", r)
		}
	})
}

func TestUnresolvedBuild(t *testing.T) {
	t.Parallel()
	tell(t, func(s *story) {
		delete(s.world.nodes, kbuildID)
		s.offer(jobID, 1)
		s.once(s.service(), time.Second)
		plan := s.plan()
		if got, want := plan.GetBuild().GetBuildId(), "pullab_cloud_aws:unknown_"+jobID; got != want || plan.GetRefusal() != nil {
			s.Errorf("build id %s, want %s; refusal %v", got, want, plan.GetRefusal())
		}
		if s.logged("Could not resolve build_id") != 1 {
			s.Errorf("no warning:\n%s", s.log)
		}
	})
}

func TestBuildOriginOfTheGuide(t *testing.T) {
	t.Parallel()
	tell(t, func(s *story) {
		s.cfg.Translator.BuildOrigin = ""
		s.offer(jobID, 1)
		s.once(s.service(), time.Second)
		if got, want := s.plan().GetBuild().GetBuildId(), "pullab_cloud_aws:"+kbuildID; got != want {
			s.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestWithoutClaim(t *testing.T) {
	t.Parallel()
	other := strings.Replace(jobID, "66", "67", 1)
	for name, c := range map[string]struct {
		change           func(*Config)
		writes, warnings int
	}{
		"no token":    {func(c *Config) { c.KernelCI.APIToken = "" }, 0, 1},
		"wrong token": {func(c *Config) { c.KernelCI.APIToken = "wrong" }, 2, 1},
		"off":         {func(c *Config) { c.Translator.Claim = "off" }, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tell(t, func(s *story) {
				c.change(&s.cfg)
				second := newWorld(s).node(jobID)
				second["id"] = other
				s.world.nodes[other] = second
				s.offer(jobID, 1)
				s.offer(other, 1)
				s.once(s.service(), time.Minute)
				plans := s.plans()
				if len(plans) != 2 || plans[0].GetJobId() != "" || plans[1].GetJobId() != "" || plans[0].GetRefusal() != nil {
					s.Errorf("got %v", plans)
				}
				s.nothing()
				if n := s.world.count(http.MethodPatch, "") + s.world.count(http.MethodPut, ""); n != c.writes {
					s.Errorf("%d writes, want %d", n, c.writes)
				}
				if n := s.logged("Jobs are run without a claim"); n != c.warnings {
					s.Errorf("%d warnings, want %d:\n%s", n, c.warnings, s.log)
				}
				if r := s.record(jobID); r.Unclaimed == "" || r.Phase != admission.Planned {
					s.Errorf("record %+v", r)
				}
			})
		})
	}
}

// A required claim waits for rights and then works.
func TestRequiredClaim(t *testing.T) {
	t.Parallel()
	tell(t, func(s *story) {
		s.cfg.Translator.Claim = "required"
		denied := true
		s.world.before = func(r *http.Request) (*http.Response, error) {
			if r.Method == http.MethodGet || !denied {
				return nil, nil
			}
			return respond(r, http.StatusUnauthorized), nil
		}
		s.offer(jobID, 1)
		svc := s.service()
		s.once(svc, 10*time.Minute)
		if p := s.plans(); len(p) > 0 {
			s.Fatalf("planned without a claim: %v", p)
		}
		if s.logged("translator.claim is required") == 0 {
			s.Errorf("the log does not say why:\n%s", s.log)
		}
		denied = false
		s.once(svc, 2*time.Minute)
		s.checkClaim(s.plan())
	})
}

// The API and the definition's host fail for a while, each in each way that may
// pass; no job is lost and none refused.
func TestTemporaryFailures(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(r *http.Request) (*http.Response, error){
		"500": func(r *http.Request) (*http.Response, error) { return respond(r, http.StatusInternalServerError), nil },
		"429": func(r *http.Request) (*http.Response, error) {
			return respond(r, http.StatusTooManyRequests, "Retry-After", "90"), nil
		},
		"refused":  func(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") },
		"cut off":  func(r *http.Request) (*http.Response, error) { return cutOff(r), nil },
		"hangs":    func(r *http.Request) (*http.Response, error) { <-r.Context().Done(); return nil, r.Context().Err() },
		"no rates": func(r *http.Request) (*http.Response, error) { return respond(r, http.StatusBadGateway), nil },
	} {
		for _, where := range []string{"GET /latest/node/" + jobID, "PATCH /latest/node/" + jobID, "GET /latest/node/" + kbuildID, "GET " + definitionPath} {
			t.Run(name+" "+where, func(t *testing.T) {
				t.Parallel()
				tell(t, func(s *story) {
					failures := 0
					s.world.before = func(r *http.Request) (*http.Response, error) {
						if r.Method+" "+r.URL.Path != where || failures == 3 {
							return nil, nil
						}
						failures++
						return fail(r)
					}
					s.offer(jobID, 1)
					s.once(s.service(), 20*time.Minute)
					plan := s.plan()
					if plan.GetRefusal() != nil || failures != 3 {
						s.Errorf("after %d failures: %v", failures, plan.GetRefusal())
					}
					s.checkClaim(plan)
					s.nothing()
				})
			})
		}
	}
}

func cutOff(r *http.Request) *http.Response {
	resp := respond(r, http.StatusOK)
	resp.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{"id": "6a`), broken{}))
	return resp
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// A host that stays down is the lab's failure, told in bounded time.
func TestDefinitionHostStaysDown(t *testing.T) {
	t.Parallel()
	tell(t, func(s *story) {
		s.world.files[definitionPath] = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
		s.offer(jobID, 1)
		svc := s.service()
		s.once(svc, 29*time.Minute)
		if p := s.plans(); len(p) > 0 {
			s.Fatalf("gave up too early: %v", p)
		}
		s.once(svc, 3*time.Minute)
		r := s.plan().GetRefusal()
		if r.GetErrorCode() != "Infrastructure" || !strings.Contains(r.GetErrorMsg(), "could not be fetched for 3") || !strings.Contains(r.GetErrorMsg(), "503 Service Unavailable") {
			s.Errorf("got %v", r)
		}
		s.nothing()
	})
}

// The claim was written, and an older copy of the node written over it, as
// KernelCI's timeout service may do: claim again, under the same name.
func TestClaimOverwritten(t *testing.T) {
	t.Parallel()
	tell(t, func(s *story) {
		var claims []string
		s.world.after = func(r *http.Request) error {
			if r.Method == http.MethodPatch {
				claims = append(claims, s.world.claim())
				if len(claims) < 3 {
					delete(s.world.data(jobID), "job_id")
				}
			}
			return nil
		}
		s.offer(jobID, 1)
		s.once(s.service(), 10*time.Minute)
		plan := s.plan()
		if len(claims) != 3 || claims[0] != claims[2] || plan.GetJobId() != claims[0] {
			s.Errorf("claims %v, plan %s", claims, plan.GetJobId())
		}
		s.nothing()
	})
}

// A job offered again after it was planned is published again under the same
// names, and not claimed anew; downstream knows it by its run id.
func TestOfferedAgain(t *testing.T) {
	t.Parallel()
	for name, reset := range map[string]func(*story){
		"planned":     func(*story) {},
		"refused":     func(s *story) { s.world.files[definitionPath] = answer("{}") },
		"unclaimed":   func(s *story) { s.cfg.Translator.Claim = "off" },
		"then closed": func(*story) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tell(t, func(s *story) {
				reset(s)
				s.offer(jobID, 1)
				s.once(s.service(), time.Second)
				first := s.plan()
				writes := s.world.count(http.MethodPatch, "")
				// Longer than the bus remembers message ids.
				if err := backoff.Sleep(s.Context(), time.Hour); err != nil {
					s.Fatal(err)
				}
				if name == "then closed" {
					s.world.node(jobID)["state"] = "closing"
				}
				s.offer(jobID, 2)
				s.once(s.service(), time.Second)
				again := s.plan()
				if again.GetRunId() != first.GetRunId() || again.GetJobId() != first.GetJobId() || (again.GetRefusal() == nil) != (first.GetRefusal() == nil) {
					s.Errorf("first %v\nagain %v", first, again)
				}
				if n := s.world.count(http.MethodPatch, ""); n != writes {
					s.Errorf("claimed anew: %d writes, then %d", writes, n)
				}
				s.nothing()
			})
		})
	}
}

// A planned job whose node is done needs nobody.
func TestOfferedAgainWhenDone(t *testing.T) {
	t.Parallel()
	tell(t, func(s *story) {
		s.offer(jobID, 1)
		s.once(s.service(), time.Second)
		s.plan()
		s.world.node(jobID)["state"] = "done"
		if err := backoff.Sleep(s.Context(), time.Hour); err != nil {
			s.Fatal(err)
		}
		s.offer(jobID, 2)
		s.once(s.service(), time.Second)
		s.nothing()
		if r := s.record(jobID); r.Phase != admission.Planned {
			s.Errorf("the record of our run was lost: %+v", r)
		}
	})
}

// Stopping in the middle of a slow fetch is prompt, leaves no goroutine (or the
// bubble would not end), and loses nothing.
func TestStopIsPrompt(t *testing.T) {
	t.Parallel()
	tell(t, func(s *story) {
		fetching := make(chan struct{})
		s.world.before = func(r *http.Request) (*http.Response, error) {
			if r.URL.Host != fileHost {
				return nil, nil
			}
			close(fetching)
			<-r.Context().Done()
			return nil, r.Context().Err()
		}
		s.offer(jobID, 1)
		ctx, cancel := context.WithCancel(s.context())
		done := make(chan error, 1)
		go func() { done <- s.service().Run(ctx) }()
		select {
		case <-fetching:
		case err := <-done:
			s.Fatalf("ended before it fetched anything: %v", err)
		case <-time.After(time.Minute):
			s.Fatal("nothing was fetched")
		}
		start := time.Now()
		cancel()
		if err := <-done; err != nil || time.Since(start) > time.Second {
			s.Errorf("stopped after %s with %v", time.Since(start), err)
		}
		s.world.before = nil
		s.once(s.service(), time.Second)
		s.checkClaim(s.plan())
	})
}
