package broker

import "github.com/rs/zerolog"

// logger gives the server's words to ours. What the server notices is for
// people who look into the broker: debug. What it warns of or fails at is not.
type logger struct{ log *zerolog.Logger }

func (l logger) Noticef(format string, v ...any) { l.log.Debug().Msgf("nats-server: "+format, v...) }
func (l logger) Warnf(format string, v ...any)   { l.log.Warn().Msgf("nats-server: "+format, v...) }
func (l logger) Errorf(format string, v ...any)  { l.log.Error().Msgf("nats-server: "+format, v...) }
func (l logger) Debugf(format string, v ...any)  { l.log.Debug().Msgf("nats-server: "+format, v...) }
func (l logger) Tracef(format string, v ...any)  { l.log.Trace().Msgf("nats-server: "+format, v...) }

// Fatalf only logs: the server says it and then shuts down, which Start sees.
func (l logger) Fatalf(format string, v ...any) { l.log.Error().Msgf("nats-server: "+format, v...) }
