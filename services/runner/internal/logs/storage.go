package logs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/backoff"
)

const (
	// uploads are tried this often: some 20 s in all when the storage refuses,
	// while the machine waits. The file stays on disk in any case.
	uploads = 4
	// uploadTime is for one try: 16 MiB at 256 KiB/s.
	uploadTime = time.Minute
	// maxReply is what is read of an answer, in bytes.
	maxReply = 4 << 10
)

var uploadBackoff = backoff.Policy{Min: time.Second, Max: 10 * time.Second}

// storage is a kernelci-storage server (kernelci-wire.md 6.3): POST /v1/file as
// multipart with the fields path and file0; the file is then at
// <url>/<path>/<name>.
type storage struct {
	url, path, token string
	client           *http.Client
}

func newStorage(s Settings, transport http.RoundTripper) *storage {
	return &storage{
		url: strings.TrimSuffix(s.StorageURL, "/"), path: strings.Trim(s.StoragePath, "/"), token: s.StorageToken.Reveal(),
		client: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
			// The token is for this host and nobody else's.
			return http.ErrUseLastResponse
		}},
	}
}

func (s *storage) put(ctx context.Context, runID string, f file) (string, error) {
	path := runID
	if s.path != "" {
		path = s.path + "/" + runID
	}
	for n := 1; ; n++ {
		again, err := s.upload(ctx, path, f)
		if err == nil {
			u, err := url.JoinPath(s.url, path, url.PathEscape(f.name))
			return u, err
		}
		if !again || n == uploads {
			return "", fmt.Errorf("uploading %s to %s (try %d): %w", f.name, s.url, n, err)
		}
		zerolog.Ctx(ctx).Debug().Err(err).Str("file", f.name).Msg("upload failed; trying again")
		if err := backoff.Sleep(ctx, uploadBackoff.Delay(n)); err != nil {
			return "", err
		}
	}
}

// upload tries once; again says whether another try may go better.
func (s *storage) upload(ctx context.Context, path string, f file) (again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, uploadTime)
	defer cancel()
	content, err := open(f.path)
	if err != nil {
		return false, err
	}
	defer content.Close()
	// The form's text before and after the file, so that the file is streamed.
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	if err := w.WriteField("path", path); err != nil {
		return false, err
	}
	if _, err := w.CreateFormFile("file0", f.name); err != nil {
		return false, err
	}
	head := form.Len()
	if err := w.Close(); err != nil {
		return false, err
	}
	body := io.MultiReader(bytes.NewReader(form.Bytes()[:head]), io.LimitReader(content, f.size), bytes.NewReader(form.Bytes()[head:]))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/v1/file", body)
	if err != nil {
		return false, err
	}
	req.ContentLength = int64(form.Len()) + f.size
	req.Header.Set("Content-Type", w.FormDataContentType())
	req.Header.Set("Authorization", "Bearer "+s.token)
	resp, err := s.client.Do(req)
	if err != nil {
		return true, err
	}
	defer resp.Body.Close()
	reply, _ := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	switch c := resp.StatusCode; {
	case c/100 == 2:
		return false, nil
	case c == http.StatusUnauthorized || c == http.StatusForbidden:
		return false, fmt.Errorf("%s: the token in logs.storage_token is not accepted", resp.Status)
	case c/100 == 3:
		return false, fmt.Errorf("%s: uploads are not redirected; set logs.storage_url to the storage's real address", resp.Status)
	default:
		reply := strings.ReplaceAll(string(bytes.ToValidUTF8(reply, nil)), s.token, "********")
		return c >= 500 || c == http.StatusTooManyRequests || c == http.StatusRequestTimeout, fmt.Errorf("%s: %.200q", resp.Status, reply)
	}
}
