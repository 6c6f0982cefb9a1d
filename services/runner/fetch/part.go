package fetch

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"hash"
	"io"
	"os"
	"strings"
)

// part is a file on its way: what is here of it and which version of the file
// that belongs to.
type part struct {
	file *os.File
	size int64
	validator
	sum hash.Hash
	// private is one beside another process's; nobody resumes it.
	private bool
}

// load reads what an earlier process left. A part without a usable validator
// is worth nothing.
func (p *part) load() {
	p.sum = sha256.New()
	b, err := os.ReadFile(p.file.Name() + ".json")
	if err != nil || json.Unmarshal(b, &p.validator) != nil || p.ifRange() == "" {
		_ = p.reset(validator{})
		return
	}
	n, err := io.Copy(p.sum, p.file)
	if err != nil {
		_ = p.reset(validator{})
		return
	}
	p.size = n
}

// ifRange is the validator for resuming: a strong ETag, else the time of
// modification (RFC 9110, 13.1.5). Empty means start from the beginning.
func (p *part) ifRange() string {
	if p.ETag != "" && !strings.HasPrefix(p.ETag, "W/") {
		return p.ETag
	}
	return p.LastModified
}

// reset starts the file anew as version v.
func (p *part) reset(v validator) error {
	p.sum, p.size, p.validator = sha256.New(), 0, v
	if err := p.file.Truncate(0); err != nil {
		return err
	}
	if _, err := p.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if p.ifRange() == "" {
		_ = os.Remove(p.file.Name() + ".json")
		return nil
	}
	return writeJSON(p.file.Name()+".json", v)
}

// Write appends.
func (p *part) Write(b []byte) (int, error) {
	n, err := p.file.Write(b)
	p.sum.Write(b[:n])
	p.size += int64(n)
	return n, err
}

func (p *part) digest() string { return hex.EncodeToString(p.sum.Sum(nil)) }

// discard removes it.
func (p *part) discard() {
	_ = os.Remove(p.file.Name())
	_ = os.Remove(p.file.Name() + ".json")
}

// close keeps what can be resumed.
func (p *part) close() {
	if p.private || p.size == 0 || p.ifRange() == "" {
		p.discard()
	}
	p.file.Close()
}
