package control

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"cardea/api"
	"cardea/rpc"
)

// setName is what a set may be called.
var setName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// apply answers POST /api/apply.
func (c *call) apply() (any, error) {
	q, err := c.query("allowLockout", "dryRun")
	if err != nil {
		return nil, err
	}
	opt, err := writeOptions(q)
	if err != nil {
		return nil, err
	}
	who, err := c.who() // before reading what a stranger sends
	if err != nil {
		return nil, err
	}
	var in api.ApplyRequest
	if err := rpc.Read(c.r, &in); err != nil {
		return nil, err
	}
	switch {
	case len(in.Documents) > maxDocuments:
		e := api.Errorf(api.CodeInvalid, "there are %d documents; one apply may have %d", len(in.Documents), maxDocuments)
		e.Hint = "apply them in parts"
		return nil, e
	case in.Set != "" && !setName.MatchString(in.Set):
		return nil, api.Errorf(api.CodeInvalid, "the name of a set must be 1 to 63 characters of a-z, 0-9 and '-', with a letter or digit at both ends")
	case in.Prune && in.Set == "":
		e := api.Errorf(api.CodeInvalid, "prune needs a set: it deletes what bears the set and is not among the documents")
		e.Hint = "name it with --set"
		return nil, e
	}
	opt.dryRun = opt.dryRun || in.DryRun
	opt.set, opt.prune = in.Set, in.Prune
	d, rev, err := c.write(who, func() ([]json.RawMessage, error) { return in.Documents, nil }, opt)
	if err != nil {
		return nil, err
	}
	out := api.ApplyResponse{Results: []api.Result{}, Warnings: d.problems, Revision: rev}
	for _, doc := range append(d.documents, d.pruned...) {
		// Whoever may write an Object is shown it; to delete one tells nothing of it.
		r, err := doc.result(in.Diff && (doc.action != api.ActionDeleted || c.shows(doc.key)))
		if err != nil {
			return nil, err
		}
		out.Results = append(out.Results, r)
	}
	return out, nil
}

// writeOptions reads the parameters that every write has.
func writeOptions(q map[string]string) (opt options, err error) {
	if opt.allowLockout, err = boolean(q, "allowLockout"); err != nil {
		return opt, err
	}
	opt.dryRun, err = boolean(q, "dryRun")
	return opt, err
}

// create answers POST /api/{group}/{version}/{kind}.
func (c *call) create() (any, error) {
	return c.writeOne(options{only: api.ActionCreated}, sent)
}

// update answers PUT /api/{group}/{version}/{kind}/{name}.
func (c *call) update() (any, error) {
	return c.writeOne(options{only: api.ActionConfigured}, sent)
}

// patch answers PATCH /api/{group}/{version}/{kind}/{name}: a merge patch (RFC 7386) of what
// people write of an Object. The rest of it cannot be patched.
func (c *call) patch() (any, error) {
	return c.writeOne(options{only: api.ActionConfigured, rereads: true}, c.patched)
}

// sent is what PUT and POST write: what they are sent.
func sent(_ api.Key, body json.RawMessage) (json.RawMessage, error) { return body, nil }

// writeOne writes the one Object that the body makes, of the kind, and with the
// name if there is one, that the path says. made turns the body into the Object.
func (c *call) writeOne(opt options, made func(api.Key, json.RawMessage) (json.RawMessage, error)) (any, error) {
	q, err := c.query("namespace", "allowLockout", "dryRun")
	if err != nil {
		return nil, err
	}
	more, err := writeOptions(q)
	if err != nil {
		return nil, err
	}
	opt.allowLockout, opt.dryRun = more.allowLockout, more.dryRun
	who, err := c.who() // before reading what a stranger sends
	if err != nil {
		return nil, err
	}
	k, err := c.key()
	if err != nil {
		return nil, err
	}
	var body json.RawMessage
	if err := rpc.Read(c.r, &body); err != nil {
		return nil, err
	}
	d, rev, err := c.write(who, func() ([]json.RawMessage, error) {
		raw, err := made(k, body)
		if err != nil {
			return nil, err
		}
		return []json.RawMessage{raw}, c.checkPath(k, raw)
	}, opt)
	if err != nil {
		return nil, err
	}
	doc := d.documents[0]
	out := api.WriteResponse{Warnings: d.problems, Revision: rev}
	if out.Result, err = doc.result(false); err == nil {
		out.Object, err = encode(doc.after)
	}
	return out, err
}

// checkPath reports a body that is of another kind than the path says, or has
// another name. If it is no Object at all, what reads it says what is wrong.
func (c *call) checkPath(k api.Key, body json.RawMessage) error {
	var named api.Head
	if json.Unmarshal(body, &named) != nil {
		return nil
	}
	if named.Kind != "" && named.Kind != k.Kind {
		return api.Errorf(api.CodeInvalid, "the path is that of a %s and the body is a %s", k.Kind, strings.ToValidUTF8(fmt.Sprintf("%.40q", named.Kind), ""))
	}
	place(&named, c.standardNamespace())
	if got := named.Key(); k.Group != got.Group {
		return api.Errorf(api.CodeInvalid, "the path is that of a kind of %s and the body of one of %.100q: it is said by its apiVersion", k.Group, got.Group)
	} else if isOne := k.Name != ""; (isOne || k.Namespace != "") && got.Namespace != k.Namespace {
		return api.Errorf(api.CodeInvalid, "the path names the namespace %q and the body %.100q", k.Namespace, got.Namespace)
	} else if got := api.CanonicalName(k.Kind, got.Name); isOne && got != k.Name {
		return api.Errorf(api.CodeInvalid, "the path names %q and the body %.100q", k.Name, got)
	}
	return nil
}
