// Package bus is pullab's connection to NATS JetStream.
//
// Everything above the connection (streams, work, records) is in the packages
// topology, queue and ledger; a service passes its *Bus on and never looks
// inside.
package bus

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/backoff"
)

const (
	// dialTimeout of one attempt.
	dialTimeout = 5 * time.Second
	// flushTimeout is how long Close waits for what was written last.
	flushTimeout = 5 * time.Second
	// pingInterval and maxPings find a dead connection in 30 s: half of
	// AckWait, so that a lease has a chance on the next connection.
	pingInterval = 10 * time.Second
	maxPings     = 2
)

// retry paces attempts to connect, first and later.
var retry = backoff.Policy{Min: 200 * time.Millisecond, Max: 5 * time.Second}

// Bus is one connection and its JetStream context. Only the packages that own
// the bus use the fields.
type Bus struct {
	Conn *nats.Conn
	JS   jetstream.JetStream
}

// Options of a connection.
type Options struct {
	// URL of the server or servers, comma separated.
	URL string
	// Name shown in the server's connection list.
	Name string
	// CredsFile is a .creds file; empty without one.
	CredsFile string
	// Server is an in-process server to connect to instead of URL.
	Server nats.InProcessConnProvider
}

// Connect dials until it works or ctx ends; after that it reconnects for ever.
// It does not wait for a server that refuses the credentials: that needs a
// person. Connection changes are logged to ctx's logger.
func Connect(ctx context.Context, o Options) (*Bus, error) {
	where, err := redacted(o)
	if err != nil {
		return nil, err
	}
	if err := checkCreds(o.CredsFile); err != nil {
		return nil, err
	}
	log := zerolog.Ctx(ctx)
	opts := options(ctx, o, where)
	for n := 1; ; n++ {
		nc, err := nats.Connect(o.URL, opts...)
		if err == nil {
			js, err := jetstream.New(nc)
			if err != nil {
				nc.Close()
				return nil, fmt.Errorf("JetStream on %s: %w", where, err)
			}
			return &Bus{Conn: nc, JS: js}, nil
		}
		if permanent(err) {
			return nil, fmt.Errorf("NATS at %s refuses the connection; check nats.creds_file (NATS_CREDS) and the user in nats.url: %w", where, err)
		}
		if n == 1 {
			log.Warn().Err(err).Str("url", where).Msg("no NATS server there yet; trying on")
		}
		if stop := backoff.Sleep(ctx, retry.Delay(n)); stop != nil {
			return nil, fmt.Errorf("no NATS server at %s (%w); start one there, or set nats.url (NATS_URL): %w", where, err, stop)
		}
	}
}

// checkCreds says now what nats.go would say at each attempt. The file's content
// is in no error.
func checkCreds(file string) error {
	if file == "" {
		return nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("nats.creds_file (NATS_CREDS): %w", err)
	}
	if _, err := nkeys.ParseDecoratedJWT(b); err != nil {
		return fmt.Errorf("nats.creds_file (NATS_CREDS): %s has no user JWT in it; `nsc generate creds` makes such a file", file)
	}
	if _, err := nkeys.ParseDecoratedNKey(b); err != nil {
		return fmt.Errorf("nats.creds_file (NATS_CREDS): %s has no user seed in it; `nsc generate creds` makes such a file", file)
	}
	return nil
}

// permanent errors of a first connection do not go away by waiting.
func permanent(err error) bool {
	return errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) ||
		errors.Is(err, nats.ErrAuthRevoked) || errors.Is(err, nats.ErrAccountAuthExpired) ||
		errors.Is(err, nats.ErrNoUserCB) || errors.Is(err, nats.ErrNkeysNotSupported)
}

func options(ctx context.Context, o Options, where string) []nats.Option {
	log := zerolog.Ctx(ctx)
	opts := []nats.Option{
		nats.Name(o.Name),
		nats.MaxReconnects(-1),
		nats.CustomReconnectDelay(retry.Delay),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(maxPings),
		nats.NoCallbacksAfterClientClose(),
		nats.Timeout(dialTimeout),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			log.Warn().Err(err).Str("url", where).Msg("NATS connection lost; reconnecting")
		}),
		nats.ReconnectHandler(func(*nats.Conn) {
			log.Info().Str("url", where).Msg("NATS connection is back")
		}),
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			e := log.Warn().Err(err)
			if s != nil {
				e = e.Str("subject", s.Subject)
			}
			e.Msg("NATS reports an error")
		}),
	}
	if o.CredsFile != "" {
		opts = append(opts, nats.UserCredentials(o.CredsFile))
	}
	if o.Server != nil {
		opts = append(opts, nats.InProcessServer(o.Server))
	}
	return opts
}

// redacted names the server for people, without user and password.
func redacted(o Options) (string, error) {
	if o.Server != nil {
		return "the embedded server", nil
	}
	var urls []string
	for raw := range strings.SplitSeq(o.URL, ",") {
		raw = strings.TrimSpace(raw)
		if !strings.Contains(raw, "://") {
			raw = "nats://" + raw
		}
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" {
			// The parse error quotes the URL, password and all.
			return "", errors.New("nats.url (NATS_URL) is not a URL; write nats://host:port, several with commas between")
		}
		u.User = nil
		urls = append(urls, u.String())
	}
	return strings.Join(urls, ","), nil
}

// Close sends what was written and closes the connection. Callers have ended
// their inboxes before: there is nothing left to drain.
func (b *Bus) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	if b.Conn.IsConnected() {
		// A failed flush has no remedy here: what mattered was acknowledged.
		_ = b.Conn.FlushWithContext(ctx)
	}
	b.Conn.Close()
}
