// Package secret makes the secrets of a World.
package secret

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Set is the secrets of a World: those that sign tokens for kernelci-api and
// KCIDB, and the storage's token itself.
type Set struct {
	API     string `json:"api"`
	KCIDB   string `json:"kcidb"`
	Storage string `json:"storage"`
}

// Load makes secrets once per directory, so that tokens given out stay good
// after a restart; without a directory each call makes new ones.
func Load(dir string) (Set, error) {
	set := Set{random(), random(), random()}
	if dir == "" {
		return set, nil
	}
	name := filepath.Join(dir, "secrets.json")
	b, err := os.ReadFile(name)
	if err == nil {
		if err := json.Unmarshal(b, &set); err != nil {
			return Set{}, fmt.Errorf("%s: %w. Remove it to get new secrets", name, err)
		}
		return set, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return Set{}, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Set{}, err
	}
	if b, err = json.Marshal(set); err != nil {
		return Set{}, err
	}
	return set, os.WriteFile(name, b, 0o600)
}

func random() string {
	var b [24]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
