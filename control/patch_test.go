package control

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"

	"cardea/api"
)

// TestMergePatch has the examples of RFC 7386, appendix A, that begin or end with
// an object.
func TestMergePatch(t *testing.T) {
	for _, tc := range [][3]string{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`{"e":null}`, `{"a":1}`, `{"e":null,"a":1}`},
		{`[1,2]`, `{"a":"b","c":null}`, `{"a":"b"}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
		{`{"a":"foo"}`, `null`, `null`},
		{`{"a":"foo"}`, `"bar"`, `"bar"`},
	} {
		value := func(s string) (v any) {
			if err := json.Unmarshal([]byte(s), &v); err != nil {
				t.Fatal(err)
			}
			return v
		}
		want := value(tc[2])
		if got := mergePatch(value(tc[0]), value(tc[1])); !reflect.DeepEqual(got, want) {
			t.Errorf("%s with %s: got %v, want %s", tc[0], tc[1], got, tc[2])
		}
	}
}

func TestPatch(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, group1, strings.Replace(alice, "'spec':{", "'spec':{'email':'a@x.io','attrs':{'big':9007199254740992,'n':{'m':1}},", 1), service,
		`{'kind':'Secret','metadata':{'name':'s1','labels':{'a1':'b'}},'data':{'value':'hunter2'}}`)
	const path = "/api/core/v1/users/alice"
	patch := func(path, body string) (out api.WriteResponse, err error) {
		t.Helper()
		return out, w.do(root, "PATCH", path, body, &out)
	}
	before := get[*api.User](w, api.KindUser, "alice")
	out, err := patch(path, `{"metadata":{"displayName":"Alice"},"spec":{"groups":null,"attrs":{"n":{"k":2}}}}`)
	after := get[*api.User](w, api.KindUser, "alice")
	if err != nil || out.Result.Action != api.ActionConfigured || after.Metadata.DisplayName != "Alice" || after.Spec.Groups != nil ||
		after.Spec.Email != "a@x.io" || after.Metadata.UID != before.Metadata.UID || after.Metadata.ResourceVersion == before.Metadata.ResourceVersion {
		t.Errorf("%v: got %+v", err, after)
	}
	if b := must(json.Marshal(after.Spec.Attrs)); string(b) != string(must(json.Marshal(map[string]any{"big": before.Spec.Attrs["big"], "n": map[string]any{"m": 1, "k": 2}}))) {
		t.Errorf("the attrs are %s", b)
	}
	if i := w.journal.last(t).Entry.Info.API; i.Verb != verbUpdate || !strings.Contains(string(i.After), "Alice") {
		t.Errorf("the record is %+v", i)
	}
	if out, err = patch(path, `{"metadata":{"displayName":"Alice","name":"alice"}}`); err != nil || out.Result.Action != api.ActionUnchanged {
		t.Errorf("the same again: %v, %+v", err, out.Result)
	}
	if out, err = patch(path+"?dryRun=true", `{"metadata":null}`); err != nil || out.Result.Action != api.ActionConfigured || strings.Contains(string(out.Object), "Alice") ||
		get[*api.User](w, api.KindUser, "alice").Metadata.DisplayName != "Alice" {
		t.Errorf("a dry run: %v, %s", err, out.Object)
	}
	if _, err = patch("/api/core/v1/services/nats", `{"spec":{"isDisabled":true}}`); err != nil || !get[*api.Service](w, api.KindService, "nats.default").Spec.IsDisabled {
		t.Errorf("a Service by its short name: %v", err)
	}
	old := get[*api.Secret](w, api.KindSecret, "s1").Status
	if _, err = patch("/api/core/v1/secrets/s1", `{"metadata":{"labels":{"a1":null}}}`); err != nil || get[*api.Secret](w, api.KindSecret, "s1").Status.SHA256 != old.SHA256 {
		t.Errorf("a Secret without its value: %v", err)
	}
	if _, err = patch("/api/core/v1/secrets/s1", `{"data":{"value":"hunter3"}}`); err != nil || get[*api.Secret](w, api.KindSecret, "s1").Status.SHA256 == old.SHA256 {
		t.Errorf("the value of a Secret: %v", err)
	}

	for _, tc := range []struct {
		body, want string
		code       api.Code
	}{
		{`[]`, "a merge patch must be a JSON object", api.CodeInvalid},
		{`null`, "a merge patch must be a JSON object", api.CodeInvalid},
		{`{"status":{"noEffect":[]}}`, "status: must be left out of a patch", api.CodeInvalid},
		{`{"metadata":{"uid":"x"}}`, "metadata.uid: must be left out of a patch", api.CodeInvalid},
		{`{"metadata":{"applySet":null}}`, "metadata.applySet: must be left out of a patch", api.CodeInvalid},
		{`{"metadata":{"isSystem":true,"createdAt":null}}`, "metadata.isSystem: must be left out of a patch", api.CodeInvalid},
		{`{"metadata":{"name":"bob"}}`, `the path names "alice" and the body "bob"`, api.CodeInvalid},
		{`{"kind":"Group"}`, "the path is that of a User and the body is a", api.CodeInvalid},
		{`{"metadata":{"resourceVersion":"` + before.Metadata.ResourceVersion + `"}}`, "was changed since it was read", api.CodeConflict},
		{`{"metadata":7}`, "metadata: must be", api.CodeInvalid},
		{`{"spec":{"type":null}}`, "spec.type: is required", api.CodeInvalid},
		{`{"spec":{"grups":["a"]}}`, "spec.grups: unknown field", api.CodeInvalid},
		{`{"spec":{"groups":["nope"]}}`, "spec.groups[0]: must name a Group that exists", api.CodeInvalid},
	} {
		was := w.revision()
		if _, err := patch(path, tc.body); !api.HasCode(err, tc.code) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %s", tc.body, err, tc.want)
		}
		if w.revision() != was {
			t.Errorf("%s was written", tc.body)
		}
	}
	if _, err := patch("/api/core/v1/users/bob", `{}`); !api.HasCode(err, api.CodeNotFound) {
		t.Errorf("of none: %v", err)
	}
	nobody := w.user(root, "nobody")
	for _, name := range []string{"alice", "carol"} {
		if err := w.do(nobody, "PATCH", "/api/core/v1/users/"+name, `{}`, nil); !api.HasCode(err, api.CodePermissionDenied) {
			t.Errorf("by somebody who may not: %v", err)
		}
	}
}

// TestCommonPatches lets many patch one Object, a field each: none undoes another,
// and none is turned away.
func TestCommonPatches(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, group1)
	const writers, each = 12, 5
	var all sync.WaitGroup
	for i := range writers {
		all.Go(func() {
			for j := range each {
				body := fmt.Sprintf(`{"metadata":{"labels":{"key%c%c":"1"}}}`, 'a'+i, 'a'+j)
				if err := w.do(root, "PATCH", "/api/core/v1/groups/group-1", body, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if l := get[*api.Group](w, api.KindGroup, "group-1").Metadata.Labels; len(l) != writers*each {
		t.Errorf("the labels are %v", l)
	}
}

// FuzzPatch gives PATCH whatever somebody may send: it changes the User or says
// what is wrong.
func FuzzPatch(f *testing.F) {
	for _, body := range []string{`{"spec":{"groups":null}}`, `{"metadata":{"labels":{"a":"b"}}}`, `[]`, `{"metadata":[]}`, `{"data":{}}`, `{"spec":{"attrs":{"a":1e999}}}`} {
		f.Add(body)
	}
	w, root := newRoot(f)
	w.mustApply(root, group1, alice)
	f.Fuzz(func(t *testing.T, body string) {
		w.t = t
		err := w.do(root, "PATCH", "/api/core/v1/users/alice", body, nil)
		if err != nil && !api.HasCode(err, api.CodeInvalid) && !api.HasCode(err, api.CodeConflict) {
			t.Fatal(err)
		}
	})
}
