package broker

import (
	"fmt"

	"github.com/rs/zerolog"
)

// logger gives the server's words to ours. What the server notices is for
// people who look into the broker: debug. What it warns of or fails at is not.
type logger struct {
	log *zerolog.Logger
	// fatal gets the first error that the server cannot go on with.
	fatal chan error
}

func newLogger(log *zerolog.Logger) logger { return logger{log, make(chan error, 1)} }

func (l logger) Noticef(format string, v ...any) { l.log.Debug().Msgf("nats-server: "+format, v...) }
func (l logger) Warnf(format string, v ...any)   { l.log.Warn().Msgf("nats-server: "+format, v...) }
func (l logger) Errorf(format string, v ...any)  { l.log.Error().Msgf("nats-server: "+format, v...) }
func (l logger) Debugf(format string, v ...any)  { l.log.Debug().Msgf("nats-server: "+format, v...) }
func (l logger) Tracef(format string, v ...any)  { l.log.Trace().Msgf("nats-server: "+format, v...) }

// Fatalf would end nats-server's own process. Ours decides for itself: Start
// returns the error.
func (l logger) Fatalf(format string, v ...any) {
	err := fmt.Errorf(format, v...)
	select {
	case l.fatal <- err:
	default:
		l.log.Error().Err(err).Msg("nats-server cannot go on")
	}
}
