package control

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"cardea/api"
	"cardea/store"
)

// A question is what a write takes beside create, update or delete. Each verb
// means one thing of the Object that it is about, so that a policy can say who may
// give what:
//
//   - use a Secret: say where its value goes;
//   - publish a Service or TCPMapping: open a port for it, or let those in who have
//     no Session;
//   - approve: let a Session, Device or Authenticator be used, and say on what
//     terms the Sessions of a User, or of all, are;
//   - impersonate a User: let somebody log in as him;
//   - attach a Policy that the writer does not have to anything;
//   - join a Group: make somebody a member, or take him out of what it denies;
//   - escalate: write what rules say, or what they read, into the Object;
//   - logs: say where the access log goes and how long it is kept;
//   - delete a Session, by ending it earlier.
type question struct {
	verb    string
	about   api.Key
	pointer string // what in the document asks it
	words   string // what it would do, for whoever may not
}

// noDocument is the index of what is deleted and is no document.
const noDocument = -1

// mayAlso asks the questions of the document of that index. If the answer to one
// is no, its error says what would be given, and what would help.
func (c *call) mayAlso(document int, questions []question) error {
	for _, q := range questions {
		_, err := c.may(q.verb, q.about)
		if e, ok := errors.AsType[*api.Error](err); ok && e.Code == api.CodePermissionDenied {
			e.Problems = []api.Problem{{Document: document, Pointer: q.pointer, Rule: q.words}}
			e.Hint = "it takes a policy that allows you: " + asked(q.verb, q.about)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mayDelete asks what it takes to delete Objects, beside the right to delete.
// Whoever ends his own Session is asked nothing. What a refusal names, shows lets
// be named.
func (c *call) mayDelete(r store.Reader, w *writer, who api.Ref, gone []api.Object, shows func(api.Key) bool) error {
	for _, o := range gone {
		if o.Header().Metadata.UID == who.UID {
			continue
		}
		k := o.Header().Key()
		questions, err := w.questions(r, o, nil)
		if err != nil {
			return err
		}
		for i, q := range questions {
			questions[i].pointer, questions[i].words = "", fmt.Sprintf("to delete %s %s %s", k.Kind, k.Name, q.words)
		}
		err = c.mayAlso(noDocument, questions)
		if api.HasCode(err, api.CodePermissionDenied) && !shows(k) {
			return api.Errorf(api.CodePermissionDenied, "not allowed: it would delete what you may not see")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mayLogInAs asks what it takes to make a token by which somebody logs in as the
// User of a Credential.
func (c *call) mayLogInAs(r store.Reader, who api.Ref, cred *api.Credential) error {
	w, err := c.newWriter(r, who)
	if err != nil {
		return err
	}
	return c.mayAlso(0, w.logsIn(cred))
}

// A writer is who writes, as far as it tells what he may give away.
type writer struct {
	user     string
	groups   []string
	policies []string // that his Session, User, Groups and Device name
	// isBound is set if his Session or Device has policies that deny: what he does
	// under another Session is not bound by them.
	isBound bool
	// What questions read of the store; nil before the first.
	tls      *tlsObjects
	mappings *mappings
}

// newWriter returns the User of a Session and what he holds.
func (c *call) newWriter(r store.Reader, who api.Ref) (*writer, error) {
	w := new(writer)
	if who.Kind == kindOwner {
		return w, nil // who holds nothing and may give everything
	}
	s, err := stored(r, coreKey(api.KindSession, who.Name))
	if err != nil {
		return nil, err
	}
	if s == nil || s.Header().Metadata.UID != who.UID {
		return nil, stranger() // it ended in between
	}
	session := s.(*api.Session)
	w.user = session.Status.UserRef.Name
	holders := []api.Key{coreKey(api.KindUser, w.user)}
	if d := session.Status.DeviceRef; d != nil {
		holders = append(holders, coreKey(api.KindDevice, d.Name))
	}
	if w.isBound, err = w.hold(r, session); err != nil {
		return nil, err
	}
	for len(holders) > 0 {
		o, err := stored(r, holders[0])
		if holders = holders[1:]; err != nil {
			return nil, err
		}
		if o == nil {
			continue
		}
		denies, err := w.hold(r, o)
		if err != nil {
			return nil, err
		}
		switch o := o.(type) {
		case *api.Device:
			w.isBound = w.isBound || denies
		case *api.User:
			w.groups = o.Spec.Groups
			for _, g := range w.groups {
				holders = append(holders, coreKey(api.KindGroup, g))
			}
		}
	}
	return w, nil
}

// hold adds the Policies that o names, and reports whether something denies
// among all that is attached to it.
func (w *writer) hold(r store.Reader, o api.Object) (denies bool, err error) {
	w.policies = append(w.policies, api.AuthorizationOf(o).Policies...)
	return restricts(r, api.AuthorizationOf(o))
}

func coreKey(kind, name string) api.Key {
	return api.Key{Group: api.GroupCore, Kind: kind, Name: name}
}

// questions returns what it takes to make an Object what it is after of what it
// was before; nil stands for one that is not there. To delete one takes what it
// would take to make it plain by an update: whoever may make it again is rid of
// what restricted it.
func (w *writer) questions(r store.Reader, before, after api.Object) ([]question, error) {
	list, err := w.foreignUses(r, before, after)
	if err != nil {
		return nil, err
	}
	others, err := w.affects(r, before, after)
	if err != nil {
		return nil, err
	}
	list = slices.Concat(list, others, uses(before, after), publishes(before, after), reads(before, after), logs(before, after))
	if before == nil {
		before = plain(after)
	}
	isGone := after == nil
	if isGone {
		after = plain(before)
	}
	list = append(list, approves(before, after)...)
	if p, ok := before.(*api.Policy); ok && isGone && !denies(&p.Spec) {
		return list, nil // nothing names it, so it gave nothing
	}
	given, err := w.gives(r, before, after)
	return append(list, given...), err
}

// plain returns an Object of the kind and name of another of which nobody wrote
// anything more.
func plain(o api.Object) api.Object {
	p := blank(o.Header().Key())
	switch o := o.(type) {
	case *api.Credential:
		p.(*api.Credential).Spec.User = o.Spec.User
	case *api.User:
		p.(*api.User).Spec.Type = o.Spec.Type // whoever makes one chooses it
	case *api.Session:
		p.(*api.Session).Spec.ExpiresAt = o.Spec.ExpiresAt
	}
	p.Default()
	return p
}

// blank returns a new Object of a key that says nothing more.
func blank(k api.Key) api.Object {
	kind, _ := api.KindIn(k.Group, k.Kind)
	o := kind.New()
	o.Header().Metadata = api.Metadata{Namespace: k.Namespace, Name: k.Name}
	o.Default()
	return o
}

// uses asks for each Secret that is named, unless what names it is as before:
// who decides where the value goes uses it, also if somebody else named it.
func uses(before, after api.Object) (list []question) {
	ask := func(name, pointer string) {
		list = append(list, question{verbUse, coreKey(api.KindSecret, name), pointer, "uses the Secret " + name})
	}
	switch o := after.(type) {
	case *api.Service:
		was, _ := before.(*api.Service)
		if name := certificateOf(o); name != "" && (was == nil || !reflect.DeepEqual(was.Spec.Public, o.Spec.Public)) {
			ask(name, certificatePointer)
		}
		for at, c := range configs(o) {
			c = o.EffectiveConfig(c.Name)
			if was != nil && reflect.DeepEqual(was.EffectiveConfig(c.Name), c) {
				continue
			}
			for name, pointer := range c.Secrets() {
				ask(name, at+pointer)
			}
		}
	case *api.ClusterConfig:
		was, _ := before.(*api.ClusterConfig)
		if o.Spec.Collector == nil || was != nil && reflect.DeepEqual(was.Spec.Collector, o.Spec.Collector) {
			return nil
		}
		for i, h := range o.Spec.Collector.Headers {
			if h.FromSecret != "" {
				ask(h.FromSecret, fmt.Sprintf("/spec/collector/headers/%d/fromSecret", i))
			}
		}
	}
	return list
}

// publishes asks for what opens a port, whenever it changes.
func publishes(before, after api.Object) []question {
	switch o := after.(type) {
	case *api.Service:
		was, ok := before.(*api.Service)
		switch {
		case ok && reflect.DeepEqual(was.Spec, o.Spec):
		case o.Spec.IsAnonymous:
			return []question{{verbPublish, o.Key(), "/spec/isAnonymous", "opens the Service to those who have no Session"}}
		case o.Spec.IsPublic:
			return []question{{verbPublish, o.Key(), "/spec/isPublic", "opens a port for the Service"}}
		}
	case *api.TCPMapping:
		was, ok := before.(*api.TCPMapping)
		if !ok || !reflect.DeepEqual(was.Spec, o.Spec) || !maps.Equal(was.Metadata.Annotations, o.Metadata.Annotations) {
			return []question{{verbPublish, o.Key(), "/spec/port", "opens a port to everybody"}}
		}
	}
	return nil
}

// logs asks for a change of what becomes of the access log.
func logs(before, after api.Object) (list []question) {
	o, ok := after.(*api.ClusterConfig)
	was, isUpdate := before.(*api.ClusterConfig)
	if !ok || !isUpdate {
		return nil
	}
	ask := func(pointer, words string) {
		list = append(list, question{verbLogs, api.Key{}, pointer, words})
	}
	if !reflect.DeepEqual(was.Spec.Collector, o.Spec.Collector) {
		ask("/spec/collector", "changes who gets the access log")
	}
	if o.Spec.Collector != nil && !reflect.DeepEqual(was.Spec.DNS.Hosts, o.Spec.DNS.Hosts) {
		ask("/spec/dns/hosts", "changes where names lead, that of the collector too")
	}
	if !reflect.DeepEqual(was.Spec.Audit, o.Spec.Audit) {
		ask("/spec/audit", "changes how the access log is kept")
	}
	return list
}

// reads asks for a change of what policies read of those about whom they are. Who
// makes one chooses its name, a User's type and email, and nothing else.
func reads(before, after api.Object) (list []question) {
	if after == nil {
		return nil
	}
	is, ok := attrsOf(after)
	if !ok {
		return nil
	}
	m, wasM, was := after.Header().Metadata, api.Metadata{}, api.Attrs(nil)
	if before != nil {
		wasM = before.Header().Metadata
		was, _ = attrsOf(before)
	}
	ask := func(pointer string, isSame bool) {
		if !isSame {
			list = append(list, question{verbEscalate, after.Header().Key(), pointer, "changes what policies may read"})
		}
	}
	ask("/metadata/labels", maps.Equal(wasM.Labels, m.Labels))
	ask("/metadata/annotations", maps.Equal(wasM.Annotations, m.Annotations))
	ask("/metadata/tags", slices.Equal(wasM.Tags, m.Tags))
	ask("/spec/attrs", len(was) == 0 && len(is) == 0 || reflect.DeepEqual(was, is))
	if o, ok := before.(*api.User); ok {
		ask("/spec/email", o.Spec.Email == after.(*api.User).Spec.Email)
		ask("/spec/type", o.Spec.Type == after.(*api.User).Spec.Type)
	}
	return list
}

// attrsOf returns the attrs of an Object about which policies are. Who writes a
// Service says who reaches it anyway.
func attrsOf(o api.Object) (attrs api.Attrs, ok bool) {
	switch o := o.(type) {
	case *api.User:
		return o.Spec.Attrs, true
	case *api.Group:
		return o.Spec.Attrs, true
	case *api.Session:
		return nil, true
	case *api.Device:
		return o.Spec.Attrs, true
	case *api.Namespace:
		return o.Spec.Attrs, true
	}
	return nil, false
}

// approves asks for a change of what is called state, and of how long and on what
// terms Sessions are.
func approves(before, after api.Object) (list []question) {
	k := after.Header().Key()
	ask := func(verb, pointer, words string) { list = append(list, question{verb, k, pointer, words}) }
	if stateOf(before) != stateOf(after) {
		ask(verbApprove, "/spec/state", "changes whether it may be used")
	}
	switch o := after.(type) {
	case *api.Session:
		switch at := before.(*api.Session).Spec.ExpiresAt; at.Compare(o.Spec.ExpiresAt) {
		case -1:
			ask(verbApprove, "/spec/expiresAt", "prolongs the Session")
		case +1:
			ask(verbDelete, "/spec/expiresAt", "ends the Session earlier")
		}
	case *api.User:
		was := before.(*api.User)
		if !reflect.DeepEqual(was.Spec.Session, o.Spec.Session) {
			ask(verbApprove, "/spec/session", "changes the terms of the User's Sessions")
		}
		if was.Spec.Type != o.Spec.Type {
			ask(verbApprove, "/spec/type", "changes the terms of the User's Sessions")
		}
	case *api.ClusterConfig:
		was := before.(*api.ClusterConfig)
		if !reflect.DeepEqual(was.Spec.Session, o.Spec.Session) {
			ask(verbApprove, "/spec/session", "changes the terms of Sessions")
		}
		if !reflect.DeepEqual(was.Spec.Device, o.Spec.Device) {
			ask(verbApprove, "/spec/device", "changes the terms of Devices")
		}
	}
	return list
}

// stateOf returns the state of what an administrator approves.
func stateOf(o api.Object) string {
	switch o := o.(type) {
	case *api.Session:
		return string(o.Spec.State)
	case *api.Device:
		return string(o.Spec.State)
	case *api.Authenticator:
		return string(o.Spec.State)
	}
	return ""
}

// gives asks for each right that somebody gets and that the writer does not have,
// and for each restriction that somebody is relieved of.
func (w *writer) gives(r store.Reader, before, after api.Object) (list []question, err error) {
	ask := func(verb string, about api.Key, pointer, format string, args ...any) {
		list = append(list, question{verb, about, pointer, fmt.Sprintf(format, args...)})
	}
	k, isNew := after.Header().Key(), before.Header().Metadata.UID == ""
	switch o := after.(type) {
	case *api.Service:
		return nil, nil // who writes it says who reaches it
	case *api.Policy:
		if !isNew && !reflect.DeepEqual(before.(*api.Policy).Spec, o.Spec) {
			ask(verbEscalate, k, "/spec", "changes what those may do to whom the Policy applies")
		}
	case *api.Namespace:
		if was := before.(*api.Namespace); !isNew && was.Spec.Parent != o.Spec.Parent {
			ask(verbEscalate, k, "/spec/parent", "changes the policies of all that is in the Namespace")
		}
	case *api.Credential:
		isGone := o.Metadata.UID == ""
		if was := before.(*api.Credential); isNew || isGone && was.Spec.IsDisabled || !isGone && !reflect.DeepEqual(was.Spec, o.Spec) {
			list = append(list, w.logsIn(o)...)
		}
	case *api.User:
		was := before.(*api.User)
		if was.Spec.IsDisabled && !o.Spec.IsDisabled {
			ask(verbImpersonate, k, "/spec/isDisabled", "lets a User in who is disabled")
		}
		for i, g := range o.Spec.Groups {
			if !slices.Contains(was.Spec.Groups, g) && !slices.Contains(w.groups, g) {
				ask(verbJoin, coreKey(api.KindGroup, g), fmt.Sprintf("/spec/groups/%d", i), "makes a member of the Group %s, of which you are none", g)
			}
		}
		for _, g := range without(was.Spec.Groups, o.Spec.Groups) {
			if bound, err := restrictsGroup(r, g); err != nil {
				return nil, err
			} else if bound {
				ask(verbJoin, coreKey(api.KindGroup, g), "/spec/groups", "takes out of the Group %s, which has policies that restrict", g)
			}
		}
	}

	is, was := api.AuthorizationOf(after), api.AuthorizationOf(before)
	if is == nil {
		return list, nil
	}
	const at = "/spec/authorization"
	for i, p := range is.Policies {
		if !slices.Contains(was.Policies, p) && !slices.Contains(w.policies, p) {
			ask(verbAttach, coreKey(api.KindPolicy, p), fmt.Sprintf("%s/policies/%d", at, i), "gives the Policy %s, which you do not have", p)
		}
	}
	for i, p := range is.InlinePolicies {
		if !hasInline(was, &p) {
			ask(verbEscalate, k, fmt.Sprintf("%s/inlinePolicies/%d", at, i), "gives what its rules allow")
		}
	}
	for _, p := range without(was.Policies, is.Policies) {
		if bound, err := restrictsPolicy(r, p); err != nil {
			return nil, err
		} else if bound {
			ask(verbEscalate, k, at+"/policies", "takes away the Policy %s, which restricts", p)
		}
	}
	for i, p := range was.InlinePolicies {
		if !hasInline(is, &p) && denies(&p.Spec) {
			ask(verbEscalate, k, at+"/inlinePolicies", "takes away inline policy %d, which restricts", i+1)
		}
	}
	return list, nil
}

// logsIn asks whether the writer may let somebody log in by a Credential, unless
// it is as himself.
func (w *writer) logsIn(cred *api.Credential) []question {
	user := coreKey(api.KindUser, cred.Spec.User)
	switch {
	case cred.Spec.IsDisabled:
		return nil
	case cred.Spec.User != w.user:
		return []question{{verbImpersonate, user, "/spec/user", "lets somebody log in as the User " + user.Name}}
	case w.isBound:
		return []question{{verbImpersonate, user, "/spec/user", "lets you log in without the policies that restrict your Session"}}
	}
	return nil
}

// without returns those of a that are not in b.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}

func hasInline(a *api.Authorization, p *api.InlinePolicy) bool {
	return slices.ContainsFunc(a.InlinePolicies, func(q api.InlinePolicy) bool { return reflect.DeepEqual(q.Spec, p.Spec) })
}

// denies reports whether to be without a policy may be worth something.
func denies(s *api.PolicySpec) bool {
	return len(s.EnforcementRules) > 0 || slices.ContainsFunc(s.Rules, func(r api.Rule) bool { return r.Effect != api.Allow })
}

// restricts reports whether something denies among what is attached by a.
func restricts(r store.Reader, a *api.Authorization) (bool, error) {
	if slices.ContainsFunc(a.InlinePolicies, func(p api.InlinePolicy) bool { return denies(&p.Spec) }) {
		return true, nil
	}
	for _, name := range a.Policies {
		if bound, err := restrictsPolicy(r, name); err != nil || bound {
			return bound, err
		}
	}
	return false, nil
}

func restrictsPolicy(r store.Reader, name string) (bool, error) {
	p, err := stored(r, coreKey(api.KindPolicy, name))
	return p != nil && denies(&p.(*api.Policy).Spec), err
}

func restrictsGroup(r store.Reader, name string) (bool, error) {
	g, err := stored(r, coreKey(api.KindGroup, name))
	if err != nil || g == nil {
		return false, err
	}
	return restricts(r, api.AuthorizationOf(g))
}
