package scrub_test

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/pullab/pullab/pkg/scrub"
)

// plant is one secret in a line: the line with %s for it, and what may not be
// seen afterwards.
type plant struct {
	kind, line, secret string
}

// punctuated passwords have everything that a password generator uses and a
// shell's environment prints as it is.
const punctuated = alnums + "!#$%&*+-./:;<>=?@^_|~(){}[],"

// plants makes a secret of every kind, in the place where it is met.
var plants = []func(s func(n int, alphabet string) string) plant{
	func(s func(int, string) string) plant {
		var body strings.Builder
		for range 25 {
			body.WriteString(s(64, b64) + "\n")
		}
		return plant{"pem-private-key", "-----BEGIN OPENSSH PRIVATE KEY-----\n%s-----END OPENSSH PRIVATE KEY-----", body.String() + s(20, b64) + "\n"}
	},
	func(s func(int, string) string) plant {
		return plant{"pem-private-key", `{"type": "service_account", "private_key": "-----BEGIN PRIVATE KEY-----\n%s\n-----END PRIVATE KEY-----\n", "client_id": "42"}`, s(64, b64) + `\n` + s(64, b64)}
	},
	func(s func(int, string) string) plant {
		return plant{"ssh-public-key", "cloud-init[8]: %s root@ip-10-0-0-1", "ssh-rsa AAAAB3NzaC1yc2EAAAADAQAB" + s(340, b64)}
	},
	func(s func(int, string) string) plant {
		return plant{"jwt", "got %s for node 42", "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ" + s(80, b64url) + "." + s(43, b64url)}
	},
	func(s func(int, string) string) plant {
		return plant{"github-token", "remote: %s is not allowed", "ghp_" + s(36, alnums)}
	},
	func(s func(int, string) string) plant {
		return plant{"github-token", `GITHUB_TOKEN=%s`, "github_pat_" + s(22, alnums) + "_" + s(59, alnums)}
	},
	func(s func(int, string) string) plant {
		return plant{"gitlab-token", `PRIVATE-TOKEN: %s`, "glpat-" + s(20, alnums+"_")}
	},
	func(s func(int, string) string) plant {
		return plant{"slack-token", `{"slack":"%s"}`, "xoxb-" + s(12, digits) + "-" + s(24, alnums)}
	},
	func(s func(int, string) string) plant {
		return plant{"aws-access-key-id", `"AccessKeyId" : "%s",`, "AKIA" + s(16, uppers)}
	},
	func(s func(int, string) string) plant {
		return plant{"aws-secret-access-key", `"SecretAccessKey" : "%s",`, s(40, b64)}
	},
	func(s func(int, string) string) plant {
		return plant{"aws-secret-access-key", `AWS_SECRET_ACCESS_KEY=%s`, s(40, b64)}
	},
	func(s func(int, string) string) plant {
		return plant{"aws-session-token", `export AWS_SESSION_TOKEN="%s"`, s(400, b64) + "=="}
	},
	func(s func(int, string) string) plant {
		return plant{"google-api-key", `> GET /v1/x?key=%s&alt=json HTTP/2`, "AIza" + s(35, b64url)}
	},
	func(s func(int, string) string) plant {
		return plant{"azure-storage-key", `AccountName=lab;AccountKey=%s;EndpointSuffix=core.windows.net`, s(86, b64) + "=="}
	},
	func(s func(int, string) string) plant {
		return plant{"url-signature", `* GET https://lab.blob.core.windows.net/logs/a.gz?sv=2024-08-04&sr=b&sig=%s`, s(42, alnums) + "%3D"}
	},
	func(s func(int, string) string) plant {
		return plant{"npm-token", `npm http %s`, "npm_" + s(36, alnums)}
	},
	func(s func(int, string) string) plant {
		return plant{"pypi-token", `twine -p %s upload`, "pypi-AgEIcHlwaS5vcmc" + s(140, alnums+"_")}
	},
	func(s func(int, string) string) plant {
		return plant{"docker-token", `docker login -p %s`, "dckr_pat_" + s(27, alnums+"_")}
	},
	func(s func(int, string) string) plant {
		return plant{"huggingface-token", `hub: %s`, "hf_" + s(34, alnums)}
	},
	func(s func(int, string) string) plant {
		return plant{"stripe-key", `stripe %s`, "sk_live_" + s(24, alnums)}
	},
	func(s func(int, string) string) plant {
		return plant{"age-private-key", `%s`, "AGE-SECRET-KEY-1" + s(58, uppers+digits)}
	},
	func(s func(int, string) string) plant {
		return plant{"bearer-token", `log: sent bearer %s to far side`, s(32, alnums)}
	},
	func(s func(int, string) string) plant {
		return plant{"authorization", "> Authorization: Basic %s", base64.StdEncoding.EncodeToString([]byte("lab:" + s(16, punctuated)))}
	},
	func(s func(int, string) string) plant {
		return plant{"authorization", "> authorization: Bearer %s", s(40, b64url)}
	},
	func(s func(int, string) string) plant {
		return plant{"cookie", "< set-cookie: %s", "session=" + s(40, b64url) + "; Path=/; Secure"}
	},
	func(s func(int, string) string) plant {
		return plant{"basic-auth-url", "Cloning https://lab:%s@git.example.org/linux.git", s(16, alnums+"!$&*+,;=._~-")}
	},
	func(s func(int, string) string) plant {
		return plant{"credential-kv", "DB_PASSWORD=%s", s(20, punctuated)}
	},
	func(s func(int, string) string) plant {
		return plant{"credential-kv", `{"password": "%s", "user": "lab"}`, s(14, punctuated+" ")}
	},
	func(s func(int, string) string) plant {
		return plant{"credential-kv", `wifi-secret: '%s'`, s(10, lowers)}
	},
	func(s func(int, string) string) plant {
		return plant{"credential-kv", `> GET /login?user=lab&token=%s&x=1 HTTP/1.1`, s(24, alnums)}
	},
	func(s func(int, string) string) plant { return plant{"configured-secret", "lab says %s.", own} },
}

// planted is n secrets in a realistic log, with how many there are of each kind;
// the same every time.
func planted(t testing.TB, n int) (text string, want scrub.Counts) {
	text, _, want = plantedList(t, n)
	return text, want
}

func plantedList(t testing.TB, n int) (text string, secrets []string, want scrub.Counts) {
	r := rand.New(rand.NewPCG(20261124, 4))
	s := func(n int, alphabet string) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = alphabet[r.IntN(len(alphabet))]
		}
		// A password has a letter at its ends: what closes a bracket or a sentence
		// there is taken for the log's own.
		b[0], b[n-1] = alnums[r.IntN(len(alnums))], alnums[r.IntN(len(alnums))]
		if alphabet == uppers || alphabet == digits || alphabet == uppers+digits {
			b[0], b[n-1] = alphabet[r.IntN(len(alphabet))], alphabet[r.IntN(len(alphabet))]
		}
		return string(b)
	}
	var lines []string
	all := logs(t)
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		lines = append(lines, strings.SplitAfter(string(all[name]), "\n")...)
	}
	var b strings.Builder
	want = scrub.Counts{}
	for i := range n {
		p := plants[i%len(plants)](s)
		for range r.IntN(5) {
			b.WriteString(lines[r.IntN(len(lines))])
		}
		if r.IntN(3) == 0 {
			fmt.Fprintf(&b, "\n[%5d.%06d] ", i, r.IntN(1_000_000))
		} else {
			b.WriteString("\n")
		}
		b.WriteString(strings.Replace(p.line, "%s", p.secret, 1) + []string{"\n", "\r\n"}[r.IntN(2)])
		secrets = append(secrets, p.secret)
		want[p.kind]++
	}
	return b.String(), secrets, want
}

// TestPlanted: of 10,000 secrets not a byte comes out, and the rest of the log
// does.
func TestPlanted(t *testing.T) {
	t.Parallel()
	text, secrets, want := plantedList(t, 10_000)
	got, counts := scrub.New(own).String(text)
	for _, kind := range scrub.Kinds() {
		if counts[kind] != want[kind] {
			t.Errorf("%s: %d taken out of %d", kind, counts[kind], want[kind])
		}
	}
	// What stands between the markers is what stood between the secrets: nothing
	// of a secret is left, and nothing else is missing.
	clean := text
	for _, s := range secrets {
		before, after, _ := strings.Cut(clean, s)
		lines := strings.TrimSuffix(before, "-----BEGIN OPENSSH PRIVATE KEY-----\n")
		lines = strings.TrimSuffix(lines, `-----BEGIN PRIVATE KEY-----\n`)
		at := strings.Index(got, "[REDACTED:")
		if at < 0 || got[:at] != lines {
			t.Fatalf("before %q:\n got %q\nwant %q", s, got[max(0, at-100):max(0, at)], lines[max(0, len(lines)-100):])
		}
		got = got[at+strings.IndexByte(got[at:], ']')+1:]
		clean = strings.TrimPrefix(strings.TrimPrefix(after, "-----END OPENSSH PRIVATE KEY-----"), `\n-----END PRIVATE KEY-----`)
	}
	if got != clean {
		t.Errorf("the end: %q, want %q", got, clean)
	}
}
