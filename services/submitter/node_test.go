package submitter_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pullab/pullab/pkg/topology"
	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/submitter/internal/receipt"
)

// alone is a result that is the job's own row and nothing else.
func (s *story) alone(i int) *pullabv1.RunFinished {
	fin := s.run(i, "boot-pass")
	fin.Rows = fin.Rows[:1]
	return fin
}

func TestPatchOrPutKeepsEveryField(t *testing.T) {
	for _, patch := range []bool{true, false} {
		t.Run(fmt.Sprintf("patch=%v", patch), func(t *testing.T) {
			tell(t, func(s *story) {
				s.api.patch = patch
				fin := s.alone(1)
				before := map[string]any{}
				for k, v := range s.node(1) {
					before[k] = v
				}
				s.publish(fin)
				stop := s.start()
				s.until(time.Minute, "reported", s.empty)
				stop()
				after := s.node(1)
				for k, v := range before {
					switch k {
					case "state", "result", "artifacts", "data":
						continue
					}
					if fmt.Sprint(after[k]) != fmt.Sprint(v) {
						s.Errorf("%s was %v, is %v", k, v, after[k])
					}
				}
				data, arts := after["data"].(map[string]any), after["artifacts"].(map[string]any)
				if data["tree_priority"] != "high" || data["device"] != "host1/4711" || arts["job_definition"] == nil || arts["test_log"] == nil {
					s.Errorf("data %v, artifacts %v", data, arts)
				}
				want := "[PATCH /node/" + nodeID(1) + "]"
				if !patch {
					want = "[PATCH /node/" + nodeID(1) + " PUT /node/" + nodeID(1) + "]"
				}
				if got := fmt.Sprint(s.api.writes); got != want {
					s.Errorf("writes %s, want %s", got, want)
				}
			})
		})
	}
}

func TestTreeIsOneWrite(t *testing.T) {
	tell(t, func(s *story) {
		s.publish(s.run(1, "ltp"))
		stop := s.start()
		s.until(time.Minute, "reported", s.empty)
		stop()
		if got := fmt.Sprint(s.api.writes); got != "[PUT /nodes/"+nodeID(1)+"]" {
			s.Errorf("writes %s", got)
		}
		n := s.node(1)
		if n["state"] != "done" || n["result"] != "fail" || n["retry_counter"] != json.Number("2") || n["treeid"] == nil || n["owner"] != "production" {
			s.Errorf("root %v", n)
		}
		if out := n["data"].(map[string]any)["misc"].(map[string]any)["kcidb_left_out"]; out != "ltp.io_setup01" {
			s.Errorf("left out: %v", out)
		}
		if _, ok := s.kcidb.stored["pullab_cloud_aws:"+nodeID(1)+".ltp.io_setup01"]; !ok {
			s.Error("the row that the bridge drops is not in KCIDB either")
		}
		var names []string
		for _, doc := range s.api.nodes {
			names = append(names, doc["name"].(string))
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != "access01 access01_2 boot broken io_setup01 ltp ltp-smoke-aws-ec2 splice02 stat04 time" {
			s.Error(got)
		}
	})
}

// TestTreeAfterACrash: the tree is stored and the reply lost, in this process
// or with it. The children are not made twice.
func TestTreeAfterACrash(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart=%v", restart), func(t *testing.T) {
			tell(t, func(s *story) {
				stored := make(chan struct{})
				n := 0
				s.api.afterTree = func() error {
					if n++; n > 1 {
						return nil
					}
					close(stored)
					return errors.New("connection reset")
				}
				s.publish(s.run(1, "ltp"))
				stop := s.start()
				<-stored
				begun := time.Now()
				if restart {
					stop()
					stop = s.start()
				}
				s.until(10*time.Minute, "reported", s.empty)
				stop()
				if s.api.made != 9 || len(s.api.nodes) != 10 || n != 2 {
					s.Errorf("%d children made, %d nodes, %d writes", s.api.made, len(s.api.nodes), n)
				}
				if waited := s.receipt(1).Node.At.Sub(begun); restart && waited < 2*time.Minute-time.Second {
					s.Errorf("another process's write was given %s", waited)
				}
			})
		})
	}
}

func TestTreeRefused(t *testing.T) {
	tell(t, func(s *story) {
		s.api.refuseTree = true
		s.publish(s.run(1, "ltp"))
		stop := s.start()
		s.until(time.Minute, "reported", s.empty)
		stop()
		if n := s.node(1); n["state"] != "done" || n["result"] != "fail" || s.dead(1) != nil {
			s.Errorf("node %v", n)
		}
	})
}

func TestNodeOfSomebodyElse(t *testing.T) {
	tell(t, func(s *story) {
		s.publish(s.run(1, "boot-pass"))
		s.api.set(func() { s.api.nodes[nodeID(1)]["data"].(map[string]any)["job_id"] = "other-lab:1" })
		stop := s.start()
		s.until(time.Minute, "acknowledged", s.empty)
		stop()
		d := s.dead(1)
		if d == nil || !strings.Contains(d.Reason, `claimed as "other-lab:1"`) || len(s.api.writes) != 0 || s.receipt(1).Node.State != receipt.Foreign {
			s.Errorf("letter %v, writes %v", d, s.api.writes)
		}
	})
}

func TestNodeGone(t *testing.T) {
	tell(t, func(s *story) {
		s.publish(s.run(1, "boot-pass"))
		s.api.set(func() { delete(s.api.nodes, nodeID(1)) })
		stop := s.start()
		s.until(time.Minute, "acknowledged", s.empty)
		stop()
		if _, stored := s.counts(1); stored != 1 || s.dead(1) != nil || s.receipt(1).Node.State != receipt.Gone {
			s.Errorf("stored %d, receipt %+v", stored, s.receipt(1))
		}
	})
}

func TestLateResult(t *testing.T) {
	tell(t, func(s *story) {
		fin := s.alone(1)
		s.api.set(func() {
			n := s.api.nodes[nodeID(1)]
			n["state"], n["result"] = "done", "incomplete"
			n["data"].(map[string]any)["error_code"], n["data"].(map[string]any)["error_msg"] = "node_timeout", "Node timed-out"
		})
		s.publish(fin)
		stop := s.start()
		s.until(time.Minute, "reported", s.empty)
		stop()
		n := s.node(1)
		if data := n["data"].(map[string]any); n["result"] != "pass" || data["error_code"] != nil || data["error_msg"] != nil {
			s.Errorf("%v", n)
		}
	})
}

func TestRights(t *testing.T) {
	for _, c := range []struct {
		name, mode, token string
		groups            []string
		written           bool
	}{
		{"auto with the group", "auto", apiToken, []string{"runtime:pull-labs-aws-ec2:node-editor"}, true},
		{"auto with another runtime's group", "auto", apiToken, []string{"runtime:other:node-editor"}, false},
		{"auto without a token", "auto", "", nil, false},
		{"on asks nobody", "on", apiToken, nil, true},
		{"off", "off", apiToken, []string{"node:edit:any"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			tell(t, func(s *story) {
				s.cfg.Report.Node, s.api.groups = c.mode, c.groups
				if c.token == "" {
					s.cfg.KernelCI.APIToken = ""
				}
				s.publish(s.run(1, "boot-pass"))
				stop := s.start()
				s.until(time.Minute, "acknowledged", s.empty)
				stop()
				if got := s.node(1)["state"] == "done"; got != c.written {
					s.Errorf("written: %v", got)
				}
				if _, stored := s.counts(1); stored != 1 {
					s.Errorf("stored %d", stored)
				}
			})
		})
	}
}

// TestWriteDenied: the result waits until somebody has repaired the rights.
func TestWriteDenied(t *testing.T) {
	tell(t, func(s *story) {
		s.api.deny = true
		s.publish(s.alone(1))
		stop := s.start()
		s.pass(time.Hour)
		if n := s.left(topology.SubmitterNode); n != 1 || s.dead(1) != nil {
			s.Errorf("%d wait", n)
		}
		if n := len(s.api.writes); n < 5 || n > 20 {
			s.Errorf("%d attempts in an hour", n)
		}
		s.api.set(func() { s.api.deny = false })
		s.until(10*time.Minute, "reported", s.empty)
		stop()
	})
}
