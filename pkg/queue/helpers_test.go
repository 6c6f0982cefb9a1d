package queue_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/pullab/pullab/pkg/wire"
)

func decode[M proto.Message](t *testing.T, data []byte) M {
	t.Helper()
	var m M
	m = m.ProtoReflect().New().Interface().(M)
	if err := wire.DecodeInto(data, m); err != nil {
		t.Fatal(err)
	}
	return m
}
