package topology

import (
	"fmt"
	"strconv"
	"strings"
)

// MinServer is the oldest nats-server that pullab trusts. Before 2.14.1 a
// replicated work queue could lose messages at the delivery limit
// (nats-server#7817), and the ack floor could pass messages not acknowledged.
const MinServer = "2.14.1"

// checkVersion refuses a server older than MinServer. A pre-release counts as
// its release.
func checkVersion(server string) error {
	have, err := parseVersion(server)
	if err != nil {
		return fmt.Errorf("the NATS server says its version is %q, which is not one; pullab needs nats-server %s or newer: %w", server, MinServer, err)
	}
	want, err := parseVersion(MinServer)
	if err != nil {
		return err
	}
	for i := range want {
		if have[i] != want[i] {
			if have[i] < want[i] {
				return fmt.Errorf("the NATS server is version %s, and pullab needs %s or newer: older ones can lose queued jobs; upgrade nats-server", server, MinServer)
			}
			return nil
		}
	}
	return nil
}

func parseVersion(s string) ([3]int, error) {
	var v [3]int
	core, _, _ := strings.Cut(strings.TrimPrefix(s, "v"), "-")
	parts := strings.SplitN(core, ".", 3)
	for i := range v {
		if i >= len(parts) {
			return v, fmt.Errorf("%d of 3 numbers", len(parts))
		}
		n, err := strconv.Atoi(parts[i])
		if err != nil {
			return v, err
		}
		v[i] = n
	}
	return v, nil
}
