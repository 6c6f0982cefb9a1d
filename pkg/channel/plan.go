package channel

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// EncodePlan is the plan as the file that the guest reads. It fails on a plan
// that the guest would refuse.
func EncodePlan(p Plan) ([]byte, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	return json.Marshal(p)
}

// DecodePlan reads a plan; an unknown field is an error, because an order that
// the guest does not know would be left undone in silence.
func DecodePlan(b []byte) (Plan, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var p Plan
	if err := dec.Decode(&p); err != nil {
		return Plan{}, fmt.Errorf("the plan is not readable at byte %d: %w", dec.InputOffset(), err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Plan{}, fmt.Errorf("the plan has something after its end at byte %d", dec.InputOffset())
	}
	return p, p.check()
}

func (p Plan) check() error {
	switch {
	case p.Key == "":
		return errors.New("the plan has no key: its lines could not be told from forged ones")
	case p.Port == "":
		return errors.New("the plan names no port to report on")
	case p.DeadlineS <= 0:
		return errors.New("the plan has no deadline: the machine would never power off if a test hangs")
	}
	return nil
}
