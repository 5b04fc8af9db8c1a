package control

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"time"

	"github.com/google/uuid"

	"cardea/address"
	"cardea/api"
	"cardea/manifest"
	"cardea/store"
)

// awaitTimeout is how long the answer to a write waits for decisions to be made
// on it.
const awaitTimeout = 30 * time.Second

const (
	maxDocuments = 10_000 // in one apply
	maxProblems  = 100    // that one answer tells
	// maxMeant is how many problems of one answer tell which name may have been
	// meant: for each, all names of a kind are compared.
	maxMeant = 10
)

// How often a write is tried whose ground others change.
const (
	firstPause   = 4 * time.Millisecond // the longest before the second try; it doubles
	longestPause = 250 * time.Millisecond
	patience     = 8 * time.Second
)

// options say how documents are written.
type options struct {
	// only is ActionCreated if the Object must not exist, ActionConfigured if it
	// must, and "" if either will do.
	only         api.Action
	dryRun       bool
	allowLockout bool
	// set is the set that the documents belong to, "" if they belong to none. With
	// prune, what bears it and is no document is deleted.
	set   string
	prune bool
	// rereads is set if the documents were made from what is stored: if that has
	// changed they are made again.
	rereads bool
}

// A document is an Object that somebody wants to be so, and what became of it.
type document struct {
	index    int
	key      api.Key
	wanted   api.Object // with defaults; never written to; nil if it is to be deleted
	verb     string     // what it takes: create, update or delete
	decision api.Decision

	action        api.Action
	before, after api.Object
}

// result returns what became of a document, with the Objects if they are asked for.
func (d *document) result(diff bool) (api.Result, error) {
	out := resultOf(d.key, d.action)
	if !diff || d.action == api.ActionUnchanged {
		return out, nil
	}
	var err, err2 error
	out.Before, err = encode(d.before)
	out.After, err2 = encode(d.after)
	return out, errors.Join(err, err2)
}

// resultOf returns what became of an Object.
func resultOf(k api.Key, a api.Action) api.Result {
	out := api.Result{Kind: k.Kind, Namespace: k.Namespace, Name: k.Name, Action: a}
	if k.Group != api.GroupCore {
		out.Group = k.Group
	}
	return out
}

// A draft is a list of documents on their way into the store.
type draft struct {
	documents []*document // those that have no problem of their own
	problems  []api.Problem
	// pending has the first document of each Object that is in the request, also if it
	// cannot be written: others may refer to it.
	pending map[api.Key]*document
	pruned  []*document  // what is to be deleted
	gone    []api.Object // what was: the pruned and what they own
}

// isPending reports whether an Object is in the request.
func (d *draft) isPending(k api.Key) bool {
	_, ok := d.pending[k]
	return ok
}

// changed returns the keys of what changes.
func (d *draft) changed() (keys []api.Key) {
	for _, doc := range d.documents {
		if doc.action != api.ActionUnchanged {
			keys = append(keys, doc.key)
		}
	}
	for _, o := range d.gone {
		keys = append(keys, o.Header().Key())
	}
	return keys
}

// mutations returns what changes.
func (d *draft) mutations() (list []mutation) {
	for _, doc := range d.documents {
		if doc.action != api.ActionUnchanged {
			list = append(list, mutation{doc.index, doc.key, doc.before})
		}
	}
	for _, o := range d.gone {
		list = append(list, mutation{noDocument, o.Header().Key(), o})
	}
	return list
}

// read decodes documents and finds what is wrong with each alone. namespace is that of
// Objects of other systems that name none. Of equal documents of one of those the
// second is left out, with a warning.
func read(raw []json.RawMessage, namespace string, opt options) *draft {
	d := &draft{pending: map[api.Key]*document{}}
	for i, b := range raw {
		o, problems := manifest.DecodeJSON(i, b)
		if o == nil {
			d.problems = append(d.problems, problems...)
			continue
		}
		place(o.Header(), namespace)
		p := api.Problems{Document: i}
		k := o.Header().Key()
		doc := &document{index: i, key: k, wanted: o}
		if kind, _ := api.KindIn(k.Group, k.Kind); !kind.ByHand && !(kind.Updatable && opt.only == api.ActionConfigured) {
			x := p.Add("/kind", "must be a kind that people write: a "+k.Kind+" is "+origin(k.Kind), k.Kind)
			if kind.Updatable {
				x.Hint = "one that is there can be changed with edit, or update"
			}
		}
		isWrong := (&api.Problems{List: problems}).Err() != nil
		switch first := d.pending[k]; {
		case first == nil || k.Name == "":
			d.pending[k] = doc
		case !isWrong && sameForeign(first.wanted, o):
			p.Warn("/metadata/name", skippedRule(first.index, k), nameOf(k))
			d.problems = append(d.problems, p.List...)
			continue
		default:
			p.Add("/metadata/name", twiceRule(first.index, k), nameOf(k))
		}
		problems = append(problems, p.List...)
		d.problems = append(d.problems, problems...)
		if (&api.Problems{List: problems}).Err() == nil {
			d.documents = append(d.documents, doc)
		} else {
			doc.wanted = nil // it may lack what is wrong
		}
	}
	return d
}

// origin says where Objects come from that people do not write.
func origin(kind string) string {
	switch kind {
	case api.KindSession:
		return "made by logging in"
	case api.KindDevice:
		return "registered from the machine itself, with cardea auth device register"
	case api.KindAuthenticator:
		return "registered by its User"
	}
	return "made by the cluster"
}

var (
	errDryRun  = errors.New("control: a dry run")
	errChanged = errors.New("control: what was decided on has changed")
)

// write makes the Objects as the documents want them, all or none. The documents
// of the draft that it returns are in their order.
func (c *call) write(who api.Ref, documents func() ([]json.RawMessage, error), opt options) (*draft, api.Revision, error) {
	ctx := c.r.Context()
	// What is decided is whether the caller may create, update or delete. Should an
	// Object come or go before the transaction, it is decided again.
	began := time.Now()
	for try := 0; ; try++ {
		raw, err := documents()
		if err != nil {
			return nil, api.Revision{}, err
		}
		d := read(raw, c.standardNamespace(), opt)
		if err := c.authorize(d, opt); err != nil {
			return nil, api.Revision{}, err
		}
		checked := c.check(d)
		lockout := c.lockout(who, opt.allowLockout)
		rev, err := c.Store.Update(ctx, who.Name, func(tx store.Tx) error {
			if err := c.transact(tx, d, checked, who, opt); err != nil {
				return err
			}
			if err := lockout(tx, d.changed()); err != nil {
				return err
			}
			if opt.dryRun {
				return errDryRun
			}
			return c.recordWrites(ctx, d)
		})
		switch {
		case err == nil:
			err := c.await(ctx, rev)
			d.problems = slices.Concat(d.problems, c.troubles(d), c.harm(d.mutations()))
			return d, rev, err
		case errors.Is(err, errDryRun):
			return d, rev, nil
		case !errors.Is(err, errChanged):
			return nil, rev, err
		}
		if err := pause(ctx, began, try); err != nil {
			return nil, rev, err
		}
	}
}

// pause waits before another try, for a random time that is longer with each: so
// those who write the same do not meet again and again. If it was tried for long
// enough, it says so.
func pause(ctx context.Context, began time.Time, try int) error {
	if time.Since(began) > patience {
		return busy()
	}
	most := min(firstPause<<min(try, 10), longestPause)
	t := time.NewTimer(rand.N(most))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// troubles warns of what the documents ask for and this process cannot do now.
func (c *call) troubles(d *draft) (warnings []api.Problem) {
	for _, doc := range d.documents {
		p := api.Problems{Document: doc.index}
		for _, x := range conditionsOf(c.present(doc.after)) {
			if x.Status != "False" {
				continue
			}
			switch x.Type {
			case api.ConditionListening:
				p.Warn("/spec/port", x.Message, "").Hint = "it is tried again by itself"
			case api.ConditionAccepted:
				p.Warn("/metadata/name", "is not in force: "+x.Message, "")
			case api.ConditionResolved:
				p.Warn("/metadata/name", "is not complete: "+x.Message, "")
			}
		}
		if warnings = append(warnings, p.List...); len(warnings) > maxProblems {
			return append(warnings[:maxProblems:maxProblems], api.Problem{Document: doc.index, Rule: "there is more that is not in force than is told here", Warning: true})
		}
	}
	return warnings
}

// conditionsOf returns what is known of how it stands with an Object.
func conditionsOf(o api.Object) []api.StatusCondition {
	switch o := o.(type) {
	case *api.Service:
		return o.Status.Conditions
	case api.Routable:
		return o.RouteStatus().Conditions
	}
	return nil
}

func busy() error {
	e := api.Errorf(api.CodeUnavailable, "others write the same at the same time")
	e.Hint = "try again"
	return e
}

// authorize decides on each document by what it takes to write it now.
func (c *call) authorize(d *draft, opt options) error {
	err := c.Store.View(c.r.Context(), func(r store.Reader) (err error) {
		for _, doc := range d.documents {
			_, err := r.Get(doc.key)
			switch {
			case err == nil:
				doc.verb = verbUpdate
			case api.HasCode(err, api.CodeNotFound):
				doc.verb = verbCreate
			default:
				return err
			}
		}
		d.pruned, err = prunable(r, d, opt)
		return err
	})
	if err != nil {
		return err
	}
	for _, doc := range slices.Concat(d.documents, d.pruned) {
		if doc.decision, err = c.may(doc.verb, doc.key); err != nil {
			return c.veiled(err, doc)
		}
	}
	return nil
}

// veiled returns what the caller is told who may not write a document: of what he
// may not see, not whether it is there.
func (c *call) veiled(err error, doc *document) error {
	switch {
	case !api.HasCode(err, api.CodePermissionDenied) || doc.decision.Reason == api.ReasonDeviceNotActive || c.shows(doc.key):
		return err
	case doc.verb == verbDelete: // he did not name it
		return forbidden(doc.decision, "delete what bears the set and you may not see")
	}
	return forbidden(doc.decision, asked("write", doc.key))
}

// prunable returns what bears the set and is no document.
func prunable(r store.Reader, d *draft, opt options) (docs []*document, err error) {
	if !opt.prune {
		return nil, nil
	}
	for rec, err := range r.All() {
		if err != nil {
			return nil, err
		}
		if rec.Key.Group == address.Group || d.isPending(rec.Key) || !bytes.Contains(rec.JSON, []byte(opt.set)) {
			continue
		}
		o, err := store.Decode(rec)
		if err != nil {
			return nil, err
		}
		if o.Header().Metadata.ApplySet == opt.set {
			docs = append(docs, &document{index: noDocument, key: rec.Key, verb: verbDelete, before: o})
		}
	}
	return docs, nil
}

// check compiles the expressions of all documents and returns every problem so
// far, with warnings.
func (c *call) check(d *draft) []api.Problem {
	problems := slices.Clone(d.problems)
	for _, doc := range d.documents {
		p := api.Problems{Document: doc.index}
		c.Check(&p, doc.wanted)
		problems = append(problems, p.List...)
	}
	return problems
}

// transact writes the documents of d into tx, deletes what is to be pruned, and
// sets what became of each. If there is any problem its error has all of them.
func (c *call) transact(tx store.Tx, d *draft, problems []api.Problem, who api.Ref, opt options) error {
	found := report{}
	var conflicts []api.Problem
	w, err := c.newWriter(tx, who) // before he writes
	if err != nil {
		return err
	}
	for _, doc := range d.documents {
		conflict := api.Problems{Document: doc.index}
		p := found.of(doc)
		if err := c.merge(tx, doc, who, opt, p, &conflict); err != nil {
			return err
		}
		if conflicts = append(conflicts, conflict.List...); doc.action == api.ActionUnchanged {
			continue
		}
		if err := c.replan(tx, doc, p); err != nil {
			return err
		}
		questions, err := w.questions(tx, doc.before, doc.after)
		if err != nil {
			return err
		}
		if err := c.mayAlso(doc.index, questions); err != nil {
			return err
		}
		if p.Err() == nil && len(conflict.List) == 0 {
			if err := put(tx, doc.after); err != nil {
				return err
			}
		}
	}
	if err := c.checkAgainst(tx, d, found); err != nil {
		return err
	}
	problems = slices.Concat(problems, found.all(d))
	slices.SortStableFunc(problems, byDocument)
	if (&api.Problems{List: problems}).Err() != nil {
		problems = append(problems, conflicts...)
		return &api.Error{Code: api.CodeInvalid, Message: "nothing was written: the input is invalid", Problems: readable(problems)}
	}
	if len(conflicts) > 0 {
		return &api.Error{Code: api.CodeConflict, Message: "nothing was written", Problems: readable(conflicts)}
	}
	d.problems = problems // warnings
	if err := c.settleAll(tx, d.documents); err != nil {
		return err
	}
	return c.prune(tx, d, w, who, opt)
}

// checkAgainst reports what of the documents that change something does not go
// together with the other Objects.
func (c *call) checkAgainst(tx store.Tx, d *draft, found report) error {
	missing, suggested := 0, 0
	meant := func(k api.Key) ([]string, bool, error) {
		if suggested++; suggested > maxMeant {
			return nil, true, nil
		}
		return near(tx, k, c.shows)
	}
	for _, doc := range d.documents {
		if doc.action == api.ActionUnchanged {
			continue
		}
		p := found.of(doc)
		before := len(p.List)
		if err := errors.Join(checkReferences(tx, doc.after, d.isPending, meant, p), checkNamesake(tx, doc, p, c.shows)); err != nil {
			return err
		}
		for _, x := range p.List[before:] {
			if !x.Warning {
				missing++
			}
		}
		if missing >= maxProblems {
			break // nobody reads more, and each costs a search
		}
	}
	for _, kind := range []string{api.KindService, api.KindUser} {
		if err := checkClaims(tx, kind, d.documents, found.of, c.shows); err != nil {
			return err
		}
	}
	return nil
}

// prune deletes what d says, if that is still what bears the set.
func (c *call) prune(tx store.Tx, d *draft, w *writer, who api.Ref, opt options) error {
	now, err := prunable(tx, d, opt)
	if err != nil {
		return err
	}
	if !slices.EqualFunc(d.pruned, now, func(a, b *document) bool { return a.key == b.key }) {
		return errChanged
	}
	var keys []api.Key
	for i, doc := range d.pruned {
		doc.before, doc.action = now[i].before, api.ActionDeleted
		keys = append(keys, doc.key)
	}
	if d.gone, err = doomed(tx, keys, true, c.shows); err != nil {
		return err
	}
	if err := c.mayDelete(tx, w, who, d.gone, c.shows); err != nil {
		return err
	}
	return deleteAll(tx, d.gone, c.Now())
}

// A report has the problems of each document.
type report map[*document]*api.Problems

func (r report) of(d *document) *api.Problems {
	if r[d] == nil {
		r[d] = &api.Problems{Document: d.index}
	}
	return r[d]
}

// all returns the problems in the order of the documents.
func (r report) all(d *draft) (problems []api.Problem) {
	for _, doc := range d.documents {
		problems = append(problems, r.of(doc).List...)
	}
	return problems
}

func byDocument(a, b api.Problem) int { return cmp.Compare(a.Document, b.Document) }

// readable returns the problems in the order of the documents, and of more than
// anybody reads the first errors.
func readable(problems []api.Problem) []api.Problem {
	slices.SortStableFunc(problems, byDocument)
	if len(problems) <= maxProblems {
		return problems
	}
	problems = slices.DeleteFunc(problems, func(p api.Problem) bool { return p.Warning })
	if len(problems) <= maxProblems {
		return problems
	}
	more := api.Problem{Document: problems[maxProblems].Document, Rule: fmt.Sprintf("there are more problems than these %d", maxProblems)}
	return append(problems[:maxProblems:maxProblems], more)
}

// merge works out what a document makes of the Object that is stored: the user's
// part is the document's, the server's stays.
func (c *call) merge(r store.Reader, doc *document, who api.Ref, opt options, p, conflict *api.Problems) error {
	var err error
	if doc.before, err = stored(r, doc.key); err != nil {
		return err
	}
	if (doc.before == nil) != (doc.verb == verbCreate) {
		return errChanged
	}
	doc.after = api.Clone(doc.wanted) // the function may run again
	h := &doc.after.Header().Metadata
	sent := h.ResourceVersion
	now := c.started.UTC() // what is written together is of one age
	if doc.before == nil {
		if opt.only == api.ActionConfigured {
			return api.NotFound(doc.key)
		}
		if sent != "" {
			conflict.Add("/metadata/resourceVersion", "must be left out to create it: it does not exist, or was deleted since it was read", sent)
			return nil
		}
		h.UID, h.ResourceVersion, h.IsSystem, h.ApplySet = newUID(), newVersion(), false, opt.set
		h.CreatedAt, h.UpdatedAt, h.ActorRef = now, now, &who
		setStatus(doc.after, nil)
		doc.action = api.ActionCreated
		if doc.key.Kind == api.KindService && api.NamespaceOf(doc.key.Name) == api.SystemNamespace {
			p.Add("/metadata/name", "must be in another Namespace: in "+api.SystemNamespace+" are the Services that are Cardea itself", doc.key.Name)
		}
		return c.seal(doc.after, nil, p)
	}

	old := doc.before.Header().Metadata
	if opt.only == api.ActionCreated {
		e := api.Errorf(api.CodeConflict, "%s %q exists already", doc.key.Kind, nameOf(doc.key))
		e.Hint = "change it with apply"
		return e
	}
	if sent != "" && sent != old.ResourceVersion {
		if opt.rereads {
			return errChanged
		}
		conflict.Add("/metadata/resourceVersion", fmt.Sprintf("must be %s, the one that is stored, or absent", old.ResourceVersion), sent).
			Hint = "it was changed since it was read: read it again"
	}
	h.UID, h.ResourceVersion, h.IsSystem = old.UID, old.ResourceVersion, old.IsSystem
	h.CreatedAt, h.UpdatedAt, h.ActorRef = old.CreatedAt, old.UpdatedAt, old.ActorRef
	if h.ApplySet = old.ApplySet; opt.set != "" && !old.IsSystem {
		if h.ApplySet = opt.set; old.ApplySet != "" && old.ApplySet != opt.set {
			conflict.Add("/metadata/applySet", fmt.Sprintf("must be %s: another set made it", old.ApplySet), opt.set).
				Hint = "prune it from that set, or leave it to it"
		}
	}
	setStatus(doc.after, doc.before)
	if err := c.seal(doc.after, doc.before, p); err != nil {
		return err
	}
	if same, err := equal(doc.before, doc.after); err != nil || same {
		doc.action, doc.after = api.ActionUnchanged, doc.before
		return err
	}
	checkUpdate(doc.before, doc.after, p)
	h.ResourceVersion, h.UpdatedAt, h.ActorRef = newVersion(), now, &who
	doc.action = api.ActionConfigured
	return nil
}

// checkUpdate reports what of an Object cannot be changed.
func checkUpdate(before, after api.Object, p *api.Problems) {
	if h := before.Header(); h.Metadata.IsSystem && !slices.Contains(changeable(), h.Key()) {
		p.Add("/metadata/name", fmt.Sprintf("must not name a %s that the system made: it cannot be changed", h.Kind), h.Metadata.Name)
	}
	if b, ok := before.(*api.KubernetesSecret); ok && b.Immutable != nil && *b.Immutable {
		if a := after.(*api.KubernetesSecret); a.Status.SHA256 != b.Status.SHA256 {
			p.Add("/data", "cannot be changed: the Secret is immutable", "").Hint = "delete it, and create it anew"
		}
	}
	if b, ok := before.(*api.Credential); ok {
		a := after.(*api.Credential)
		if a.Spec.User != b.Spec.User {
			p.Add("/spec/user", "cannot be changed: it is "+b.Spec.User, a.Spec.User).Hint = "create another Credential"
		}
		if a.Spec.Type != b.Spec.Type {
			p.Add("/spec/type", "cannot be changed: it is "+string(b.Spec.Type), string(a.Spec.Type)).Hint = "create another Credential"
		}
	}
}

// changeable lists those Objects of the system that an administrator may change.
func changeable() []api.Key {
	return []api.Key{
		{Group: api.GroupCore, Kind: api.KindClusterConfig, Name: api.ClusterConfigName},
		{Group: api.GroupCore, Kind: api.KindNamespace, Name: api.DefaultNamespace},
		{Group: api.GroupCore, Kind: api.KindUser, Name: api.RootUser},
	}
}

// setStatus gives o the status of another Object of its kind, or an empty one:
// never what the input says. Default fills in what follows from the spec.
func setStatus(o, from api.Object) {
	to := reflect.ValueOf(o).Elem().FieldByName("Status")
	to.SetZero()
	if from != nil {
		to.Set(reflect.ValueOf(from).Elem().FieldByName("Status"))
	}
	o.Default()
}

// seal seals the value of a Secret. One that is the same as before, or absent,
// stays as it was sealed.
func (c *call) seal(o, before api.Object, p *api.Problems) error {
	switch s := o.(type) {
	case *api.Secret:
		return c.sealOwn(s, before, p)
	case *api.KubernetesSecret:
		return c.sealKubernetes(s, before, p)
	}
	return nil
}

// sealKubernetes does so for a Secret of Kubernetes, which need not have any value.
func (c *call) sealKubernetes(s *api.KubernetesSecret, before api.Object, p *api.Problems) error {
	if !s.HasData() && before != nil {
		return nil
	}
	if !s.HasData() {
		p.Warn("/metadata/name", "has no values: what names the Secret is not complete", s.Metadata.Name)
	}
	s.Status = api.KubernetesSecretStatus{}
	if err := c.Keeper.SealKubernetes(s); err != nil {
		return err
	}
	if before != nil {
		if old := before.(*api.KubernetesSecret).Status; old.SHA256 == s.Status.SHA256 && old.KeyID == s.Status.KeyID {
			s.Status = old
		}
	}
	return nil
}

func (c *call) sealOwn(s *api.Secret, before api.Object, p *api.Problems) error {
	if s.Data == nil {
		if len(s.Status.Sealed) == 0 { // from before
			p.Add("/data", "is required: {value: TEXT} or {valueBytes: BASE64}", "")
		}
		return nil
	}
	s.Status = api.SecretStatus{}
	if err := c.Keeper.Seal(s); err != nil {
		return err
	}
	if before != nil {
		if old := before.(*api.Secret).Status; old.SHA256 == s.Status.SHA256 && old.KeyID == s.Status.KeyID {
			s.Status = old
		}
	}
	return nil
}

// lockout returns a check of a proposed state in which keys are written: that the
// caller may still write policies, if that is so now, and unless it is allowed to
// end.
func (c *call) lockout(who api.Ref, allowed bool) func(r store.Reader, keys []api.Key) error {
	none := func(store.Reader, []api.Key) error { return nil }
	if c.Proposed == nil || allowed {
		return none
	}
	ctx := c.r.Context()
	a := about(verbUpdate, api.Key{Kind: api.KindPolicy})
	now, err := c.decide(ctx, a)
	if err != nil || !now.Allowed() {
		return none
	}
	facts := c.facts
	facts.API = &a
	return func(r store.Reader, keys []api.Key) error {
		if !slices.ContainsFunc(keys, func(k api.Key) bool { return slices.Contains(now.DependsOn, k) }) {
			return nil // a decision hangs on nothing but what it names
		}
		d, err := c.Proposed(ctx, r, api.Request{Service: api.APIService, Session: who.UID, Facts: &facts, Now: c.Now()})
		if err != nil {
			return fmt.Errorf("decide on the proposed state: %w", err)
		}
		if d.Allowed() {
			return nil
		}
		e := api.Errorf(api.CodeConflict, "nothing was written: afterwards your Session could no longer write policies (%s)", d.Words)
		e.Hint = "use --allow-lockout if that is what you want"
		return e
	}
}

// recordWrites records what was changed, before it is committed: what cannot be
// recorded does not happen.
func (c *call) recordWrites(ctx context.Context, d *draft) error {
	var recs []*api.AccessLog
	for _, doc := range d.documents {
		if doc.action != api.ActionUnchanged {
			recs = append(recs, c.record(doc.decision, about(doc.verb, doc.key), doc.before, doc.after))
		}
	}
	for i, o := range d.gone { // the pruned in their order, then what went with them
		by := d.pruned[min(i, len(d.pruned)-1)].decision
		recs = append(recs, c.deletions(by, []api.Object{o})...)
	}
	return c.append(ctx, recs)
}

// deletions returns the records of Objects that were deleted by a decision, or
// went with another.
func (c *call) deletions(by api.Decision, gone []api.Object) (recs []*api.AccessLog) {
	for _, o := range gone {
		recs = append(recs, c.record(by, about(verbDelete, o.Header().Key()), o, nil))
	}
	return recs
}

func (c *call) append(ctx context.Context, recs []*api.AccessLog) error {
	if len(recs) == 0 {
		return nil
	}
	if err := c.Audit.Append(ctx, recs...); err != nil {
		c.Log.Error("a call was refused because the access log cannot be written", "error", err)
		e := api.Errorf(api.CodeUnavailable, "nothing was done: the access log cannot be written")
		e.Hint = "the cluster's own log says why"
		return e
	}
	return nil
}

// await returns once decisions are made on what was committed, which is so
// whether or not the caller still waits.
func (c *call) await(ctx context.Context, rev api.Revision) error {
	ctx, cancel := context.WithTimeout(ctx, awaitTimeout)
	defer cancel()
	if err := c.Await(ctx, rev); err != nil {
		c.Log.Error("a write is stored and decisions are not yet made on it", "revision", rev, "error", err)
		return api.Errorf(api.CodeUnavailable, "it was written, but decisions are not yet made on it")
	}
	return nil
}

// put writes o into tx.
func put(tx store.Tx, o api.Object) error {
	rec, err := store.Encode(o)
	if err != nil {
		return err
	}
	return tx.Put(rec)
}

// stored returns the Object of that key, and nil if there is none.
func stored(r store.Reader, k api.Key) (api.Object, error) {
	o, err := store.Get[api.Object](r, k)
	if api.HasCode(err, api.CodeNotFound) {
		return nil, nil
	}
	return o, err
}

// equal reports whether two Objects would be stored as the same.
func equal(a, b api.Object) (bool, error) {
	x, err := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return bytes.Equal(x, y), errors.Join(err, err2)
}

func newUID() string { return uuid.NewString() }

// newVersion returns a UUIDv7 (RFC 9562): one that was made later sorts behind.
func newVersion() string { return uuid.Must(uuid.NewV7()).String() }
