package topology

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/pullab/pullab/pkg/bus"
)

// Options are what a deployment decides.
type Options struct {
	// Replicas of every asset: 1, or 3 where the cluster has 3.
	Replicas int
	// Memory keeps everything in memory: tests only.
	Memory bool
}

// ErrDrift is what Verify's error wraps when the broker's assets differ.
var ErrDrift = errors.New("the broker's streams differ from pullab's")

// change is one difference and how to end it.
type change struct {
	line  string
	apply func(ctx context.Context) error
}

// Plan lists what Apply would create or change, one line each, empty when the
// broker has it all. A difference that JetStream cannot change is an error that
// says what to do.
func Plan(ctx context.Context, b *bus.Bus, o Options) ([]string, error) {
	changes, err := plan(ctx, b, o)
	var lines []string
	for _, c := range changes {
		lines = append(lines, c.line)
	}
	return lines, err
}

// Apply creates what is missing and changes what differs. It never deletes, and
// it leaves a paused consumer paused. Several processes may apply at once.
func Apply(ctx context.Context, b *bus.Bus, o Options) error {
	// A second round sees what another process made meanwhile.
	for range 2 {
		changes, err := plan(ctx, b, o)
		if err != nil {
			return err
		}
		for _, c := range changes {
			if c.apply == nil {
				continue
			}
			zerolog.Ctx(ctx).Debug().Str("change", c.line).Msg("changing the broker's assets")
			if err := c.apply(ctx); err != nil {
				return fmt.Errorf("%s: %w", c.line, err)
			}
		}
		if len(changes) == 0 {
			return nil
		}
	}
	return nil
}

// Verify fails with the differences when the broker's assets are not these. It
// also finds consumers that pullab does not know: on a work queue one takes jobs
// away, on PULLAB_RESULTS one holds every result for ever.
func Verify(ctx context.Context, b *bus.Bus, o Options) error {
	lines, err := Plan(ctx, b, o)
	if err != nil {
		return err
	}
	for _, s := range assets(o) {
		if s.config.Discard != jetstream.DiscardNew || s.kind != "stream" {
			continue
		}
		unknown, err := strangers(ctx, b.JS, s)
		if err != nil {
			return err
		}
		lines = append(lines, unknown...)
	}
	if len(lines) == 0 {
		return nil
	}
	return fmt.Errorf("%w; run `pullab topology apply`, or start with nats.topology: apply:\n  %s", ErrDrift, strings.Join(lines, "\n  "))
}

// strangers are consumers of s that topology does not declare.
func strangers(ctx context.Context, js jetstream.JetStream, s stream) ([]string, error) {
	st, err := js.Stream(ctx, s.config.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.name(), err)
	}
	known := map[string]bool{}
	for _, c := range s.consumers {
		known[c.Durable] = true
	}
	names := st.ConsumerNames(ctx)
	var lines []string
	for n := range names.Name() {
		if !known[n] {
			lines = append(lines, fmt.Sprintf("consumer %s/%s: not pullab's; it keeps messages from being removed: `nats consumer rm %s %s`",
				s.config.Name, n, s.config.Name, n))
		}
	}
	if err := names.Err(); err != nil {
		return nil, fmt.Errorf("%s: listing consumers: %w", s.name(), err)
	}
	return lines, nil
}

func plan(ctx context.Context, b *bus.Bus, o Options) ([]change, error) {
	if err := checkVersion(b.Conn.ConnectedServerVersion()); err != nil {
		return nil, err
	}
	var changes []change
	var errs []error
	for _, s := range assets(o) {
		cs, err := planStream(ctx, b.JS, s)
		changes = append(changes, cs...)
		errs = append(errs, err)
	}
	return changes, errors.Join(errs...)
}

func planStream(ctx context.Context, js jetstream.JetStream, s stream) ([]change, error) {
	st, err := js.Stream(ctx, s.config.Name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return createStream(js, s), nil
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return nil, fmt.Errorf("the NATS server has no JetStream for us; start it with -js, or give the account JetStream: %w", err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", s.name(), err)
	}
	have := st.CachedInfo().Config
	changes, err := compare(s.name(), streamFields(s.config, &have), "nats stream rm "+s.config.Name, func(ctx context.Context) error {
		_, err := js.UpdateStream(ctx, have)
		return err
	})
	errs := []error{err}
	for _, c := range s.consumers {
		cs, err := planConsumer(ctx, js, s.config.Name, c)
		changes = append(changes, cs...)
		errs = append(errs, err)
	}
	return changes, errors.Join(errs...)
}

// createStream makes s and its consumers. An Interest stream is born with
// Limits retention and becomes Interest when its consumers exist: in between it
// would acknowledge messages and drop them.
func createStream(js jetstream.JetStream, s stream) []change {
	born := s.config
	if born.Retention == jetstream.InterestPolicy {
		born.Retention = jetstream.LimitsPolicy
	}
	changes := []change{{s.name() + ": create, " + s.summary(), func(ctx context.Context) error {
		_, err := js.CreateStream(ctx, born)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return nil // another process was faster; the next round compares
		}
		return err
	}}}
	for _, c := range s.consumers {
		changes = append(changes, createConsumer(js, s.config.Name, c))
	}
	if born.Retention != s.config.Retention {
		changes = append(changes, change{fmt.Sprintf("%s: retention %s → %s", s.name(), born.Retention, s.config.Retention),
			func(ctx context.Context) error {
				_, err := js.UpdateStream(ctx, s.config)
				return err
			}})
	}
	return changes
}

func createConsumer(js jetstream.JetStream, stream string, c jetstream.ConsumerConfig) change {
	return change{fmt.Sprintf("consumer %s/%s: create, filter %s", stream, c.Durable, c.FilterSubject), func(ctx context.Context) error {
		_, err := js.CreateOrUpdateConsumer(ctx, stream, c)
		return err
	}}
}

func planConsumer(ctx context.Context, js jetstream.JetStream, stream string, want jetstream.ConsumerConfig) ([]change, error) {
	name := "consumer " + stream + "/" + want.Durable
	c, err := js.Consumer(ctx, stream, want.Durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrConsumerDoesNotExist) {
		return []change{createConsumer(js, stream, want)}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	have := c.CachedInfo().Config
	return compare(name, consumerFields(want, &have), "nats consumer rm "+stream+" "+want.Durable, func(ctx context.Context) error {
		_, err := js.UpdateConsumer(ctx, stream, have)
		return err
	})
}

// compare gives a line for each field that differs; the last one applies them
// all, in one update. remove is the command that lets pullab make the asset
// anew.
func compare(name string, fields []field, remove string, update func(context.Context) error) ([]change, error) {
	var changes []change
	var errs []error
	for _, f := range fields {
		switch {
		case !f.differs():
		case f.set == nil:
			errs = append(errs, fmt.Errorf("%s has %s %s and needs %s, which JetStream cannot change; let the services empty it, then `%s` and apply again",
				name, f.name, f.have, f.want, remove))
		default:
			f.set()
			changes = append(changes, change{line: name + ": " + f.String()})
		}
	}
	if len(changes) > 0 {
		changes[len(changes)-1].apply = update
	}
	return changes, errors.Join(errs...)
}
