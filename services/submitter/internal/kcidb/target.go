package kcidb

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/pullab/pullab/pkg/config"
)

const submitPath = "/submit"

// ErrNoToken has the guide's words.
var ErrNoToken = errors.New("Missing required configuration: kernelci.kcidb_jwt") //nolint:staticcheck // the guide's troubleshooting table quotes it with a capital

// Target is where rows go and the token that lets them in.
type Target struct {
	// URL ends in /submit.
	URL   string
	Token config.Secret
	// From names the source of the token, for the log.
	From string
	// Notes are for the operator: what was set and is not used.
	Notes []string
}

// Resolve finds submit URL and token by the guide's precedence:
//
//	KCIDB_SUBMIT_URL and KCIDB_JWT, both set
//	KCIDB_REST
//	KCIDB_JWT alone, then UNIFIED_TOKEN, with KCIDB_SUBMIT_URL or the file's URL
//	the file's kcidb_jwt with the file's URL, then the file's kcidb_rest
//
// env looks variables up and may be nil; each secret may come as NAME_FILE. c is
// what config.Load made of file and environment: it alone cannot tell the two
// apart, hence env.
func Resolve(env func(string) (string, bool), c config.KernelCI) (Target, error) {
	if env == nil {
		env = func(string) (string, bool) { return "", false }
	}
	var r resolver
	jwt, rest, unified := r.secret(env, "KCIDB_JWT"), r.secret(env, "KCIDB_REST"), r.secret(env, "UNIFIED_TOKEN")
	if r.err != nil {
		return Target{}, r.err
	}
	direct, _ := env("KCIDB_SUBMIT_URL")
	submit := c.KCIDBSubmitURL
	if direct != "" {
		submit = direct
	}
	if jwt != "" && direct != "" {
		if rest != "" {
			r.note("KCIDB_REST is not used: KCIDB_SUBMIT_URL and KCIDB_JWT are set and go first")
		}
		return r.target(direct, jwt, "KCIDB_JWT")
	}
	if t, ok := r.rest(rest, "KCIDB_REST"); ok || r.err != nil {
		if jwt != "" {
			r.note("KCIDB_JWT is not used: KCIDB_REST goes first unless KCIDB_SUBMIT_URL is set too")
		}
		return r.done(t)
	}
	switch {
	case jwt != "":
		return r.target(submit, jwt, "KCIDB_JWT")
	case unified != "":
		return r.target(submit, unified, "UNIFIED_TOKEN")
	case c.KCIDBJWT != "":
		return r.target(submit, c.KCIDBJWT, "kernelci.kcidb_jwt")
	}
	if rest == "" {
		if t, ok := r.rest(c.KCIDBRest, "kernelci.kcidb_rest"); ok || r.err != nil {
			return r.done(t)
		}
	}
	return Target{Notes: r.notes}, ErrNoToken
}

type resolver struct {
	notes []string
	err   error
}

func (r *resolver) note(s string) { r.notes = append(r.notes, s) }

func (r *resolver) secret(env func(string) (string, bool), name string) config.Secret {
	s, err := config.LookupSecret(env, name)
	r.err = errors.Join(r.err, err)
	return s
}

func (r *resolver) done(t Target) (Target, error) {
	if r.err != nil {
		return Target{}, r.err
	}
	t.Notes = r.notes
	return t, nil
}

func (r *resolver) target(submit string, token config.Secret, from string) (Target, error) {
	if err := checkSubmit(submit); err != nil {
		return Target{}, err
	}
	return r.done(Target{URL: submit, Token: token, From: from})
}

func checkSubmit(submit string) error {
	u, err := url.Parse(submit)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return errors.New("kernelci.kcidb_submit_url (KCIDB_SUBMIT_URL) must be an http or https URL without credentials; a token goes into KCIDB_JWT")
	}
	if !strings.HasSuffix(u.Path, submitPath) || u.RawQuery != "" || u.Fragment != "" {
		u.Path, u.RawQuery, u.Fragment = strings.TrimRight(u.Path, "/")+submitPath, "", ""
		return fmt.Errorf("kernelci.kcidb_submit_url (KCIDB_SUBMIT_URL) must end in /submit, as /status is found beside it: try %s", u)
	}
	return nil
}

// rest takes https://<token>@host[:port][/path] apart, as kci-dev does: the user
// part is the token as it stands, and the path gets /submit unless it ends so
// (kernelci-wire.md 6.1). Like there, a value without a token is reported and
// the next source is tried. No error repeats the value: it holds the token.
func (r *resolver) rest(value config.Secret, from string) (Target, bool) {
	if value == "" {
		return Target{}, false
	}
	scheme, after, ok := strings.Cut(value.Reveal(), "://")
	if !ok || scheme != "http" && scheme != "https" {
		r.err = fmt.Errorf("%s must be https://<token>@host[:port][/path]", from)
		return Target{}, false
	}
	authority, path, _ := strings.Cut(after, "/")
	var token string
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		token, _, _ = strings.Cut(authority[:at], ":")
		authority = authority[at+1:]
	}
	u, err := url.Parse(scheme + "://" + authority + "/" + path)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		r.err = fmt.Errorf("%s must be https://<token>@host[:port][/path]", from)
		return Target{}, false
	}
	if token == "" {
		r.note(from + " has no token before the @ and is not used")
		return Target{}, false
	}
	u.Path = strings.TrimRight(u.Path, "/")
	if !strings.HasSuffix(u.Path, submitPath) {
		u.Path += submitPath
	}
	return Target{URL: u.String(), Token: config.Secret(token), From: from}, true
}
