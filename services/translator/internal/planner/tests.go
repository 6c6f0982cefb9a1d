package planner

import (
	"slices"
	"strings"
	"unicode"

	"google.golang.org/protobuf/types/known/durationpb"

	pullabv1 "github.com/pullab/pullab/proto/gen/pullab/v1"
	"github.com/pullab/pullab/services/translator/internal/jobdef"
)

const kselftestPrefix = "kselftest-"

// suite gives the KCIDB path of a test type, as maestro's own rows have it
// (kernelci-wire.md section 7, kcidb_test_suite), and the artifacts it needs.
// The type decides, not the job's name: a job whose template has no suite of its
// own boots and does nothing else (kernelci-wire.md 3.2).
func suite(typ string) (path string, needs []string, ok bool) {
	collection, isKselftest := strings.CutPrefix(typ, kselftestPrefix)
	switch {
	case typ == "boot":
		return "boot", nil, true
	case typ == "ltp":
		return "ltp", []string{jobdef.Rootfs}, true
	case isKselftest && collection != "":
		return "kselftest." + segment(collection), []string{jobdef.Rootfs, jobdef.Kselftest}, true
	}
	return "", nil, false
}

// segment makes s one segment of a KCIDB path, other characters to '_'.
func segment(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '_' || r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, s)
}

func tests(def *jobdef.Definition) ([]*pullabv1.TestPlan, error) {
	if len(def.Tests) == 0 {
		return nil, refuse(InvalidJobParams, "the job definition has no tests")
	}
	var plans []*pullabv1.TestPlan
	for i, t := range def.Tests {
		if err := checkID(i, t.ID, plans); err != nil {
			return nil, err
		}
		path, needs, ok := suite(t.Type)
		if !ok {
			return nil, refuse(InvalidJobParams, "test %q has the type %q: this lab runs boot, ltp and kselftest-<collection>", t.ID, clip(t.Type))
		}
		for _, a := range needs {
			if def.Artifacts[a] == "" {
				return nil, refuse(InvalidJobParams, "missing required artifacts.%s: test %q of type %s cannot run without it", a, t.ID, clip(t.Type))
			}
		}
		plans = append(plans, &pullabv1.TestPlan{
			Id: t.ID, Type: t.Type, Path: path, Timeout: durationpb.New(t.Timeout), Parameters: t.Parameters,
			PreCommands: t.Pre, PostCommands: t.Post, Depends: t.Depends, SubsetJson: t.Subset,
		})
	}
	return ordered(plans)
}

func checkID(i int, id string, before []*pullabv1.TestPlan) error {
	const longest = 200
	switch {
	case id == "":
		return refuse(InvalidJobParams, "missing required tests[%d].id", i)
	case len(id) > longest || strings.ContainsFunc(id, unicode.IsControl):
		return refuse(InvalidJobParams, "tests[%d].id %q is longer than %d bytes or has control characters", i, clip(id), longest)
	case slices.ContainsFunc(before, func(t *pullabv1.TestPlan) bool { return t.GetId() == id }):
		return refuse(InvalidJobParams, "tests[%d].id %q is given to two tests", i, id)
	}
	return nil
}

// ordered puts every test after those it depends on and keeps the given order
// otherwise.
func ordered(tests []*pullabv1.TestPlan) ([]*pullabv1.TestPlan, error) {
	known := map[string]bool{}
	for _, t := range tests {
		known[t.GetId()] = true
	}
	for _, t := range tests {
		if len(t.GetDepends()) > len(tests) {
			return nil, refuse(InvalidJobParams, "test %q depends on more tests than this job has", t.GetId())
		}
		for _, d := range t.GetDepends() {
			if !known[d] {
				return nil, refuse(InvalidJobParams, "test %q depends on %q, which is not a test of this job", t.GetId(), clip(d))
			}
		}
	}
	done := map[string]bool{}
	var out []*pullabv1.TestPlan
	for len(out) < len(tests) {
		i := slices.IndexFunc(tests, func(t *pullabv1.TestPlan) bool {
			waits := slices.ContainsFunc(t.GetDepends(), func(d string) bool { return !done[d] })
			return !done[t.GetId()] && !waits
		})
		if i < 0 {
			return nil, refuse(InvalidJobParams, "the tests depend on each other in a circle")
		}
		done[tests[i].GetId()] = true
		out = append(out, tests[i])
	}
	return out, nil
}

// clip shortens what is quoted from a definition.
func clip(s string) string { return cut(s, 80) }

func cut(s string, longest int) string {
	if len(s) > longest {
		return strings.ToValidUTF8(s[:longest], "") + "..."
	}
	return s
}
