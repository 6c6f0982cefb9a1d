package kcidb

import (
	"errors"
	"net/netip"
	"regexp"
	"strings"
	"time"
)

func ofString(f func(string) error) func(any) error {
	return func(v any) error {
		s, ok := v.(string)
		if !ok {
			return nil // the schema's type rule has its own complaint
		}
		return f(s)
	}
}

// The grammar of RFC 3986, appendix A, as production's rfc3987 package asks for
// with its rule "URI": a scheme, ASCII only, everything else escaped.
const (
	pchar     = `(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})`
	userinfo  = `(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*`
	regName   = `(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*`
	authority = `(?:` + userinfo + `@)?(?:\[([0-9A-Fa-f:.]+)\]|` + regName + `)(?::[0-9]*)?`
	segments  = `(?:/` + pchar + `*)*`
	hierPart  = `(?://` + authority + segments + `|/(?:` + pchar + `+` + segments + `)?|` + pchar + `+` + segments + `|)`
	rest      = `(?:` + pchar + `|[/?])*`
)

var uriPattern = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*:` + hierPart + `(?:\?` + rest + `)?(?:#` + rest + `)?$`)

func uri(s string) error {
	m := uriPattern.FindStringSubmatch(s)
	if m == nil {
		return errors.New("not an absolute URI of escaped ASCII (RFC 3986)")
	}
	if m[1] != "" {
		if a, err := netip.ParseAddr(m[1]); err != nil || !a.Is6() {
			return errors.New("the host in brackets is no IPv6 address")
		}
	}
	return nil
}

// dateTimePattern is that of production's rfc3339-validator package: the offset
// is required, and there is no leap second.
var dateTimePattern = regexp.MustCompile(`^\d{4}-(?:0[1-9]|1[0-2])-\d{2}T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)$`)

func dateTime(s string) error {
	if !dateTimePattern.MatchString(s) {
		return errors.New("not an RFC 3339 time with an offset, as in 2026-08-20T10:18:02+00:00")
	}
	if _, err := time.Parse(time.DateOnly, s[:len(time.DateOnly)]); err != nil || strings.HasPrefix(s, "0000") {
		return errors.New("no such day")
	}
	return nil
}

// PublicURL tells whether s may stand in a row as an address that anybody can
// fetch: http or https, valid by the schema's rule, and without a password.
func PublicURL(s string) bool {
	if !strings.HasPrefix(s, "https://") && !strings.HasPrefix(s, "http://") || uri(s) != nil {
		return false
	}
	host, _, _ := strings.Cut(strings.SplitN(s, "://", 2)[1], "/")
	return host != "" && !strings.ContainsRune(host, '@')
}
