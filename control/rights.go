package control

import (
	"errors"
	"fmt"
	"reflect"
	"slices"

	"cardea/api"
	"cardea/store"
)

// A question is what a write takes beside create, update or delete: that the
// writer may use a Secret that is named, publish a Service, approve a Session or
// Device, or, with escalate, give a right that he does not hold himself.
//
// An escalate names what is given: the Policy that is attached, the Group of
// which somebody becomes a member, the User as whom somebody may log in; and
// where no other Object is given, the one that is written. So a policy can say
// who may give what.
type question struct {
	verb    string
	about   api.Key
	pointer string // what in the document asks it
	words   string // what it would do, for whoever may not
}

// mayAlso asks the questions of the document of that index. If the answer to one
// is no, its error says what would be given, and what would help.
func (c *call) mayAlso(document int, questions []question) error {
	for _, q := range questions {
		_, err := c.may(q.verb, q.about)
		if e, ok := errors.AsType[*api.Error](err); ok && e.Code == api.CodePermissionDenied {
			e.Problems = []api.Problem{{Document: document, Pointer: q.pointer, Rule: q.words}}
			e.Hint = fmt.Sprintf("it takes a policy that allows you the verb %s on %s %s", q.verb, q.about.Kind, q.about.Name)
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
	w, err := newWriter(r, who)
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
}

// newWriter returns the User of a Session and what he holds.
func newWriter(r store.Reader, who api.Ref) (*writer, error) {
	if who.Kind == kindOwner {
		return new(writer), nil // who holds nothing and may give everything
	}
	s, err := stored(r, coreKey(api.KindSession, who.Name))
	if err != nil {
		return nil, err
	}
	if s == nil || s.Header().Metadata.UID != who.UID {
		return nil, stranger() // it ended in between
	}
	session := s.(*api.Session)
	w := &writer{user: session.Status.UserRef.Name}
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
// was before; nil stands for one that is not there.
func (w *writer) questions(r store.Reader, before, after api.Object) ([]question, error) {
	list := slices.Concat(uses(before, after), publishes(before, after), approves(before, after))
	given, err := w.gives(r, before, after)
	return append(list, given...), err
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

// publishes asks for a Service that needs no Session, whenever it changes.
func publishes(before, after api.Object) []question {
	s, ok := after.(*api.Service)
	if !ok || !s.Spec.IsAnonymous {
		return nil
	}
	if was, ok := before.(*api.Service); ok && reflect.DeepEqual(was.Spec, s.Spec) {
		return nil
	}
	return []question{{verbPublish, s.Key(), "/spec/isAnonymous", "opens the Service to those who have no Session"}}
}

// approves asks for a change of what is called state.
func approves(before, after api.Object) []question {
	if before == nil || after == nil || stateOf(before) == stateOf(after) {
		return nil
	}
	return []question{{verbApprove, after.Header().Key(), "/spec/state", "changes whether it may be used"}}
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
	ask := func(about api.Key, pointer, format string, args ...any) {
		list = append(list, question{verbEscalate, about, pointer, fmt.Sprintf(format, args...)})
	}
	switch {
	case after == nil:
		if p, ok := before.(*api.Policy); ok && denies(&p.Spec) {
			ask(p.Key(), "", "takes away rules that restrict")
		}
		return list, nil
	case before == nil:
		k, _ := api.KindOf(after.Header().Kind)
		before = k.New()
		before.Default()
	}
	k, isNew := after.Header().Key(), before.Header().Metadata.UID == ""
	switch o := after.(type) {
	case *api.Service:
		return nil, nil // who writes it says who reaches it
	case *api.Policy:
		if !isNew && !reflect.DeepEqual(before.(*api.Policy).Spec, o.Spec) {
			ask(k, "/spec", "changes what those may do to whom the Policy applies")
		}
	case *api.Namespace:
		if was := before.(*api.Namespace); !isNew && was.Spec.Parent != o.Spec.Parent {
			ask(k, "/spec/parent", "changes the policies of all that is in the Namespace")
		}
	case *api.Credential:
		if isNew || !reflect.DeepEqual(before.(*api.Credential).Spec, o.Spec) {
			list = append(list, w.logsIn(o)...)
		}
	case *api.User:
		was := before.(*api.User)
		if was.Spec.IsDisabled && !o.Spec.IsDisabled {
			ask(k, "/spec/isDisabled", "lets a User in who is disabled")
		}
		for i, g := range o.Spec.Groups {
			if !slices.Contains(was.Spec.Groups, g) && !slices.Contains(w.groups, g) {
				ask(coreKey(api.KindGroup, g), fmt.Sprintf("/spec/groups/%d", i), "makes a member of the Group %s, of which you are none", g)
			}
		}
		for _, g := range without(was.Spec.Groups, o.Spec.Groups) {
			if bound, err := restrictsGroup(r, g); err != nil {
				return nil, err
			} else if bound {
				ask(coreKey(api.KindGroup, g), "/spec/groups", "takes out of the Group %s, which has policies that restrict", g)
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
			ask(coreKey(api.KindPolicy, p), fmt.Sprintf("%s/policies/%d", at, i), "gives the Policy %s, which you do not have", p)
		}
	}
	for i, p := range is.InlinePolicies {
		if !hasInline(was, &p) {
			ask(k, fmt.Sprintf("%s/inlinePolicies/%d", at, i), "gives what its rules allow")
		}
	}
	for _, p := range without(was.Policies, is.Policies) {
		if bound, err := restrictsPolicy(r, p); err != nil {
			return nil, err
		} else if bound {
			ask(coreKey(api.KindPolicy, p), at+"/policies", "takes away the Policy %s, which restricts", p)
		}
	}
	for i, p := range was.InlinePolicies {
		if !hasInline(is, &p) && denies(&p.Spec) {
			ask(k, at+"/inlinePolicies", "takes away inline policy %d, which restricts", i+1)
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
		return []question{{verbEscalate, user, "/spec/user", "lets somebody log in as the User " + user.Name}}
	case w.isBound:
		return []question{{verbEscalate, user, "/spec/user", "lets you log in without the policies that restrict your Session"}}
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
