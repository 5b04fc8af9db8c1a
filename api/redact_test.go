package api_test

import (
	"encoding/json"
	"strings"
	"testing"

	"cardea/api"
)

// What the API must never return is not in what Redact returns, whatever the
// kind; and the Object itself, which is shared, is left alone.
func TestRedact(t *testing.T) {
	const canary = "canary"
	objects := []api.Object{
		&api.Secret{
			Head:   api.Head{Kind: api.KindSecret, Metadata: api.Metadata{Name: "db"}},
			Data:   &api.SecretData{Value: canary, ValueBytes: []byte(canary)},
			Status: api.SecretStatus{Sealed: []byte(canary), KeyID: "k", SHA256: "h"},
		},
		&api.Credential{
			Head:   api.Head{Kind: api.KindCredential, Metadata: api.Metadata{Name: "alice"}},
			Status: api.CredentialStatus{TokenSHA256: canary, TotalAuthentications: 3},
		},
		&api.User{Head: api.Head{Kind: api.KindUser, Metadata: api.Metadata{Name: "alice"}}},
	}
	for _, o := range objects {
		before, _ := json.Marshal(o)
		redacted, err := json.Marshal(api.Redact(o))
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range []string{canary, "Y2FuYXJ5"} { // also in base64
			if strings.Contains(string(redacted), form) {
				t.Errorf("%s: the redacted Object tells: %s", o.Header().Kind, redacted)
			}
		}
		if after, _ := json.Marshal(o); string(after) != string(before) {
			t.Errorf("%s: Redact changed the Object itself", o.Header().Kind)
		}
		if got := api.Redact(o).Header().Metadata.Name; got != o.Header().Metadata.Name {
			t.Errorf("%s: the name became %q", o.Header().Kind, got)
		}
	}
	s := api.Redact(objects[0]).(*api.Secret)
	if s.Status.KeyID != "k" || s.Status.SHA256 != "h" {
		t.Errorf("the key id and the keyed hash are for everyone to see, got %+v", s.Status)
	}
}
