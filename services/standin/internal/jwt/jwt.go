// Package jwt makes and checks HS256 JSON Web Tokens (RFC 7519) with the error
// texts of the Rust library jsonwebtoken 9, which kcidb-restd-rs shows its
// callers word for word (kernelci-wire.md 5.1).
package jwt

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Leeway is how long after its exp a token still works.
const Leeway = 60 * time.Second

// Error is a refusal in the library's words.
type Error string

func (e Error) Error() string { return string(e) }

// Refusals.
const (
	ErrInvalidToken     = Error("InvalidToken")
	ErrInvalidSignature = Error("InvalidSignature")
	ErrInvalidAlgorithm = Error("InvalidAlgorithm")
	ErrInvalidAudience  = Error("InvalidAudience")
	ErrExpired          = Error("ExpiredSignature")
)

var enc = base64.RawURLEncoding

// Sign makes a token of the claims.
func Sign(secret string, claims map[string]any) string {
	b, err := json.Marshal(claims)
	if err != nil {
		panic(err) // claims are made of strings and numbers by this program
	}
	signed := enc.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + enc.EncodeToString(b)
	return signed + "." + enc.EncodeToString(mac(secret, signed))
}

func mac(secret, signed string) []byte {
	h := hmac.New(sha256.New, []byte(secret))
	h.Write([]byte(signed))
	return h.Sum(nil)
}

// Verify checks the token with each secret in turn and gives its origin claim.
// The refusal is that of the first secret.
func Verify(token string, now time.Time, secrets ...string) (origin string, err error) {
	for _, s := range secrets {
		if s == "" {
			continue
		}
		o, verr := verify(token, s, now)
		if verr == nil {
			return o, nil
		}
		if err == nil {
			err = verr
		}
	}
	return "", err
}

func verify(token, secret string, now time.Time) (string, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", ErrInvalidToken
	}
	var header struct {
		Alg string `json:"alg"`
	}
	if err := part(parts[0], &header); err != nil {
		return "", err
	}
	if header.Alg != "HS256" {
		return "", ErrInvalidAlgorithm
	}
	sig, err := enc.DecodeString(parts[2])
	if err != nil || !hmac.Equal(sig, mac(secret, parts[0]+"."+parts[1])) {
		return "", ErrInvalidSignature
	}
	var claims map[string]any
	if err := part(parts[1], &claims); err != nil {
		return "", err
	}
	origin, ok := claims["origin"].(string)
	if !ok {
		return "", Error("JSON error: missing field `origin`")
	}
	exp, ok := claims["exp"].(float64)
	if !ok {
		return "", Error("Missing required claim: exp")
	}
	if exp < float64(now.Add(-Leeway).Unix()) {
		return "", ErrExpired
	}
	if _, ok := claims["aud"]; ok {
		return "", ErrInvalidAudience
	}
	return origin, nil
}

func part(s string, dst any) error {
	b, err := enc.DecodeString(s)
	if err != nil {
		return Error(fmt.Sprintf("Base64 error: %v", err))
	}
	if err := json.Unmarshal(b, dst); err != nil {
		return Error(fmt.Sprintf("JSON error: %v", err))
	}
	return nil
}
