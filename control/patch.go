package control

import (
	"bytes"
	"encoding/json"
	"slices"

	"cardea/api"
)

// patched returns what a merge patch makes of the Object of that key: the part of
// it that people write. It names the version that it was made from.
func (c *call) patched(k api.Key, body json.RawMessage) (json.RawMessage, error) {
	var patch map[string]any
	if err := decodeExactly(body, &patch); err != nil || patch == nil {
		return nil, api.Errorf(api.CodeInvalid, "a merge patch must be a JSON object with what is to change, such as {\"spec\": {\"isDisabled\": true}}")
	}
	if err := checkPatch(k, patch); err != nil {
		return nil, err
	}
	// Whoever may not change it does not learn whether it is there.
	if _, err := c.may(verbUpdate, k); err != nil {
		return nil, err
	}
	o, err := c.load(k)
	if err != nil {
		return nil, err
	}
	version := o.Header().Metadata.ResourceVersion
	if m, ok := patch["metadata"].(map[string]any); ok {
		if sent, ok := m["resourceVersion"].(string); ok && sent != "" && sent != version {
			e := api.Errorf(api.CodeConflict, "%s %q was changed since it was read: its resourceVersion is %s", k.Kind, k.Name, version)
			e.Hint = "read it again"
			return nil, e
		}
	}
	target, err := written(o)
	if err != nil {
		return nil, err
	}
	target = mergePatch(target, patch).(map[string]any)
	metadata, ok := target["metadata"].(map[string]any)
	if !ok && target["metadata"] == nil {
		metadata = map[string]any{} // all of it is taken back
		ok = true
	}
	if ok { // otherwise what reads it says what is wrong
		if metadata["name"] == nil {
			metadata["name"] = k.Name
		}
		if metadata["namespace"] == nil && k.Namespace != "" {
			metadata["namespace"] = k.Namespace
		}
		metadata["resourceVersion"] = version
		target["metadata"] = metadata
	}
	return json.Marshal(target)
}

// checkPatch reports what of an Object a patch wants to change and the cluster sets.
func checkPatch(k api.Key, patch map[string]any) error {
	var p api.Problems
	for _, name := range []string{"data", "stringData"} {
		if _, ok := patch[name]; ok && k.Group == api.GroupKubernetes {
			p.Add("/"+name, "must be left out of a patch: the values are not readable here, so they are written all together", "").
				Hint = "apply the whole Secret"
		}
	}
	refuse := func(pointer string) {
		p.Add(pointer, "must be left out of a patch: the cluster sets it", "")
	}
	if _, ok := patch["status"]; ok {
		refuse("/status")
	}
	metadata, _ := patch["metadata"].(map[string]any)
	for _, name := range []string{"uid", "createdAt", "updatedAt", "actorRef", "isSystem", "applySet"} {
		if _, ok := metadata[name]; ok {
			refuse("/metadata/" + name)
		}
	}
	return p.Err()
}

// written returns the part of an Object that people write.
func written(o api.Object) (map[string]any, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	var all map[string]any
	if err := decodeExactly(b, &all); err != nil {
		return nil, err
	}
	only := func(m map[string]any, names ...string) {
		for name := range m {
			if !slices.Contains(names, name) {
				delete(m, name)
			}
		}
	}
	only(all, "apiVersion", "kind", "metadata", "spec", "type", "immutable")
	if m, ok := all["metadata"].(map[string]any); ok {
		only(m, "name", "namespace", "displayName", "description", "picURL", "labels", "annotations", "tags")
	}
	return all, nil
}

// mergePatch is the function MergePatch of RFC 7386, section 2. It may write to
// target.
func mergePatch(target, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	t, ok := target.(map[string]any)
	if !ok {
		t = map[string]any{}
	}
	for name, value := range p {
		if value == nil {
			delete(t, name)
		} else {
			t[name] = mergePatch(t[name], value)
		}
	}
	return t
}

// decodeExactly decodes JSON and keeps numbers as they are written.
func decodeExactly(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return d.Decode(v)
}
