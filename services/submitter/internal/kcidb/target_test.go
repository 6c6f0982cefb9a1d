package kcidb

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pullab/pullab/pkg/config"
)

func TestResolve(t *testing.T) {
	t.Parallel()
	const fileURL, envURL = "https://file.example.org/submit", "https://env.example.org/submit"
	file := config.KernelCI{KCIDBSubmitURL: fileURL, KCIDBJWT: "file-jwt"}
	tokenFile := filepath.Join(t.TempDir(), "jwt")
	if err := os.WriteFile(tokenFile, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		env  map[string]string
		c    config.KernelCI
		url  string
		tok  string
		err  string
		note string
	}{
		"the pair": {env: map[string]string{"KCIDB_SUBMIT_URL": envURL, "KCIDB_JWT": "j", "KCIDB_REST": "https://r@rest.example.org/", "UNIFIED_TOKEN": "u"},
			c: file, url: envURL, tok: "j", note: "KCIDB_REST is not used"},
		"KCIDB_REST over UNIFIED_TOKEN and the file": {env: map[string]string{"KCIDB_REST": "https://r@rest.example.org/", "UNIFIED_TOKEN": "u"},
			c: file, url: "https://rest.example.org/submit", tok: "r"},
		"KCIDB_REST over a lone KCIDB_JWT": {env: map[string]string{"KCIDB_REST": "https://r@rest.example.org", "KCIDB_JWT": "j"},
			c: file, url: "https://rest.example.org/submit", tok: "r", note: "KCIDB_JWT is not used"},
		"KCIDB_JWT alone, URL of the file":   {env: map[string]string{"KCIDB_JWT": "j", "UNIFIED_TOKEN": "u"}, c: file, url: fileURL, tok: "j"},
		"UNIFIED_TOKEN, URL of the file":     {env: map[string]string{"UNIFIED_TOKEN": "u"}, c: file, url: fileURL, tok: "u"},
		"UNIFIED_TOKEN, URL of the variable": {env: map[string]string{"UNIFIED_TOKEN": "u", "KCIDB_SUBMIT_URL": envURL}, c: file, url: envURL, tok: "u"},
		"the file":                           {c: file, url: fileURL, tok: "file-jwt"},
		"the file's kcidb_rest":              {c: config.KernelCI{KCIDBSubmitURL: fileURL, KCIDBRest: "https://fr@rest.example.org/kcidb"}, url: "https://rest.example.org/kcidb/submit", tok: "fr"},
		"the file's jwt before its rest":     {c: config.KernelCI{KCIDBSubmitURL: fileURL, KCIDBJWT: "file-jwt", KCIDBRest: "https://fr@rest.example.org"}, url: fileURL, tok: "file-jwt"},
		"nothing":                            {c: config.KernelCI{KCIDBSubmitURL: fileURL}, err: "Missing required configuration: kernelci.kcidb_jwt"},
		"KCIDB_JWT_FILE":                     {env: map[string]string{"KCIDB_JWT_FILE": tokenFile, "UNIFIED_TOKEN": "u"}, c: file, url: fileURL, tok: "from-file"},
		"UNIFIED_TOKEN_FILE":                 {env: map[string]string{"UNIFIED_TOKEN_FILE": tokenFile}, c: file, url: fileURL, tok: "from-file"},
		"both KCIDB_JWT and its file":        {env: map[string]string{"KCIDB_JWT": "j", "KCIDB_JWT_FILE": tokenFile}, c: file, err: "KCIDB_JWT and KCIDB_JWT_FILE are both set"},
		"file that is not there":             {env: map[string]string{"KCIDB_JWT_FILE": tokenFile + "x"}, c: file, err: "KCIDB_JWT_FILE: "},
		"set but empty is unset":             {env: map[string]string{"KCIDB_JWT": "", "KCIDB_REST": "", "UNIFIED_TOKEN": ""}, c: file, url: fileURL, tok: "file-jwt"},
		"rest with port and path":            {env: map[string]string{"KCIDB_REST": "http://r@127.0.0.1:8080/a/"}, url: "http://127.0.0.1:8080/a/submit", tok: "r"},
		"rest that ends in /submit":          {env: map[string]string{"KCIDB_REST": "https://r@h/submit"}, url: "https://h/submit", tok: "r"},
		"rest that ends in /submit/":         {env: map[string]string{"KCIDB_REST": "https://r@h/submit/"}, url: "https://h/submit", tok: "r"},
		"rest token as it stands":            {env: map[string]string{"KCIDB_REST": "https://a%2Fb@h"}, url: "https://h/submit", tok: "a%2Fb"},
		"rest without token, next source":    {env: map[string]string{"KCIDB_REST": "https://h/"}, c: file, url: fileURL, tok: "file-jwt", note: "KCIDB_REST has no token"},
		"rest that is no URL":                {env: map[string]string{"KCIDB_REST": "hunter2"}, c: file, err: "KCIDB_REST must be https://<token>@host"},
		"rest of another scheme":             {env: map[string]string{"KCIDB_REST": "ftp://hunter2@h"}, c: file, err: "KCIDB_REST must be https://<token>@host"},
		"URL that does not end in /submit":   {env: map[string]string{"KCIDB_SUBMIT_URL": "https://h/api/", "KCIDB_JWT": "j"}, err: "try https://h/api/submit"},
		"URL with a password":                {env: map[string]string{"KCIDB_SUBMIT_URL": "https://hunter2@h/submit", "KCIDB_JWT": "j"}, err: "without credentials"},
	} {
		got, err := Resolve(func(n string) (string, bool) { v, ok := c.env[n]; return v, ok }, c.c)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s: error %v, want %q", name, err, c.err)
			}
		case err != nil || got.URL != c.url || got.Token.Reveal() != c.tok:
			t.Errorf("%s: %s %q, %v; want %s %q", name, got.URL, got.Token.Reveal(), err, c.url, c.tok)
		case !strings.Contains(strings.Join(got.Notes, "\n"), c.note):
			t.Errorf("%s: notes %q, want %q", name, got.Notes, c.note)
		}
	}
}

func TestMissingTokenIsSaidExactly(t *testing.T) {
	t.Parallel()
	_, err := Resolve(nil, config.KernelCI{KCIDBSubmitURL: "https://db.kernelci.org/submit"})
	if !errors.Is(err, ErrNoToken) || err.Error() != "Missing required configuration: kernelci.kcidb_jwt" {
		t.Errorf("got %v", err)
	}
}
