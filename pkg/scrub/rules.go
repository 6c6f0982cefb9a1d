package scrub

import (
	"strings"
	"sync"
)

// kinds are what markers and counts say. The first seven are the predecessor's.
var kinds = []string{
	"pem-private-key", "ssh-public-key", "jwt", "github-token", "aws-access-key-id", "bearer-token", "credential-kv",
	"age-private-key", "ai-token", "atlassian-token", "authorization", "aws-secret-access-key", "aws-session-token", "azure-storage-key", "basic-auth-url",
	"configured-secret", "cookie", "digitalocean-token", "docker-token", "gitlab-token", "google-api-key", "google-oauth", "huggingface-token",
	"nats-seed", "npm-token", "pypi-token", "sendgrid-key", "shopify-token", "slack-token", "slack-webhook", "stripe-key", "url-signature", "vault-token",
}

// maxKinds is not less than len(kinds).
const maxKinds = 40

var (
	kindPEM, kindSSH, kindJWT, kindGitHub = kindOf("pem-private-key"), kindOf("ssh-public-key"), kindOf("jwt"), kindOf("github-token")
	kindAWSID, kindBearer, kindKV         = kindOf("aws-access-key-id"), kindOf("bearer-token"), kindOf("credential-kv")
	kindAuthorization, kindCookie         = kindOf("authorization"), kindOf("cookie")
	kindAWSSecret, kindAWSSession         = kindOf("aws-secret-access-key"), kindOf("aws-session-token")
	kindAzure, kindURL, kindSignature     = kindOf("azure-storage-key"), kindOf("basic-auth-url"), kindOf("url-signature")
	kindOwn                               = kindOf("configured-secret")
)

var (
	alnum    = newClass("A-Za-z0-9")
	word     = newClass("A-Za-z0-9_")
	wordDash = newClass("A-Za-z0-9_-")
	dotted   = newClass("A-Za-z0-9_.-")
	upper    = newClass("A-Z0-9")
	base32   = newClass("A-Z2-7")
	hex      = newClass("0-9A-Fa-f")
	b64      = newClass("A-Za-z0-9+/=_-")
	bearer   = newClass("A-Za-z0-9._~+/=-")
	blank    = newClass(" \t")
)

// tokenRule is a token that tells itself by how it begins.
type tokenRule struct {
	prefix string
	kind   int
	// rest follows the prefix: at least min bytes; exactly so many when exact.
	rest  *class
	min   int
	exact bool
}

// tokens by their first byte. Lengths are what the issuers make or less, where
// shorter ones have been seen.
var tokens = sync.OnceValue(func() *[256][]tokenRule {
	var by [256][]tokenRule
	add := func(kind string, rest *class, least int, prefixes string) {
		for p := range strings.FieldsSeq(prefixes) {
			by[p[0]] = append(by[p[0]], tokenRule{prefix: p, kind: kindOf(kind), rest: rest, min: least})
		}
	}
	add("github-token", word, 36, "ghp_ gho_ ghu_ ghs_ ghr_")
	add("github-token", word, 22, "github_pat_")
	add("gitlab-token", dotted, 20, "glpat- gldt- glrt- glcbt- glptt- glft- glsoat- glagent- gloas- glimt- glffct-")
	add("slack-token", wordDash, 10, "xoxa- xoxb- xoxe- xoxo- xoxp- xoxr- xoxs- xoxc- xoxd- xoxe.xoxb- xoxe.xoxp- xapp-")
	add("slack-webhook", newClass("A-Za-z0-9/_+-"), 20, "hooks.slack.com/services/ hooks.slack.com/workflows/ hooks.slack.com/triggers/")
	add("google-api-key", wordDash, 35, "AIza")
	add("google-oauth", dotted, 20, "ya29.")
	add("google-oauth", wordDash, 24, "GOCSPX-")
	add("npm-token", alnum, 36, "npm_")
	add("pypi-token", wordDash, 50, "pypi-")
	add("docker-token", wordDash, 20, "dckr_pat_ dckr_oat_")
	add("huggingface-token", alnum, 30, "hf_ api_org_")
	add("stripe-key", alnum, 16, "sk_live_ sk_test_ rk_live_ rk_test_")
	add("stripe-key", alnum, 24, "whsec_")
	add("aws-session-token", b64, 50, "IQoJb3JpZ2lu FwoGZXIvYXdz FQoGZXIvYXdz")
	add("age-private-key", newClass("A-Z0-9-"), 40, "AGE-SECRET-KEY-")
	add("ai-token", wordDash, 30, "sk-ant- sk-proj- sk-svcacct-")
	add("ai-token", alnum, 40, "sk-")
	add("vault-token", wordDash, 24, "hvs. hvb. hvr.")
	add("digitalocean-token", hex, 64, "dop_v1_ doo_v1_ dor_v1_")
	add("shopify-token", hex, 32, "shpat_ shpca_ shppa_ shpss_")
	add("atlassian-token", b64, 50, "ATATT3")
	add("sendgrid-key", dotted, 60, "SG.")
	for p := range strings.FieldsSeq("AKIA ASIA ABIA ACCA") {
		by['A'] = append(by['A'], tokenRule{p, kindAWSID, upper, 16, true})
	}
	// A seed of NATS: S, its kind, and base32 to 58 characters in all.
	for p := range strings.FieldsSeq("SU SA SO SN SC SX") {
		by['S'] = append(by['S'], tokenRule{p, kindOf("nats-seed"), base32, 56, true})
	}
	return &by
})

// sshKeys are the words before a public key's base64.
var sshKeys = strings.Fields("ssh-rsa ssh-ed25519 ssh-dss ecdsa-sha2-nistp256 ecdsa-sha2-nistp384 ecdsa-sha2-nistp521 " +
	"sk-ssh-ed25519@openssh.com sk-ecdsa-sha2-nistp256@openssh.com")

// anchors is where find has to look.
var anchors = sync.OnceValue(func() *table {
	t := &table{}
	t.addAny('=')
	t.addAny(':')
	for _, a := range []string{"--", "ey", "be", "bE", "Be", "BE"} {
		t.add(a)
	}
	for _, rules := range tokens() {
		for _, r := range rules {
			t.add(r.prefix)
		}
	}
	for _, k := range sshKeys {
		t.add(k)
	}
	return t
})

// find is the second pass: what begins at the anchor i.
func find(w *window, i int) (match, bool) {
	switch w.buf[i] {
	case '=', ':':
		return w.field(i)
	case '-':
		if m, ok := w.pem(i); ok {
			return m, true
		}
		return w.flag(i)
	default:
		return w.token(i)
	}
}

// token is one that tells itself.
func (w *window) token(i int) (match, bool) {
	if word[w.back(i-1)] {
		return match{}, false
	}
	for k := range tokens()[w.at(i)] {
		r := &tokens()[w.at(i)][k]
		if !w.has(i, r.prefix) {
			continue
		}
		from := i + len(r.prefix)
		if r.exact {
			if e := w.run(from, r.rest, r.min+1); e == from+r.min && !word[w.at(e)] {
				return match{kind: r.kind, start: i, end: e}, true
			}
			continue
		}
		if e := w.run(from, r.rest, lookahead/4); e >= from+r.min {
			if r.kind == kindGitHub {
				e = w.segments(e)
			}
			return w.long(match{kind: r.kind, start: i, end: e}, from+lookahead/4, r.rest), true
		}
	}
	switch w.at(i) {
	case 'e':
		if m, ok := w.jwt(i); ok {
			return m, true
		}
		return w.sshKey(i)
	case 's':
		return w.sshKey(i)
	case 'b', 'B':
		return w.bearer(i)
	}
	return match{}, false
}

// long is m, which goes on when it fills the sight that it was given.
func (w *window) long(m match, sight int, rest *class) match {
	if m.end >= sight {
		m.on = rest
	}
	return m
}

// segments takes in .xxx.yyy of tokens that have a JWT behind their prefix.
func (w *window) segments(e int) int {
	for w.at(e) == '.' {
		next := w.run(e+1, wordDash, lookahead/4)
		if next-e < 16 {
			break
		}
		e = next
	}
	return e
}

// jwt is two parts of JSON and a signature, or five parts; the last may be cut.
func (w *window) jwt(i int) (match, bool) {
	const part, sight = 8, lookahead / 4
	if i < w.noJWT || !w.has(i, "eyJ") {
		return match{}, false
	}
	head := w.run(i, wordDash, sight)
	if head < i+3+part || w.at(head) != '.' {
		return w.never(head)
	}
	e := w.run(head+1, wordDash, sight)
	if e < head+1+part || !w.has(head+1, "eyJ") && w.at(e) != '.' {
		return w.never(head)
	}
	first := e
	for range 3 {
		if w.at(e) != '.' {
			break
		}
		next := w.run(e+1, wordDash, sight)
		if next == e+1 {
			break
		}
		if next == e+1+sight {
			return match{kind: kindJWT, start: i, end: next, on: wordDash}, true
		}
		e = next
	}
	if e == first && !w.has(head+1, "eyJ") {
		return w.never(head)
	}
	if first == head+1+sight {
		return match{kind: kindJWT, start: i, end: first, on: dotted}, true
	}
	return match{kind: kindJWT, start: i, end: e}, true
}

// never remembers that nothing before i begins a JWT, so that a run of dashes
// and eyJ is read once.
func (w *window) never(i int) (match, bool) {
	if !w.short {
		w.noJWT = i
	}
	return match{}, false
}

func (w *window) sshKey(i int) (match, bool) {
	const least, sight = 40, lookahead / 4
	for _, k := range sshKeys {
		if !w.has(i, k) {
			continue
		}
		from := w.run(i+len(k), blank, 8)
		if from == i+len(k) {
			continue
		}
		if e := w.run(from, b64, sight); e >= from+least {
			return w.long(match{kind: kindSSH, start: i, end: e}, from+sight, b64), true
		}
	}
	return match{}, false
}

func (w *window) bearer(i int) (match, bool) {
	const least, sight = 8, lookahead / 4
	if !w.hasFold(i, "bearer") {
		return match{}, false
	}
	from := w.run(i+len("bearer"), blank, 8)
	if from == i+len("bearer") {
		return match{}, false
	}
	e := w.run(from, bearer, sight)
	if e < from+least || e < from+sight && harmlessWord(w.buf[from:e]) {
		return match{}, false
	}
	m := match{kind: kindBearer, start: from, end: e}
	if t, ok := w.token(from); ok && t.end >= e {
		m.kind, m.on = t.kind, t.on
	}
	return w.long(m, from+sight, bearer), true
}

// anyToken tells whether a token begins in [i, end).
func (w *window) anyToken(i, end int) bool {
	for ; i < end; i++ {
		if _, ok := w.token(i); ok {
			return true
		}
	}
	return false
}
