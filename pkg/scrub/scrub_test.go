package scrub_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/pullab/pullab/pkg/scrub"
)

// x is n characters that look random and are the same every time.
func x(n int, alphabet string) string {
	r := rand.New(rand.NewPCG(uint64(n), uint64(len(alphabet))))
	b := make([]byte, n)
	for i := range b {
		b[i] = alphabet[r.IntN(len(alphabet))]
	}
	return string(b)
}

const (
	digits = "0123456789"
	uppers = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	lowers = "abcdefghijklmnopqrstuvwxyz"
	alnums = digits + uppers + lowers
	b64    = alnums + "+/"
	b64url = alnums + "-_"
)

// own is the lab's secret in these tests.
const own = `s3cr/t+"lab value`

var pemBody = x(64, b64) + "\n" + x(64, b64) + "\n" + x(20, b64) + "==\n"

func pem(label string) string {
	return "-----BEGIN " + label + "-----\n" + pemBody + "-----END " + label + "-----"
}

// TestRules: in wants, {x} is a secret of the kind and everything else stays.
func TestRules(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ kind, text string }{
		{"pem-private-key", "a {" + pem("RSA PRIVATE KEY") + "} b"},
		{"pem-private-key", "{" + pem("OPENSSH PRIVATE KEY") + "}\n"},
		{"pem-private-key", "{" + pem("PRIVATE KEY") + "}{" + pem("EC PRIVATE KEY") + "}"},
		{"pem-private-key", "{" + pem("PGP PRIVATE KEY BLOCK") + "}"},
		{"pem-private-key", "{---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nComment: \"me\"\n" + pemBody + "---- END SSH2 ENCRYPTED PRIVATE KEY ----}\n"},
		{"pem-private-key", `{"type":"service_account","private_key":"{` + strings.ReplaceAll(pem("PRIVATE KEY"), "\n", `\n`) + `}\n","client_id":"1"}`},
		{"pem-private-key", "{-----BEGIN RSA PRIVATE KEY-----\r\nProc-Type: 4,ENCRYPTED\r\nDEK-Info: AES-128-CBC,00\r\n\r\n" + x(64, b64) + "\r\n" + x(30, b64) + "}\r\n[    1.0] Kernel panic"},
		{"pem-private-key", "{-----BEGIN PRIVATE KEY-----\n[    1.234567] " + x(64, b64) + "}\n[    1.300000] usb 1-1: new device"},
		{"ssh-public-key", "{ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + x(43, alnums) + "} root@vm"},
		{"ssh-public-key", "{ecdsa-sha2-nistp256 AAAAE2Vj" + x(130, b64) + "=}\n"},
		{"ssh-public-key", "{sk-ssh-ed25519@openssh.com AAAA" + x(60, b64) + "}\n"},
		{"jwt", "cookie {eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0." + x(43, b64url) + "};"},
		{"jwt", "cut {eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0}"},
		{"jwt", "JWE {eyJhbGciOiJSU0EtT0FFUCJ9." + x(40, b64url) + "." + x(16, b64url) + "." + x(30, b64url) + "." + x(22, b64url) + "}"},
		{"github-token", "clone {ghp_" + x(36, alnums) + "} ok {github_pat_" + x(22, alnums) + "_" + x(59, alnums) + "}"},
		{"github-token", "{ghs_123456_" + x(30, alnums) + "." + x(60, b64url) + "." + x(43, b64url) + "}"},
		{"gitlab-token", "{glpat-" + x(20, b64url) + "}, {glrt-t1_" + x(20, alnums) + "}"},
		{"slack-token", "-{xoxb-123456789012-" + x(24, alnums) + "} {xapp-1-A0-1-" + x(30, alnums) + "}"},
		{"slack-webhook", "POST https://{hooks.slack.com/services/T00000000/B00000000/" + x(24, alnums) + "}"},
		{"aws-access-key-id", "id {AKIA" + x(16, uppers) + "}, {ASIA" + x(16, digits) + "}%2F"},
		{"aws-secret-access-key", "AWS_SECRET_ACCESS_KEY={" + x(40, b64) + "}\naws_secret_access_key = {" + x(40, b64+"=") + "}"},
		{"aws-session-token", `"SessionToken": "{` + x(200, b64) + `==}", export AWS_SESSION_TOKEN={` + x(300, b64) + "}"},
		{"aws-session-token", "found {IQoJb3JpZ2luX2Vj" + x(300, b64) + "}"},
		{"google-api-key", "?key={AIza" + x(35, b64url) + "}&q=1"},
		{"google-oauth", "{ya29." + x(60, b64url) + "} {GOCSPX-" + x(28, b64url) + "}"},
		{"azure-storage-key", "DefaultEndpointsProtocol=https;AccountName=lab;AccountKey={" + x(86, b64) + "==};EndpointSuffix=core.windows.net"},
		{"url-signature", "https://lab.blob.core.windows.net/c/f?sv=2022-11-02&sig={" + x(40, alnums) + "%3D}&se=2026"},
		{"url-signature", "GET /f?X-Amz-Expires=60&X-Amz-Signature={" + x(64, "0123456789abcdef") + "}"},
		{"npm-token", "//registry/:x {npm_" + x(36, alnums) + "}"},
		{"pypi-token", "{pypi-AgEIcHlwaS5vcmc" + x(150, b64url) + "}"},
		{"docker-token", "docker login -p {dckr_pat_" + x(27, b64url) + "}"},
		{"huggingface-token", "{hf_" + x(34, alnums) + "}"},
		{"stripe-key", "{sk_live_" + x(24, alnums) + "} {rk_test_" + x(24, alnums) + "} {whsec_" + x(32, alnums) + "}"},
		{"age-private-key", "{AGE-SECRET-KEY-1" + x(58, uppers) + "}"},
		{"ai-token", "{sk-ant-api03-" + x(93, b64url) + "} {sk-" + x(48, alnums) + "}"},
		{"vault-token", "{hvs." + x(90, b64url) + "}"},
		{"nats-seed", "{SUA" + x(55, uppers) + "}"},
		{"digitalocean-token", "{dop_v1_" + x(64, "0123456789abcdef") + "}"},
		{"shopify-token", "{shpat_" + x(32, "0123456789abcdef") + "}"},
		{"atlassian-token", "{ATATT3xFfGF0" + x(180, b64url) + "}"},
		{"sendgrid-key", "{SG." + x(22, b64url) + "." + x(43, b64url) + "}"},
		{"bearer-token", "curl says bearer {" + x(20, alnums) + "}, BEARER  {abcdefgh}"},
		{"authorization", "> Authorization: Basic {dXNlcjpwYXNz}\r\n> Accept: */*"},
		{"authorization", `curl -H 'Authorization: Bearer {` + x(30, alnums) + `}' -H "proxy-authorization: {abc def}" {"authorization":"token {` + x(40, alnums) + `}"}`},
		{"authorization", "authorization: AWS4-HMAC-SHA256 {Credential=AKIA" + x(16, uppers) + "/20261124/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=" + x(64, digits) + "}\n"},
		{"cookie", "< Set-Cookie: {sid=" + x(20, alnums) + "; Path=/; HttpOnly}\r\n> cookie: {a=1; b=2}\n"},
		{"basic-auth-url", "git clone https://me:{p@ss:w0rd}@example.org/x.git; redis://:{pw}@h:1 postgres://u:{a/b#c}@h/db"},
		{"basic-auth-url", "https://{" + x(30, alnums) + "}@example.org and https://{AKIA" + x(16, uppers) + ":pw}@h"},
		{"credential-kv", "password={hunter2} DB_PASSWORD={correct;horse:x&y=z} PGPASSWORD: {swordfish}"},
		{"credential-kv", `{"token": "{correct horse battery}", "x": 1, 'api_key': '{a"b\'cdef}', \"secret\": \"{a'bcdef}\"}`},
		{"credential-kv", `dbPass={ab'cdef"g} client_secret := {abcdef} $c['passwd'] => '{abcdef}'` + "\n"},
		{"credential-kv", "user=u&password={abcdef}&x=1;token={abcdef};y=2 user=u,pass={abcdef},vers=3 secret={a,b;c&d}) psk=\"{abcdef}\""},
		{"credential-kv", "GET /?access_token={abcdef}\x00SECRET={abcdef}\x00HOME=/"},
		{"credential-kv", "x-api-key: {abcdef}\r\nPRIVATE-TOKEN: {abcdef}\nX-Auth-Token: Bearer {abcdefgh}"},
		{"credential-kv", "+ tool --password {abcdef} --api-token '{ab cdef}'"},
		{"credential-kv", "password: {p\xffa\xc3\xa4s}\x1b[0m token={\xe2\x82\xac\xe2\x82\xac}"},
		{"credential-kv", `//registry.example/:_auth={bWU6cGFzc3dvcmQ=} {"auths":{"h":{"auth":"{bWU6cGFzc3dvcmQ=}"}}}`},
		// The value's text stays where it is not the value (predecessor.md 6.5).
		{"credential-kv", "swordfish swordfish_secret={swordfish} swordfish"},
		{"configured-secret", "a{" + own + "}b {" + base64.StdEncoding.EncodeToString([]byte(own)) + "} {" + url.QueryEscape(own) + "} {" + url.PathEscape(own) + "} {s3cr/t+\\\"lab value}"},
	} {
		in, want, n := braces(c.kind, c.text)
		got, counts := scrub.New(own).String(in)
		if got != want {
			t.Errorf("%s:\n in  %q\n got %q\nwant %q", c.kind, in, got, want)
		}
		if counts[c.kind] != n || counts.Total() != n {
			t.Errorf("%s: %q: counts %v, want %d", c.kind, in, counts, n)
		}
	}
}

// braces reads the notation of TestRules. Braces of JSON have no partner that
// fits: only {...} with an even nesting that starts after a non-brace counts.
func braces(kind, text string) (in, want string, n int) {
	var i, w strings.Builder
	for text != "" {
		open := -1
		for k := range len(text) {
			if text[k] == '{' && (k+1 == len(text) || text[k+1] != '"' && text[k+1] != '\'') {
				open = k
				break
			}
		}
		if open < 0 {
			break
		}
		end := strings.IndexByte(text[open:], '}') + open
		i.WriteString(text[:open] + text[open+1:end])
		w.WriteString(text[:open] + "[REDACTED:" + kind + "]")
		text = text[end+1:]
		n++
	}
	return i.String() + text, w.String() + text, n
}

// TestStays: nothing here is a secret.
func TestStays(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"", "a", "=", ":", "--", "password", "password=", "password: ", "token=\n", "secret=abcde ", `"token": ""`,
		"[    0.1] Loaded X.509 cert 'Debian Secure Boot CA: 6ccece7e4c6c0d1f6149f3dd27dfcc5cbb419ea1'",
		"[    0.1] Key type asymmetric registered", "random: crng init done", "Secure boot: disabled", "secureboot: Secure boot enabled",
		"-----BEGIN CERTIFICATE-----\n" + pemBody + "-----END CERTIFICATE-----", "-----BEGIN PRIVATE KEY-----", "-----BEGIN SSH HOST KEY KEYS-----",
		"----------------------------------------------------------------",
		"ssh-rsa key of 2048 bits", "ssh-ed25519 SHA256:" + x(43, b64), "256 SHA256:" + x(43, b64) + " root@vm (ED25519)",
		"eyJ", "eyJhbGciOiJIUzI1NiJ9", "keyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.x", "ghp_short", "xghp_" + x(36, alnums),
		"AKIA" + x(15, uppers), "AKIA" + x(17, uppers), "xAKIA" + x(16, uppers), "AKIA" + x(16, uppers) + "_", "AIza" + x(10, alnums),
		"hf_hub", "npm_config_registry=https://x", "glpat-x", "xoxb-", "SUMMARY", "sk-ssh-ed25519", "skb_alloc",
		"tipc: Enabled bearer <eth:veth1>, priority 10", "bearer configuration done", "Disabling bearer <udp:x>", "bearer of news",
		"https://example.org:8080/a@b", "ssh://git@github.com/x", "http://h/?q=a:b@c", "nfs://server:/export/x@y", "http://[fe80::1]:80/a@b", "mailto:a@b",
		"PWD=/usr/lib/kselftest", "OLDPWD=/root/abcdef", "pwd=/home/lab", "GPG_KEY=E3FF2839C048B25C084DEBE9B26995E310250568",
		"compass: heading123", "BYPASS=abcdef", "tokens: 1234567", "trusted_key: Unable to unseal", "token: test_token_create: failed",
		"passwd: password expiry information changed.", "secret: 0xffff888100123456", "password=******", "token=${CI_TOKEN}", "token=$CI_TOKEN",
		"auth=ntlmssp", "sshd: pam_unix(sshd:auth): authentication failure", "CONFIG_BPF_TOKEN=y", "CONFIG_MODULE_SIG_KEY=\"certs/signing_key.pem\"",
		"cookie: 0x1234", "FS-Cache: O-cookie c=00000000123 [p=000 fl=222 nc=0]", "TCP: Sending cookies.", "std::token::abcdef", "sig=12345678901234567890123",
		"password=[REDACTED:credential-kv]", "Authorization: Basic [REDACTED:authorization]", "x [REDACTED:nonsense] y", "\x00\xff\xfe=\x00:",
		"e7f2a9d4-1b3c-4d5e-8f90-a1b2c3d4e5f6", "00000000: 4f4b 8d00 aa55 0000  0000 0000 0000 0000  OK...U..........",
		"Authorization: \r\n", "authorization: enabled\n", "--token-file /run/x", "--password --user x",
	} {
		if got, counts := scrub.New(own).String(s); got != s || counts.Total() != 0 {
			t.Errorf("%q became %q, %v", s, got, counts)
		}
	}
}

// TestLogs: real and written logs without secrets pass byte for byte.
func TestLogs(t *testing.T) {
	t.Parallel()
	for name, b := range logs(t) {
		got, counts := scrub.New(own).String(string(b))
		if got != string(b) || counts.Total() != 0 {
			t.Errorf("%s: %v taken out of a log without secrets", name, counts)
			for i, line := range strings.Split(got, "\n") {
				if strings.Contains(line, "[REDACTED:") {
					t.Errorf("line %d: %s", i+1, line)
				}
			}
		}
	}
}

func logs(t testing.TB) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob("testdata/*.log")
	if err != nil || len(names) < 4 {
		t.Fatal(names, err)
	}
	all := map[string][]byte{}
	for _, n := range names {
		if all[n], err = os.ReadFile(n); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// TestOwn: the lab's secrets go first, wherever they stand.
func TestOwn(t *testing.T) {
	t.Parallel()
	s := scrub.New("", "short", "REDACTED", "credential", " lab-token-123\n", "multi\nline secret")
	for in, want := range map[string]string{
		"xlab-token-123y":                "x[REDACTED:configured-secret]y",
		"Bearer lab-token-123":           "Bearer [REDACTED:configured-secret]",
		"password=lab-token-123":         "password=[REDACTED:configured-secret]",
		"a short REDACTED credential":    "a short REDACTED credential",
		"lab-token-12":                   "lab-token-12",
		`"multi\nline secret"`:           `"[REDACTED:configured-secret]"`,
		"multi\r\nline secret":           "[REDACTED:configured-secret]",
		"lab-token-123lab-token-123":     "[REDACTED:configured-secret][REDACTED:configured-secret]",
		"https://lab-token-123:x@h":      "https://[REDACTED:basic-auth-url]@h",
		"https://me:ab-lab-token-123@hh": "https://me:[REDACTED:basic-auth-url]@hh",
	} {
		if got, _ := s.String(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
	for n := range 9 {
		in := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("u", n) + ":lab-token-123;" + strings.Repeat("v", n)))
		got, counts := s.String(in)
		plain, _ := base64.RawStdEncoding.DecodeString(strings.Split(got, "[")[0])
		if counts["configured-secret"] != 1 || len(got) > 2*n+40 || strings.Contains(string(plain), "lab-t") {
			t.Errorf("%d: %s became %s", n, in, got)
		}
	}
}

// cuts reads a text in pieces of other sizes every time.
type cuts struct {
	text string
	r    *rand.Rand
	max  int
}

func (c *cuts) Read(p []byte) (int, error) {
	if c.text == "" {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 1+c.r.IntN(c.max))], c.text)
	c.text = c.text[n:]
	return n, nil
}

// TestCuts: how reads and writes cut a stream does not show. The text is longer
// than several batches, and its secrets lie at every offset of their borders.
func TestCuts(t *testing.T) {
	t.Parallel()
	text, _ := planted(t, 3000)
	text += strings.Repeat("password="+strings.Repeat("k", 50_000)+" ", 4) + strings.Repeat(pem("RSA PRIVATE KEY")+"\n", 1000) +
		"-----BEGIN PRIVATE KEY-----\n" + strings.Repeat(pemBody[:65], 4000) + "\nend eyJ" + strings.Repeat("a", 2000) + ".eyJ" + strings.Repeat("b", 200_000)
	s := scrub.New(own)
	want, counts := s.String(text)
	if counts["credential-kv"] < 4 || strings.Contains(want, "kkkk") || strings.Contains(want, pemBody[:64]) || strings.Contains(want, "bbbb") {
		t.Errorf("%v: %.300q", counts, want[max(0, len(want)-300):])
	}
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 1))
		rd := s.NewReader(&cuts{text, r, 1 << r.IntN(18)})
		got, err := io.ReadAll(rd)
		if err != nil || string(got) != want || !maps.Equal(counts, rd.Counts()) {
			t.Fatalf("reader %d: %v, %d bytes for %d, counts %v", seed, err, len(got), len(want), rd.Counts())
		}
		var b bytes.Buffer
		w := s.NewWriter(&b)
		if _, err := io.CopyBuffer(struct{ io.Writer }{w}, &cuts{text, r, 1 << r.IntN(18)}, make([]byte, 1<<17)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(w.Close(), w.Close()); err != nil || b.String() != want || !maps.Equal(counts, w.Counts()) {
			t.Fatalf("writer %d: %v, %d bytes for %d", seed, err, b.Len(), len(want))
		}
	}
}

// TestEveryOffset moves one of each secret over the border of a batch.
func TestEveryOffset(t *testing.T) {
	t.Parallel()
	in := "\n" + pem("PRIVATE KEY") + " ghp_" + x(36, alnums) + " password = \"correct horse\" Authorization: Basic abcd\n" + own + " https://u:pw@h AKIA" + x(16, uppers) + " "
	s := scrub.New(own)
	want, _ := s.String(in)
	pad := strings.Repeat("clean log line\n", 5_000)
	for off := 0; off < len(in)+2; off += 3 {
		p := pad[:64<<10-off]
		got, _ := s.String(p + in + pad)
		if got != p+want+pad {
			t.Fatalf("offset %d", off)
		}
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	s := scrub.New()
	got, err := io.ReadAll(s.NewReader(io.MultiReader(strings.NewReader("token=abcdef"), iotest.ErrReader(broken))))
	if string(got) != "token=[REDACTED:credential-kv]" || !errors.Is(err, broken) {
		t.Errorf("%q %v", got, err)
	}
	w := s.NewWriter(failing{broken})
	io.WriteString(w, "x")
	if err := w.Close(); !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, err := io.WriteString(w, "x"); !errors.Is(err, broken) {
		t.Error(err)
	}
	w = s.NewWriter(io.Discard)
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if _, err := io.WriteString(w, "x"); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// TestFragments does what FuzzScrub does with texts that are nearly all rules:
// a secret in the way of another, quotes that nothing closes, markers in values.
func TestFragments(t *testing.T) {
	t.Parallel()
	parts := []string{"password=", "token: ", `"secret":"`, "--password ", "Authorization: ", "Cookie: a=", "Bearer ", "https://", "me:", "@", "&sig=", "?token=", "PWD=", "_auth=",
		"ghp_" + x(36, alnums), "glpat-" + x(20, alnums), "xoxb-aaaaaaaaaa", "AKIA" + x(16, uppers), "AIza" + x(35, b64url), "eyJhbGciOiJI", ".eyJzdWIiOiI", ".", x(50, b64), own,
		"ssh-rsa ", "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "SG.", "hvs.", "a", "bc", "abcdef", "0x12", "*", "$", "{", "}", "${", "[", "]", "-", "_", "/", "?", "#", ",", ";", "&", "=", ":",
		`"`, "'", "`", `\`, `\n`, " ", "\n", "\r", "\x00", "\xff", "[REDACTED:jwt]", "[REDACTED:configured-secret]", "[REDACTED:", "invalid", "expired:", ">", "<"}
	s := scrub.New(own)
	r := rand.New(rand.NewPCG(7, 7))
	for range 200_000 {
		var b strings.Builder
		for range 2 + r.IntN(10) {
			b.WriteString(parts[r.IntN(len(parts))])
		}
		steady(t, s, []byte(b.String()), uint8(r.IntN(17)))
		if t.Failed() {
			return
		}
	}
}

// FuzzScrub: no panic, twice is once, cuts do not show, bounded growth.
func FuzzScrub(f *testing.F) {
	for _, s := range []string{"password=abcdef", "token: 'x [REDACTED:jwt] y", "https://a:b@c", "eyJ-eyJ-eyJ", "-----BEGIN PRIVATE KEY-----\n", own,
		"token=abc,ghp_" + x(36, alnums) + "=", "&sig=a-xoxb-aaaaaaaaaa", "https://xoxb-aaaaaaaaaa:b@c", "Cookie: a=b", "Authorization: Basic a b c"} {
		f.Add([]byte(s), uint8(3))
	}
	f.Add([]byte(pem("RSA PRIVATE KEY")), uint8(7))
	s := scrub.New(own)
	f.Fuzz(func(t *testing.T, in []byte, cut uint8) {
		steady(t, s, in, cut)
	})
}

func steady(t *testing.T, s *scrub.Scrubber, in []byte, cut uint8) {
	t.Helper()
	once, _ := s.String(string(in))
	if len(once) > 8*len(in)+64 {
		t.Errorf("%d bytes became %d", len(in), len(once))
	}
	if twice, again := s.String(once); twice != once || again.Total() != 0 {
		t.Errorf("%q\nonce  %q\ntwice %q", in, once, twice)
	}
	var b bytes.Buffer
	w := scrub.Unbatched(s, &b)
	for p := in; len(p) > 0; {
		n := min(len(p), int(cut)%17+1)
		w(p[:n], false)
		p = p[n:]
	}
	w(nil, true)
	if b.String() != once {
		t.Errorf("%q\nwhole %q\ncut   %q", in, once, b.String())
	}
}
