package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"cardea/api"
	"cardea/api/gen"
)

// TestFresh: what is checked in is what the sources say now.
func TestFresh(t *testing.T) {
	want, err := generate("../..")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../openapi.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("api/gen/openapi.go is not what package api says: run make gen")
	}
}

// TestDocument: every reference leads somewhere, every field of a document that a
// person writes says what it is for, and each call is there.
func TestDocument(t *testing.T) {
	var doc struct {
		Paths      map[string]map[string]json.RawMessage
		Components struct {
			Schemas map[string]struct {
				Properties map[string]struct {
					Description string
					NotYet      any `json:"x-not-yet"`
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(gen.OpenAPI), &doc); err != nil {
		t.Fatal(err)
	}
	for part := range strings.SplitSeq(gen.OpenAPI, `"#/components/schemas/`) {
		name, _, _ := strings.Cut(part, `"`)
		if _, ok := doc.Components.Schemas[name]; !ok && !strings.HasPrefix(part, "{") {
			t.Errorf("nothing is called %q", name)
		}
	}
	for _, k := range api.Kinds() {
		at := k.Path("")
		if doc.Paths[at]["get"] == nil || doc.Paths[at+"/{name}"]["get"] == nil {
			t.Errorf("%s cannot be read", at)
		}
		if (doc.Paths[at]["post"] != nil) != k.ByHand {
			t.Errorf("%s: whether people make it is said wrongly", at)
		}
	}
	for _, at := range []string{"/api/login", "/api/apply", "/api/logs", "/api/route", "/readyz", "/api/core/v1/credentials/{name}/token"} {
		if doc.Paths[at] == nil {
			t.Errorf("%s is missing", at)
		}
	}
	if doc.Components.Schemas["UpstreamTLS"].Properties["verification"].Description != "" || doc.Components.Schemas["Material"].Properties != nil {
		t.Error("what only programs set is in the document")
	}
	for _, s := range []string{"TCPMappingSpec", "ServiceSpec", "ServiceLimits", "UpstreamTLS", "SessionSettings", "PolicySpec"} {
		if len(doc.Components.Schemas[s].Properties) == 0 {
			t.Errorf("%s has no fields", s)
		}
	}
}
