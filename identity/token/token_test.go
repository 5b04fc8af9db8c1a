package token_test

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
	"testing"

	"cardea/api"
	"cardea/identity/token"
)

const uid = "0b9f3a52-2c5e-4c6b-9a0e-3f6f0f3f7a11"

func credential(hash string) *api.Credential {
	return &api.Credential{Status: api.CredentialStatus{TokenSHA256: hash}}
}

func TestRoundTrip(t *testing.T) {
	tok, kept := token.New(uid)
	if !regexp.MustCompile(`^cardea1_` + uid + `_[a-z2-7]{52}$`).MatchString(tok) {
		t.Errorf("a token looks like %q", tok)
	}
	if sum := sha256.Sum256([]byte(tok)); kept != hex.EncodeToString(sum[:]) {
		t.Error("what is kept is not the SHA-256 of the token")
	}
	got, hash, err := token.Parse(tok)
	if err != nil || got != uid || !token.Matches(credential(kept), hash) {
		t.Errorf("Parse: %q, %v", got, err)
	}
	other, _ := token.New(uid)
	if other == tok {
		t.Error("two tokens of one Credential are the same")
	}
	if _, hash, _ := token.Parse(other); token.Matches(credential(kept), hash) {
		t.Error("the token that was replaced still matches")
	}
}

// Whoever changes one character has no token: it is malformed, or of another
// hash.
func TestAnyChangedCharacter(t *testing.T) {
	tok, kept := token.New(uid)
	for i := range tok {
		for _, c := range []byte("a2Z_-") {
			if tok[i] == c {
				continue
			}
			b := []byte(tok)
			b[i] = c
			if _, hash, err := token.Parse(string(b)); err == nil && token.Matches(credential(kept), hash) {
				t.Fatalf("with %q at %d it still matches", c, i)
			}
		}
	}
}

func TestMatchesNothing(t *testing.T) {
	_, hash := token.New(uid)
	for name, c := range map[string]*api.Credential{
		"no Credential": nil, "no token": credential(""), "another": credential(strings.Repeat("0", 64)), "a short one": credential(hash[:63]),
	} {
		if token.Matches(c, hash) {
			t.Errorf("%s matches", name)
		}
		if token.Matches(c, "") {
			t.Errorf("%s matches the empty hash", name)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	tok, _ := token.New(uid)
	random := tok[strings.LastIndex(tok, "_")+1:]
	for _, s := range []string{
		"", "cardea1_", "cardea1__", "cardea1__" + random, "cardea1_" + uid, "cardea1_" + uid + "_",
		" " + tok, tok + " ", tok + "\n", tok + "a", tok[:len(tok)-1], strings.ToUpper(tok),
		strings.Replace(tok, "cardea1", "cardea2", 1),
		"cardea1_" + strings.ToUpper(uid) + "_" + random,
		"cardea1_a/b_" + random,
		"cardea1_" + strings.Repeat("a", 65) + "_" + random,
		"cardea1_" + uid + "_" + random[:51] + "1",
		strings.Repeat("cardea1_", 1<<16),
	} {
		got, hash, err := token.Parse(s)
		if err == nil || got != "" || hash != "" {
			t.Errorf("%.100q: got %q, %q, %v", s, got, hash, err)
		} else if strings.Contains(err.Error(), random[:10]) {
			t.Errorf("the error tells the token: %v", err)
		}
	}
}

func TestNewPanicsForNoUID(t *testing.T) {
	for _, bad := range []string{"", "a_b", strings.Repeat("a", 65)} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("New(%q) made a token that cannot be parsed", bad)
				}
			}()
			token.New(bad)
		}()
	}
}

func FuzzParse(f *testing.F) {
	tok, _ := token.New(uid)
	f.Add(tok)
	f.Add("cardea1__")
	f.Fuzz(func(t *testing.T, s string) {
		got, hash, err := token.Parse(s)
		if err != nil {
			if got != "" || hash != "" {
				t.Fatal("a result beside an error")
			}
			return
		}
		if len(hash) != 64 || !strings.HasPrefix(s, "cardea1_"+got+"_") || len(s) != len("cardea1_")+len(got)+1+52 {
			t.Fatalf("%q was read as %q, %q", s, got, hash)
		}
	})
}
