package control

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"cardea/api"
	"cardea/manifest"
	"cardea/rpc"
	"cardea/store"
)

// awaitTimeout is how long the answer to a write waits for decisions to be made
// on it.
const awaitTimeout = 30 * time.Second

const (
	maxDocuments = 10_000 // in one apply
	maxProblems  = 100    // that one answer tells
)

// options say how documents are written.
type options struct {
	// only is ActionCreated if the Object must not exist, ActionConfigured if it
	// must, and "" if either will do.
	only         api.Action
	dryRun       bool
	allowLockout bool
}

// A document is an Object that somebody wants to be so, and what became of it.
type document struct {
	index    int
	wanted   api.Object // with defaults; never written to
	verb     string     // what it takes: create or update
	decision api.Decision

	action        api.Action
	before, after api.Object
}

func (d *document) key() api.Key { return d.wanted.Header().Key() }

// result returns what became of a document.
func (d *document) result() api.Result {
	return api.Result{Kind: d.key().Kind, Name: d.key().Name, Action: d.action}
}

// A draft is a list of documents on their way into the store.
type draft struct {
	documents []*document // those that have no problem of their own
	problems  []api.Problem
	// pending names what is in the request, also if it cannot be written: other
	// documents may refer to it.
	pending map[api.Key]bool
}

// written returns the keys of what changes.
func (d *draft) written() (keys []api.Key) {
	for _, doc := range d.documents {
		if doc.action != api.ActionUnchanged {
			keys = append(keys, doc.key())
		}
	}
	return keys
}

// read decodes documents and finds what is wrong with each alone.
func read(raw []json.RawMessage) *draft {
	d := &draft{pending: map[api.Key]bool{}}
	for i, b := range raw {
		o, problems := manifest.DecodeJSON(i, b)
		if o != nil {
			p := api.Problems{Document: i}
			k := o.Header().Key()
			kind, _ := api.KindOf(k.Kind)
			if !kind.ByHand {
				p.Add("/kind", "must be a kind that people write: a "+k.Kind+" is made by logging in", k.Kind)
			}
			if d.pending[k] && k.Name != "" {
				p.Add("/metadata/name", "must not be there twice: another document is this "+k.Kind, k.Name)
			}
			d.pending[k] = true
			if s, ok := o.(*api.Secret); ok && s.Data == nil {
				// Whether it needs a value depends on whether it has one already.
				problems = slices.DeleteFunc(problems, func(p api.Problem) bool {
					return p.Pointer == "/data" && strings.HasPrefix(p.Rule, "is required")
				})
			}
			problems = append(problems, p.List...)
		}
		d.problems = append(d.problems, problems...)
		if (&api.Problems{List: problems}).Err() == nil {
			d.documents = append(d.documents, &document{index: i, wanted: o})
		}
	}
	return d
}

var (
	errDryRun  = errors.New("control: a dry run")
	errChanged = errors.New("control: what was decided on has changed")
)

// write makes the Objects as raw wants them, all or none. The documents that it
// returns are in that order.
func (c *call) write(who api.Ref, raw []json.RawMessage, opt options) (*draft, api.Revision, error) {
	ctx := c.r.Context()
	d := read(raw)
	// What is decided is whether the caller may create, or may update. Should an
	// Object come or go before the transaction, it is decided again.
	for range 5 {
		if err := c.authorize(d); err != nil {
			return nil, api.Revision{}, err
		}
		checked := c.check(d)
		lockout := c.lockout(who, opt.allowLockout)
		rev, err := c.Store.Update(ctx, who.Name, func(tx store.Tx) error {
			if err := c.transact(tx, d, checked, who, opt); err != nil {
				return err
			}
			if err := lockout(tx, d.written()); err != nil {
				return err
			}
			if opt.dryRun {
				return errDryRun
			}
			return c.recordWrites(ctx, d.documents)
		})
		switch {
		case err == nil:
			return d, rev, c.await(ctx, rev)
		case errors.Is(err, errDryRun):
			return d, rev, nil
		case !errors.Is(err, errChanged):
			return nil, rev, err
		}
	}
	return nil, api.Revision{}, busy()
}

func busy() error {
	e := api.Errorf(api.CodeUnavailable, "others write the same at the same time")
	e.Hint = "try again"
	return e
}

// authorize decides on each document by what it takes to write it now.
func (c *call) authorize(d *draft) error {
	err := c.Store.View(c.r.Context(), func(r store.Reader) error {
		for _, doc := range d.documents {
			_, err := r.Get(doc.key())
			switch {
			case err == nil:
				doc.verb = verbUpdate
			case api.HasCode(err, api.CodeNotFound):
				doc.verb = verbCreate
			default:
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, doc := range d.documents {
		if doc.decision, err = c.may(doc.verb, doc.key()); err != nil {
			return err
		}
	}
	return nil
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

// transact writes the documents of d into tx and sets what became of each. If
// there is any problem its error has all of them.
func (c *call) transact(tx store.Tx, d *draft, problems []api.Problem, who api.Ref, opt options) error {
	problems = slices.Clone(problems)
	var conflicts []api.Problem
	for _, doc := range d.documents {
		p, conflict := api.Problems{Document: doc.index}, api.Problems{Document: doc.index}
		if err := c.merge(tx, doc, who, opt, &p, &conflict); err != nil {
			return err
		}
		if doc.action != api.ActionUnchanged && p.Err() == nil {
			if err := put(tx, doc.after); err != nil {
				return err
			}
		}
		problems = append(problems, p.List...)
		conflicts = append(conflicts, conflict.List...)
	}
	missing := 0
	for _, doc := range d.documents {
		p := api.Problems{Document: doc.index}
		if err := checkReferences(tx, doc.wanted, d.pending, &p); err != nil {
			return err
		}
		problems = append(problems, p.List...)
		if missing += len(p.List); missing >= maxProblems {
			break // nobody reads more, and each costs a search
		}
	}
	slices.SortStableFunc(problems, byDocument)
	if (&api.Problems{List: problems}).Err() != nil {
		problems = append(problems, conflicts...)
		return &api.Error{Code: api.CodeInvalid, Message: "nothing was written: the input is invalid", Problems: readable(problems)}
	}
	if len(conflicts) > 0 {
		return &api.Error{Code: api.CodeConflict, Message: "nothing was written", Problems: readable(conflicts)}
	}
	d.problems = problems // warnings
	return nil
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
	if doc.before, err = stored(r, doc.key()); err != nil {
		return err
	}
	if (doc.before == nil) != (doc.verb == verbCreate) {
		return errChanged
	}
	doc.after = api.Clone(doc.wanted) // the function may run again
	h := &doc.after.Header().Metadata
	sent := h.ResourceVersion
	now := c.Now().UTC()
	if doc.before == nil {
		if opt.only == api.ActionConfigured {
			return api.NotFound(doc.key())
		}
		if sent != "" {
			conflict.Add("/metadata/resourceVersion", "must be left out to create it: it does not exist, or was deleted since it was read", sent)
			return nil
		}
		h.UID, h.ResourceVersion, h.IsSystem = newUID(), newVersion(), false
		h.CreatedAt, h.UpdatedAt, h.ActorRef = now, now, &who
		setStatus(doc.after, nil)
		doc.action = api.ActionCreated
		return c.seal(doc.after, nil, p)
	}

	old := doc.before.Header().Metadata
	if opt.only == api.ActionCreated {
		e := api.Errorf(api.CodeConflict, "%s %q exists already", doc.key().Kind, doc.key().Name)
		e.Hint = "change it with apply"
		return e
	}
	if sent != "" && sent != old.ResourceVersion {
		conflict.Add("/metadata/resourceVersion", fmt.Sprintf("must be %s, the one that is stored, or absent", old.ResourceVersion), sent).
			Hint = "it was changed since it was read: read it again"
	}
	h.UID, h.ResourceVersion, h.IsSystem = old.UID, old.ResourceVersion, old.IsSystem
	h.CreatedAt, h.UpdatedAt, h.ActorRef = old.CreatedAt, old.UpdatedAt, old.ActorRef
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
	s, ok := o.(*api.Secret)
	if !ok {
		return nil
	}
	if s.Data == nil {
		s.Validate(p) // it must have a value from before
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
func (c *call) recordWrites(ctx context.Context, docs []*document) error {
	var recs []*api.AccessLog
	for _, d := range docs {
		if d.action != api.ActionUnchanged {
			recs = append(recs, c.record(d.decision, about(d.verb, d.key()), d.before, d.after))
		}
	}
	return c.append(ctx, recs)
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

// decode returns the Object of a Record.
func decode(rec store.Record) (api.Object, error) {
	k, ok := api.KindOf(rec.Key.Kind)
	if !ok {
		return nil, fmt.Errorf("control: %s is stored and its kind is not known", rec.Key)
	}
	o := k.New()
	if err := json.Unmarshal(rec.JSON, o); err != nil {
		return nil, fmt.Errorf("control: decode %s: %w", rec.Key, err)
	}
	return o, nil
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

// apply answers POST /api/apply.
func (c *call) apply() (any, error) {
	q, err := c.query("allowLockout")
	if err != nil {
		return nil, err
	}
	var opt options
	if opt.allowLockout, err = boolean(q, "allowLockout"); err != nil {
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
	if len(in.Documents) > maxDocuments {
		return nil, api.Errorf(api.CodeInvalid, "there are %d documents; one apply may have %d", len(in.Documents), maxDocuments)
	}
	opt.dryRun = in.DryRun
	d, rev, err := c.write(who, in.Documents, opt)
	if err != nil {
		return nil, err
	}
	out := api.ApplyResponse{Results: []api.Result{}, Warnings: d.problems, Revision: rev}
	for _, doc := range d.documents {
		out.Results = append(out.Results, doc.result())
	}
	return out, nil
}

// create answers POST /api/core/v1/{kind}.
func (c *call) create() (any, error) { return c.writeOne(options{only: api.ActionCreated}) }

// update answers PUT /api/core/v1/{kind}/{name}.
func (c *call) update() (any, error) { return c.writeOne(options{only: api.ActionConfigured}) }

// writeOne writes the one Object that is the body, of the kind, and with the name
// if there is one, that the path says.
func (c *call) writeOne(opt options) (any, error) {
	q, err := c.query("allowLockout", "dryRun")
	if err != nil {
		return nil, err
	}
	if opt.allowLockout, err = boolean(q, "allowLockout"); err != nil {
		return nil, err
	}
	if opt.dryRun, err = boolean(q, "dryRun"); err != nil {
		return nil, err
	}
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
	var named api.Head
	if json.Unmarshal(body, &named) == nil { // otherwise write says what is wrong
		if named.Kind != "" && named.Kind != k.Kind {
			return nil, api.Errorf(api.CodeInvalid, "the path is that of a %s and the body is a %s", k.Kind, strings.ToValidUTF8(fmt.Sprintf("%.40q", named.Kind), ""))
		}
		if got := api.CanonicalName(k.Kind, named.Metadata.Name); k.Name != "" && got != k.Name {
			return nil, api.Errorf(api.CodeInvalid, "the path names %q and the body %.100q", k.Name, got)
		}
	}
	d, rev, err := c.write(who, []json.RawMessage{body}, opt)
	if err != nil {
		return nil, err
	}
	doc := d.documents[0]
	object, err := encode(doc.after)
	return api.WriteResponse{Result: doc.result(), Object: object, Warnings: d.problems, Revision: rev}, err
}
