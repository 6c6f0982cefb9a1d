package topology

import (
	"strings"
	"testing"
)

func TestCheckVersion(t *testing.T) {
	for v, ok := range map[string]bool{
		"2.14.1": true, "2.14.5": true, "2.15.0-dev": true, "2.15.2": true, "3.0.0": true, "v2.14.1": true, "2.14.1-RC.2": true,
		"2.14.0": false, "2.12.5": false, "2.9.25": false, "1.99.99": false, "": false, "2.14": false, "two": false,
	} {
		err := checkVersion(v)
		if (err == nil) != ok {
			t.Errorf("%q: %v", v, err)
		}
		if err != nil && !strings.Contains(err.Error(), MinServer) {
			t.Errorf("%q: %v does not say what is needed", v, err)
		}
	}
}
