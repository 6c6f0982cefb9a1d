package scrub

import "strings"

// least is the shortest value that counts as a credential, in bytes
// (predecessor.md 1.2).
const least = 6

var (
	ident   = newClass("A-Za-z0-9_.-")
	quotes  = newClass("\"'`")
	control = func() *class {
		c := newClass("\x7f")
		for i := range ' ' + 1 {
			c[i] = true
		}
		return c
	}()
	notControl = func() *class {
		c := newClass("")
		for i := range c {
			c[i] = !control[i]
		}
		return c
	}()
	trailing = newClass(",;)}]")
	closing  = newClass(",:}])>;&|\\")
	schemes  = []string{"bearer", "basic", "digest", "token", "negotiate", "ntlm", "apikey", "aws4-hmac-sha256", "aws4-ecdsa-p256-sha256", "sharedkey", "sharedkeylite"}
)

// field is what stands behind a = or a colon.
func (w *window) field(i int) (match, bool) {
	if w.buf[i] == ':' && w.at(i+1) == '/' && w.at(i+2) == '/' {
		return w.url(i)
	}
	if w.buf[i] == ':' && w.at(i+1) == ':' {
		return match{}, false
	}
	key, before := w.key(i)
	if len(key) < 3 {
		return match{}, false
	}
	kind, ok := w.keyKind(key, before, w.buf[i])
	if !ok {
		return match{}, false
	}
	from := i + 1
	if w.at(from) == '>' {
		from++
	}
	from = w.run(from, blank, 8)
	switch {
	case kind == kindAuthorization && w.buf[i] == ':':
		return w.header(from, kind)
	case kind == kindCookie:
		return w.cookie(from)
	}
	m, ok := w.value(from, kind, w.buf[i], before)
	if !ok {
		return match{}, false
	}
	if normal(key) == "pwd" && w.buf[m.start] == '/' {
		// A shell's working directory.
		return match{}, false
	}
	return m, true
}

// key is the name before the separator i, and the byte before it.
func (w *window) key(i int) (key []byte, before byte) {
	low := max(w.floor, i-lookbehind)
	j := i
	if w.buf[i] == '=' && j > low && w.buf[j-1] == ':' {
		j--
	}
	for n := 0; j > low && n < 3 && blank[w.buf[j-1]]; n++ {
		j--
	}
	if j-1 > low && w.buf[j-1] == ']' && quotes[w.buf[j-2]] {
		j--
	}
	for n := 0; j > low && n < 3 && (quotes[w.buf[j-1]] || w.buf[j-1] == '\\'); n++ {
		j--
	}
	k := j
	for k > low && ident[w.buf[k-1]] {
		k--
	}
	return w.buf[k:j], w.back(k - 1)
}

// keyword is the end of a key, as normal writes it.
type keyword struct {
	end  string
	kind int
}

// keywords by their last byte.
var keywords = func() (by [256][]keyword) {
	add := func(kind int, ends string) {
		for e := range strings.FieldsSeq(ends) {
			by[e[len(e)-1]] = append(by[e[len(e)-1]], keyword{e, kind})
		}
	}
	add(kindAWSSecret, "secretaccesskey awssecretkey")
	add(kindAWSSession, "sessiontoken securitytoken")
	add(kindAzure, "accountkey sharedaccesskey storagekey")
	add(kindSignature, "sig xamzsignature xgoogsignature")
	add(kindAuthorization, "authorization")
	add(kindCookie, "cookie")
	add(kindKV, "password passwd passphrase passcode pass sshpass pwd secret token apikey accesskey secretkey privatekey authkey encryptionkey "+
		"signingkey masterkey clientkey sessionkey secretkeybase credentials auth psk")
	return by
}()

// keyKind tells what a key's value is.
func (w *window) keyKind(key []byte, before, sep byte) (int, bool) {
	list := keywords[lower(key[len(key)-1])]
	if list == nil {
		return 0, false
	}
	n := normal(key)
	for _, k := range list {
		if !strings.HasSuffix(n, k.end) {
			continue
		}
		switch k.end {
		case "sig":
			if n != "sig" || sep != '=' || before != '?' && before != '&' && before != ';' {
				continue
			}
		case "pass", "psk":
			// Not compass and bypass.
			if p := len(key) - len(k.end) - 1; p >= 0 && key[p]|0x20 >= 'a' && key[p]|0x20 <= 'z' && (key[p+1] >= 'a' || key[p] < 'a') {
				continue
			}
		case "pwd":
			if string(key) == "PWD" || string(key) == "OLDPWD" {
				continue
			}
		case "auth":
			// As in .npmrc and Docker's config.json; mount options have auth= too.
			if string(key) != "_auth" && (string(key) != "auth" || before != '"' && !quotes[before]) {
				continue
			}
		case "credentials":
			if sep != '=' {
				continue
			}
		case "cookie":
			if sep != ':' || n != "cookie" && n != "setcookie" {
				continue
			}
		}
		return k.kind, true
	}
	return 0, false
}

// normal is a key in lower case without separators.
func normal(key []byte) string {
	var b [lookbehind]byte
	n := 0
	for _, c := range key {
		if c != '_' && c != '-' && c != '.' {
			b[n] = lower(c)
			n++
		}
	}
	return string(b[:n])
}

// flag is --password VALUE.
func (w *window) flag(i int) (match, bool) {
	if w.back(i-1) == '-' || !w.has(i, "--") {
		return match{}, false
	}
	e := w.run(i+2, flagName, 32)
	from := w.run(e, blank, 8)
	if e == i+2 || from == e || w.at(from) == '-' {
		return match{}, false
	}
	key := w.buf[i+2 : e]
	if kind, ok := w.keyKind(key, '-', ' '); !ok || kind != kindKV || w.anyToken(i+2, e) {
		return match{}, false
	}
	return w.value(from, kindKV, ' ', ' ')
}

var flagName = newClass("a-z-")

// value is a credential from i on, behind the separator sep of a key that stands
// behind the byte before.
func (w *window) value(i, kind int, sep, before byte) (match, bool) {
	i, quote := w.opening(i)
	i = w.scheme(i)
	if w.markerAt(i) > 0 {
		return match{}, false
	}
	if m, ok := w.pem(i); ok {
		return m, true
	}
	end, on := 0, (*class)(nil)
	if quote != "" {
		end, on = w.quoted(i, quote)
	}
	if end == 0 {
		end, on = w.bare(i, before)
	}
	if end < i+least || end < i+lookahead/4 && w.harmless(i, end, sep) {
		return match{}, false
	}
	m := match{kind: kind, start: i, end: end, on: on}
	if t, ok := w.token(i); ok && t.end >= end && on == nil {
		m.kind, m.end, m.on = t.kind, t.end, t.on
	}
	return m, true
}

// opening skips an opening quote, also one escaped as in JSON within JSON.
func (w *window) opening(i int) (int, string) {
	switch b := w.at(i); {
	case quotes[b]:
		return i + 1, string(rune(b))
	case b == '\\' && quotes[w.at(i+1)]:
		return i + 2, `\` + string(rune(w.at(i+1)))
	}
	return i, ""
}

// scheme skips Bearer and the like before a value.
func (w *window) scheme(i int) int {
	for _, s := range schemes {
		if w.hasFold(i, s) {
			if e := w.run(i+len(s), blank, 8); e > i+len(s) {
				return e
			}
		}
	}
	return i
}

// quoted is the end of a value that quote closes on the same line; 0 when
// nothing closes it, or a marker of this pass is in it: then it is not what a
// quote was opened for.
func (w *window) quoted(i int, quote string) (int, *class) {
	const sight = lookahead / 4
	for k := i; k < i+sight; k++ {
		switch b := w.at(k); {
		case b == '\n' || b == '\r' || b == 0:
			return 0, nil
		case b == '[' && w.markerAt(k) > 0 && !w.ownAt(k):
			return 0, nil
		case b == '\\' && len(quote) == 2:
			if w.at(k+1) == quote[1] {
				return k, nil
			}
		case b == '\\':
			k++
		case b == quote[0] && len(quote) == 1:
			return k, nil
		}
	}
	return i + sight, notControl
}

// bare is the end of a value without quotes: a blank, a marker of this pass, a
// quote that closes something, or, in a list of keys like a query, the separator
// before the next.
// A password may have all of these separators in it, so they end only a value
// whose key stands behind one.
func (w *window) bare(i int, before byte) (int, *class) {
	const sight = lookahead / 4
	next := separator(before)
	k := i
	for ; k < i+sight; k++ {
		b := w.at(k)
		if control[b] || quotes[b] && w.closes(k) || b == '\\' && quotes[w.at(k+1)] {
			break
		}
		if b == '[' && w.markerAt(k) > 0 && !w.ownAt(k) {
			break
		}
		if next != 0 && b == next && w.keyFollows(k+1) {
			break
		}
	}
	if k == i+sight {
		return k, notControl
	}
	for k > i && trailing[w.buf[k-1]] {
		k--
	}
	return k, nil
}

// closes tells whether the quote at i closes something, by what follows it. A
// marker there may stand for a value that began with any of that.
func (w *window) closes(i int) bool {
	b := w.at(i + 1)
	return control[b] || closing[b] || w.markerAt(i+1) > 0
}

// separator is what ends a value in a list whose key stands behind before.
func separator(before byte) byte {
	switch before {
	case '?', '&':
		return '&'
	case '{', '(':
		return ','
	case ';', ',':
		return before
	}
	return 0
}

// keyFollows tells whether a name and a separator are at i.
func (w *window) keyFollows(i int) bool {
	k := i
	if quotes[w.at(k)] {
		k++
	}
	for k < i+128 {
		e := w.run(k, ident, 128)
		e += w.markerAt(e)
		if e == k {
			break
		}
		k = e
	}
	if k > i && quotes[w.at(k)] {
		k++
	}
	return k > i && (w.at(k) == '=' || w.at(k) == ':')
}

// header is the rest of a line after Authorization: and its scheme.
func (w *window) header(i, kind int) (match, bool) {
	const shortest, sight = 4, lookahead / 4
	i, quote := w.opening(i)
	i = w.scheme(i)
	if w.markerAt(i) > 0 {
		return match{}, false
	}
	e := i
	for ; e < i+sight; e++ {
		b := w.at(e)
		if b == '\n' || b == '\r' || b == 0 {
			break
		}
		if quotes[b] && (quote == "" || quote[len(quote)-1] == b) && w.closes(e) {
			break
		}
		if b == '\\' && quotes[w.at(e+1)] {
			break
		}
	}
	for e > i && blank[w.buf[e-1]] {
		e--
	}
	if e < i+shortest || e < i+sight && harmlessWord(w.buf[i:e]) {
		return match{}, false
	}
	return w.long(match{kind: kind, start: i, end: e}, i+sight, notEOL), true
}

var cookieName = newClass("A-Za-z0-9_.!#$%&*+^|~-")

// cookie is the rest of a line after Cookie: and Set-Cookie:, if there is a
// name=value.
func (w *window) cookie(i int) (match, bool) {
	from, _ := w.opening(i)
	e := w.run(from, cookieName, 256)
	if e == from || w.at(e) != '=' {
		return match{}, false
	}
	return w.header(i, kindCookie)
}

var userName = newClass("A-Za-z0-9._%+-")

// url is the password in scheme://user:password@host.
func (w *window) url(i int) (match, bool) {
	const sight = lookahead / 8
	// An address of IPv6 is full of colons.
	if !alnum[w.back(i-1)] || w.at(i+len("://")) == '[' && w.markerAt(i+len("://")) == 0 {
		return match{}, false
	}
	from := i + len("://")
	last, colon := 0, 0
	for k := from; k < from+sight; k++ {
		b := w.at(k)
		if n := w.markerAt(k); b == '[' && n > 0 {
			if !w.ownAt(k) {
				break
			}
			// A marker's colon is none of the URL's.
			k += n - 1
			continue
		}
		// A password with a slash in it is not legal, and not rare.
		if control[b] || quotes[b] || b == '<' || b == '>' || b == '\\' ||
			(b == '/' || b == '?' || b == '#') && (last > 0 || colon == 0 || alnumPort(w.buf[colon+1:k])) || b == ':' && w.has(k, "://") {
			break
		}
		if b == '@' {
			last = k
		}
		if b == ':' && colon == 0 {
			colon = k
		}
	}
	if last == 0 || w.markerAt(from) == last-from {
		return match{}, false
	}
	m := match{kind: kindURL, start: from, end: last}
	if colon == 0 || colon > last {
		// A token alone: only what is too long for a name.
		return m, last-from >= 20 && w.run(from, wordDash, sight) == last
	}
	if plain := w.run(from, userName, 64) == colon; plain && !w.anyToken(from, colon) {
		m.start = colon + 1
	}
	if colon+1 == last || m.start == colon+1 && w.markerAt(m.start) == last-m.start {
		return match{}, false
	}
	return m, true
}

// alnumPort tells whether what follows the host is a port, or a variable's
// place for one.
func alnumPort(s []byte) bool {
	return len(s) <= 5 && len(strings.Trim(string(s), "0123456789")) == 0
}

// harmless tells that what stands where a credential would is none.
func (w *window) harmless(i, end int, sep byte) bool {
	v := w.buf[i:end]
	if harmlessWord(v) {
		return true
	}
	switch {
	case v[0] == '0' && v[1] == 'x' && len(v) <= 18 && w.run(i+2, hex, 16) == end:
		// A kernel's pointer or cookie.
		return true
	case v[0] == '*':
		return len(strings.TrimLeft(string(v), "*")) == 0
	case v[0] == '$':
		name := i + 1
		if v[1] == '{' {
			name++
		}
		e := w.run(name, word, 64)
		closed := v[1] != '{' && e == end || v[1] == '{' && (e == end || e == end-1 && w.at(e) == '}')
		return e > name && closed && !digit(w.buf[name]) && !w.anyToken(name, e)
	case sep == ':' && v[len(v)-1] == ':':
		// The next part of a log line's prefix, not a value.
		return w.run(i, word, 64) == end-1 && !w.anyToken(i, i+1)
	}
	return false
}

func digit(b byte) bool { return '0' <= b && b <= '9' }

// harmlessWords stand behind "password:" and "bearer" in messages.
var harmlessWords = func() map[string]bool {
	m := map[string]bool{}
	for s := range strings.FieldsSeq("accepted account activated aging authentication authorization authorized cannot capability changed changing checking choose " +
		"configuration configured context correct created creation default deleted denied disabled disabling enabled enabling expected expired expires expiry " +
		"failed failure finished generated granted handler incorrect information initialized installed invalid loaded loading locked management manager " +
		"matched mismatch missing module needed negotiation optional password passwords passphrase permission please present prompt provided received " +
		"refused rejected removed required requests requires reading requested restored revoked secret secrets service should skipped skipping started starting " +
		"status stopped stored success successful successfully support supported timeout tokens unable unavailable undefined unexpected unknown unlocked unset " +
		"unsupported updated updating validation verification verified warning waiting written") {
		m[s] = true
	}
	return m
}()

func harmlessWord(v []byte) bool {
	if len(v) > 20 {
		return false
	}
	s := strings.ToLower(strings.Trim(string(v), ".:"))
	return harmlessWords[s]
}
