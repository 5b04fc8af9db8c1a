package control

import (
	"slices"

	"cardea/api"
	"cardea/dialect/emissary"
	"cardea/store"
)

// A mutation is what a write made of one Object.
type mutation struct {
	document int // index; noDocument of what is no document
	key      api.Key
	before   api.Object // nil of what was not there
}

// A harm is an Object that uses what a write changed and is not in force now.
type harm struct {
	document int // of the mutation
	key      api.Key
	words    string // what is wrong with it
}

// harm warns of each Object that uses what a write changed, is itself no part of it,
// and is not in force now: a mapping whose certificate was deleted, for one. Which
// Objects use others it tells by their names, so it may know more than really do.
func (c *call) harm(changes []mutation) []api.Problem {
	if c.Live == nil {
		return nil // it is not known how it stands with any
	}
	e := effect{document: map[api.Key]int{}, written: map[api.Key]bool{}, present: c.present}
	for _, x := range changes {
		e.written[x.key] = true
		if slices.Contains([]string{api.KindSecret, api.KindTLSContext, api.KindHost}, x.key.Kind) {
			e.document[x.key] = x.document
		}
	}
	if len(e.document) == 0 {
		return nil
	}
	err := c.Store.View(c.r.Context(), func(r store.Reader) error { return e.look(r, changes) })
	if err != nil { // what was written is written
		c.Log.Error("it is not known what a write harms", "error", err)
	}
	return c.tell(e.found)
}

// tell words harm. Of what the caller may not see it tells that there is some.
func (c *call) tell(found []harm) (warnings []api.Problem) {
	warn := func(document int, words string) {
		warnings = append(warnings, api.Problem{Document: document, Rule: words, Warning: true})
	}
	hidden := false
	for _, h := range found {
		switch {
		case len(warnings) == maxProblems:
			warn(h.document, "there is more that is not in force now than is told here")
			return warnings
		case c.shows(h.key):
			warn(h.document, h.key.String()+" "+h.words)
		case !hidden:
			hidden = true
			warn(h.document, "what you may not see uses it and is not in force now")
		}
	}
	return warnings
}

// An effect is what a write does to the Objects that use what it changed.
type effect struct {
	document map[api.Key]int // by what was changed and others use
	written  map[api.Key]bool
	present  func(api.Object) api.Object
	tls      *tlsObjects // those that are there, and those that were
	found    []harm
}

// look finds those that are not in force.
func (e *effect) look(r store.Reader, changes []mutation) (err error) {
	if e.tls, err = readTLS(r); err != nil {
		return err
	}
	contexts, hosts := e.tls.contexts, e.tls.hosts
	for _, x := range changes {
		e.tls.add(x.before)
	}
	for _, o := range contexts {
		e.check(o)
	}
	for _, o := range hosts {
		e.check(o)
	}
	for m, err := range store.AllIn[*api.TCPMapping](r, api.GroupAmbassador, api.KindTCPMapping) {
		if err != nil {
			return err
		}
		e.check(m)
	}
	for s, err := range store.All[*api.Service](r, api.KindService) {
		if err != nil {
			return err
		}
		e.check(s)
	}
	return nil
}

// check notes what is wrong with an Object, if it uses what was changed.
func (e *effect) check(o api.Object) {
	k := o.Header().Key()
	if e.written[k] {
		return // its own warnings say it
	}
	document, ok := e.usedBy(o)
	if !ok {
		return
	}
	words := map[string]string{api.ConditionAccepted: "is not in force now: ", api.ConditionResolved: "is not complete now: "}
	switch o.(type) {
	case *api.TCPMapping, *api.Service:
		words[api.ConditionResolved] = "refuses connections now: "
	}
	for _, x := range conditionsOf(e.present(o)) {
		if x.Status == "False" && words[x.Type] != "" && x.Reason != emissary.ReasonOtherID {
			e.found = append(e.found, harm{document, k, words[x.Type] + x.Message})
			return
		}
	}
}

// usedBy returns the document by which something was changed that an Object uses.
func (e *effect) usedBy(o api.Object) (document int, ok bool) {
	if s, isService := o.(*api.Service); isService {
		name := certificateOf(s)
		document, ok = e.document[coreKey(api.KindSecret, name)]
		return document, ok && name != ""
	}
	for _, m := range e.tls.means(o) {
		if document, ok = e.document[m.object.Header().Key()]; ok {
			return document, true
		}
	}
	for _, n := range e.tls.secrets(o) {
		for _, k := range n.keys {
			if document, ok = e.document[k]; ok {
				return document, true
			}
		}
	}
	return 0, false
}

// add adds an Object that was there.
func (t *tlsObjects) add(o api.Object) {
	switch o := o.(type) {
	case *api.TLSContext:
		t.contexts = append(t.contexts, o)
	case *api.Host:
		t.hosts = append(t.hosts, o)
	}
}
