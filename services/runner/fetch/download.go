package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/backoff"
)

// download brings u into the store and gives its SHA-256. sum is what it must
// be, if known.
func (f *Fetcher) download(ctx context.Context, u *url.URL, sum string, report func(int64, int64)) (string, error) {
	p, err := f.store.part(u.String())
	if err != nil {
		return "", temporary(err, "Check the download cache's disk.")
	}
	placed := false
	defer func() {
		if placed {
			p.file.Close()
		} else {
			p.close()
		}
	}()
	t := &transfer{f: f, u: u, want: sum, part: p, report: report}
	// Attempts count from the last one that got further than any before.
	var furthest int64
	for n := 1; ; n++ {
		got, err := t.attempt(ctx)
		placed = t.stored
		if err == nil {
			return got, nil
		}
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		wait, again := t.judge(err)
		if !again {
			p.discard()
			return "", permanent(err, fixFor(err))
		}
		if p.size > furthest {
			furthest, n = p.size, 1
		}
		if n >= f.opts.Attempts {
			return "", temporary(fmt.Errorf("%d attempts: %w", n, err), fixFor(err))
		}
		wait = max(wait, f.opts.Backoff.Delay(n))
		zerolog.Ctx(ctx).Warn().Err(err).Str("url", redact(u)).Int64("have", p.size).
			Dur("wait", wait).Msg("download interrupted; it will be resumed")
		if err := backoff.Sleep(ctx, wait); err != nil {
			return "", err
		}
	}
}

// transfer is one download over several attempts.
type transfer struct {
	f      *Fetcher
	u      *url.URL
	want   string
	part   *part
	report func(int64, int64)
	// stored is set once the part has become an object.
	stored bool
	// resumed is set when bytes of an earlier attempt are in the part: then a
	// wrong checksum may be the resuming's fault.
	resumed bool
}

// errStall ends an attempt whose server went silent.
var errStall = errors.New("the server sent nothing for too long")

// attempt asks once and reads as far as it gets.
func (t *transfer) attempt(ctx context.Context) (string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(t.f.opts.Stall, func() { cancel(errStall) })
	defer watch.Stop()

	cached, haveCached := t.f.store.lookup(t.u.String())
	if t.want != "" && cached.SHA256 != t.want {
		haveCached = false
	}
	req, err := t.request(ctx, cached, haveCached)
	if err != nil {
		return "", err
	}
	resp, err := t.f.client.Do(req)
	if err != nil {
		return "", t.cause(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotModified && haveCached {
		return cached.SHA256, nil
	}
	total, err := t.accept(resp)
	if err != nil {
		return "", err
	}
	if err := t.copy(resp.Body, total, func() { watch.Reset(t.f.opts.Stall) }); err != nil {
		return "", t.cause(ctx, err)
	}
	return t.finish()
}

// cause hides the URL that net/http puts into its errors, and says stall for a
// stall.
func (t *transfer) cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); errors.Is(c, errStall) {
		err = c
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err
	}
	return fmt.Errorf("%s: %w", redact(t.u), err)
}

// request asks for the rest of what is here, else for news about what is
// cached, else for the file.
func (t *transfer) request(ctx context.Context, cached record, haveCached bool) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", redact(t.u), err)
	}
	// Ranges and lengths must be those of the file, not of a compressed form.
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", "pullab")
	switch v := t.part.ifRange(); {
	case t.part.size > 0 && v != "":
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", t.part.size))
		req.Header.Set("If-Range", v)
	case haveCached && cached.ETag != "":
		req.Header.Set("If-None-Match", cached.ETag)
	case haveCached && cached.LastModified != "":
		req.Header.Set("If-Modified-Since", cached.LastModified)
	}
	return req, nil
}

// accept prepares the part for what resp brings and gives the file's length,
// -1 when unknown.
func (t *transfer) accept(resp *http.Response) (int64, error) {
	var total int64
	switch resp.StatusCode {
	case http.StatusOK:
		v := validator{ETag: resp.Header.Get("ETag"), LastModified: resp.Header.Get("Last-Modified")}
		if err := t.part.reset(v); err != nil {
			return 0, err
		}
		t.resumed = false
		total = resp.ContentLength
	case http.StatusPartialContent:
		start, length, ok := parseContentRange(resp.Header.Get("Content-Range"))
		if !ok || start != t.part.size {
			return 0, t.restart(errors.New("the server resumed at another place than asked"))
		}
		t.resumed = true
		total = length
	case http.StatusRequestedRangeNotSatisfiable:
		return 0, t.restart(errors.New("the server has no more of the file than is here"))
	default:
		return 0, &replyError{
			StatusError: StatusError{URL: redact(t.u), Status: resp.StatusCode},
			after:       retryAfter(resp.Header.Get("Retry-After")),
		}
	}
	if total > t.f.opts.MaxFile {
		return 0, fmt.Errorf("%w: %w", errTooLarge, tooLarge(t.u, t.f.opts.MaxFile))
	}
	return total, nil
}

// errTooLarge is permanent.
var errTooLarge = errors.New("too large")

// restart throws the part away, so that the next attempt begins at the
// beginning.
func (t *transfer) restart(err error) error {
	return errors.Join(fmt.Errorf("%s: %w", redact(t.u), err), t.part.reset(validator{}))
}

func (t *transfer) copy(body io.Reader, total int64, alive func()) error {
	buf := make([]byte, 256<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			alive()
			if t.part.size+int64(n) > t.f.opts.MaxFile {
				return fmt.Errorf("%w: %w", errTooLarge, tooLarge(t.u, t.f.opts.MaxFile))
			}
			if _, err := t.part.Write(buf[:n]); err != nil {
				return err
			}
			t.report(t.part.size, total)
		}
		if errors.Is(err, io.EOF) {
			if total >= 0 && t.part.size != total {
				return io.ErrUnexpectedEOF
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// finish checks what came and makes it an object.
func (t *transfer) finish() (string, error) {
	got := t.part.digest()
	if t.want != "" && got != t.want {
		err := &ChecksumError{URL: redact(t.u), Want: t.want, Got: got}
		if reset := t.part.reset(validator{}); reset != nil || !t.resumed {
			return "", errors.Join(err, reset)
		}
		return "", &resumedWrong{err}
	}
	v := t.part.validator
	if err := t.f.store.place(t.part, got); err != nil {
		return "", err
	}
	t.stored = true
	if v != (validator{}) {
		if err := t.f.store.remember(t.u.String(), record{URL: redact(t.u), SHA256: got, validator: v}); err != nil {
			return "", err
		}
	}
	return got, nil
}

// resumedWrong is a checksum that is wrong after a resumed download, which one
// download from the beginning may set right.
type resumedWrong struct{ *ChecksumError }

func (e *resumedWrong) Unwrap() error { return e.ChecksumError }

// replyError is a StatusError with the server's wish when to ask again.
type replyError struct {
	StatusError
	after time.Duration
}

func (e *replyError) Error() string { return e.StatusError.Error() }
func (e *replyError) Unwrap() error { return &e.StatusError }

// judge says whether another attempt makes sense and the least wait before it.
func (t *transfer) judge(err error) (time.Duration, bool) {
	if _, ok := errors.AsType[*resumedWrong](err); ok {
		return 0, true
	}
	if _, ok := errors.AsType[*ChecksumError](err); ok {
		return 0, false
	}
	if errors.Is(err, errTooLarge) || errors.Is(err, errRedirect) {
		return 0, false
	}
	r, ok := errors.AsType[*replyError](err)
	if !ok {
		return 0, true
	}
	switch r.Status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return r.after, true
	}
	return r.after, r.Status >= 500
}

func fixFor(err error) string {
	if r, ok := errors.AsType[*StatusError](err); ok {
		switch r.Status {
		case http.StatusNotFound, http.StatusGone:
			return "The file is not there; the job definition names one that was removed or never published."
		case http.StatusUnauthorized, http.StatusForbidden:
			return "The server does not give this file to everyone; pullab downloads without credentials."
		}
		return "Look at the server that holds the file."
	}
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return "Free space in the download cache or lower its limit."
	case errors.Is(err, os.ErrPermission):
		return "Let the runner write to its download cache."
	case errors.Is(err, errTooLarge):
		return "Raise the limit for downloads if the job really needs this file."
	case errors.Is(err, errRedirect):
		return "Name the file's final address in the job definition."
	}
	return "Check the network between this host and the server."
}

// maxRetryAfter bounds what a server may ask for.
const maxRetryAfter = 5 * time.Minute

// retryAfter reads the header's seconds; its date form is taken as no wish.
func retryAfter(h string) time.Duration {
	s, err := strconv.Atoi(strings.TrimSpace(h))
	if err != nil || s < 0 {
		return 0
	}
	return min(time.Duration(min(s, 1<<20))*time.Second, maxRetryAfter)
}

// parseContentRange reads "bytes 5-9/10"; length is -1 for "*" (RFC 9110,
// 14.4).
func parseContentRange(h string) (start, length int64, ok bool) {
	rest, found := strings.CutPrefix(strings.TrimSpace(h), "bytes ")
	if !found {
		return 0, 0, false
	}
	span, size, found := strings.Cut(rest, "/")
	if !found {
		return 0, 0, false
	}
	first, last, found := strings.Cut(span, "-")
	if !found {
		return 0, 0, false
	}
	start, err := strconv.ParseInt(first, 10, 64)
	if err != nil || start < 0 {
		return 0, 0, false
	}
	end, err := strconv.ParseInt(last, 10, 64)
	if err != nil || end < start {
		return 0, 0, false
	}
	if size == "*" {
		return start, -1, true
	}
	length, err = strconv.ParseInt(size, 10, 64)
	if err != nil || length <= end {
		return 0, 0, false
	}
	return start, length, true
}
