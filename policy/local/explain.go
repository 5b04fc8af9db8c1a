package local

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"cardea/api"
)

// newSessionLasts is how long the Session lasts that Explain imagines for a User
// who has none.
const newSessionLasts = 24 * time.Hour

// Explain implements policy.Explainer: it decides as Decide does, always anew, and
// shows every rule that applies.
func (d *Decider) Explain(_ context.Context, r api.Request, user string) (api.Explanation, error) {
	s, err := d.snapshot(r.AtLeast)
	if err != nil {
		return api.Explanation{}, err
	}
	r.Now = d.instant(&r)
	j := d.open(s, &r)
	defer d.judgments.put(j)
	var x api.Explanation
	j.steps = &x.Steps
	var admitted bool
	if user != "" && r.Route == nil {
		x.Hypothetical = true
		if admitted = j.admitUser(user, ""); admitted {
			j.ctx.Session = newSession(j.user.ref, j.now)
			admitted = j.admitService()
		}
	} else {
		admitted = j.admit(d.identify(&r))
	}
	if admitted {
		j.judge()
	}
	x.Decision = j.finish()
	x.Hints = j.hints(x.Steps)
	return x, nil
}

// newSession returns the Session that a User would get by logging in.
func newSession(user api.Ref, now time.Time) *api.Session {
	s := &api.Session{
		Spec:   api.SessionSpec{ExpiresAt: now.Add(newSessionLasts)},
		Status: api.SessionStatus{Type: "CLIENT", UserRef: user},
	}
	s.Default()
	return s
}

// hints says what would change the answer.
func (j *judgment) hints(steps []api.Step) []string {
	var hints []string
	add := func(format string, args ...any) { hints = append(hints, fmt.Sprintf(format, args...)) }
	name, anonymous, route := api.ServiceName(j.request.Service), j.decision.Subject.IsAnonymous, j.request.Route
	switch d := &j.decision; d.Reason {
	case api.ReasonUnauthenticated:
		if anonymous {
			add("%s", j.publish(name))
			break
		}
		add("log in again")
	case api.ReasonNoSession, api.ReasonSessionExpired, api.ReasonKeyMismatch:
		add("log in again")
	case api.ReasonSessionNotActive:
		if j.session.object.Spec.State == api.SessionPending {
			add("approve the Session: cardea update session %s --approve", j.session.key.Name)
			break
		}
		add("log in again")
	case api.ReasonNoUser:
		add("create the User%s", j.similar(j.users.names(), api.KindUser))
	case api.ReasonUserDisabled:
		add("set spec.isDisabled of User %s to false", j.user.key.Name)
	case api.ReasonDeviceNotActive:
		if j.device == nil {
			add("log in again and register the Device: cardea auth device register")
			break
		}
		add("approve the Device: cardea update device %s --approve", j.device.key.Name)
	case api.ReasonNoService:
		add("create the Service %s%s", name, j.similar(j.services.names(), api.KindService))
	case api.ReasonNoRoute:
		add("create the %s%s", route, j.similarRoute(*route))
	case api.ReasonRouteRemoved:
		add("create the %s again", route)
	case api.ReasonServiceDisabled:
		add("set spec.isDisabled of Service %s to false", name)
	case api.ReasonConfig:
		add("mend spec.dynamicConfig of Service %s", name)
		if j.service.config == nil {
			add("or give it a spec.config, or a last rule with matchAny: true, for the requests that no other rule matches")
		}
	case api.ReasonError:
		add("write the object again that cannot be read")
	case api.ReasonAnonymous:
		if route != nil {
			add("nobody is asked who comes; a DENY rule of the ClusterConfig, or of a Namespace %s (core/v1), refuses whom it matches", j.service.namespace)
			break
		}
		add("set spec.authorization.enableAnonymous of Service %s to true to let policies decide who may reach it without a Session", name)
	case api.ReasonNoPolicyMatch:
		places := "the Service, its Namespace, the User or a Group"
		if anonymous {
			places = "the Service, its Namespace or the ClusterConfig; one that reads ctx.user, ctx.session, ctx.device or ctx.groups allows nobody who has no Session"
		}
		switch {
		case len(steps) == 0 && anonymous:
			add("nobody may reach %s without a Session: no policy applies to it; attach one to %s", name, places)
		case len(steps) == 0:
			add("nobody may reach %s: no policy applies to it; attach one to %s", name, places)
		case !slices.ContainsFunc(steps, func(s api.Step) bool { return s.Rule.Effect == api.Allow }):
			add("no rule that applies is an ALLOW; attach a policy that allows to %s", places)
		default:
			add("no ALLOW rule matches: the rules say why; mend one, or attach a policy that allows to %s", places)
		}
		add("looked at: %s", strings.Join(j.lookedAt(), "; "))
	}
	if c := j.decision.Config; c != nil && c.TLS != nil && c.TLS.InsecureSkipVerify {
		add("warning: the upstream of config %s is not verified (tls.insecureSkipVerify): whoever stands in between reads and writes everything", c.Name)
	}
	for _, k := range j.decision.DependsOn {
		switch k.Kind {
		case api.KindPolicy:
			p, ok := j.policies.get(k.Name)
			if !ok {
				add("Policy %s is named and does not exist%s", k.Name, j.similar(j.policies.names(), k.Kind))
			} else if p.rules == nil && p.err == nil {
				add("Policy %s is disabled", k.Name)
			}
		case api.KindGroup:
			if _, ok := j.groups.get(k.Name); !ok {
				add("Group %s does not exist%s", k.Name, j.similar(j.groups.names(), k.Kind))
			}
		}
	}
	for _, s := range steps {
		path, isAbsent := strings.CutSuffix(s.Words, " is absent")
		if !isAbsent || anonymous && s.Rule.Effect == api.Allow && !strings.HasPrefix(path, "ctx.request.") {
			continue
		}
		where := "its condition"
		if enforcing, ok := strings.CutPrefix(path, uncounted+": "); ok {
			where, path = "the enforcement rule of its policy", enforcing
		}
		add("%s: guard %s with has(%s)", s.Rule, where, path)
		if path == "ctx.device" && j.device == nil && !anonymous {
			add("the Session has no Device: register the machine with cardea auth device register")
		}
	}
	return slices.Compact(hints)
}

// publish says how the Service is opened to those who have no Session.
func (j *judgment) publish(name string) string {
	switch {
	case j.service == nil:
		return "create the Service " + name + j.similar(j.services.names(), api.KindService)
	case j.service.object.Spec.IsDisabled:
		return "set spec.isDisabled of Service " + name + " to false"
	}
	return "log in: who has no Session reaches " + name + " only if its spec.isPublic and spec.isAnonymous are true"
}

// similar names the name that was probably meant by that of kind which was not
// found.
func (j *judgment) similar(names []string, kind string) string {
	for _, k := range j.decision.DependsOn {
		if k.Kind == kind && !slices.Contains(names, k.Name) {
			if n := api.Nearest(k.Name, names); n != "" {
				return ", or did you mean " + n + "?"
			}
		}
	}
	return ""
}

// similarRoute names the foreign Object that was probably meant.
func (j *judgment) similarRoute(k api.Key) string {
	var names []string
	for _, e := range j.mappings.all() {
		names = append(names, e.id)
	}
	if n := api.Nearest(k.String(), names); n != "" {
		return ", or did you mean " + n + "?"
	}
	return ""
}

// lookedAt lists where policies were looked for, and how many were there.
func (j *judgment) lookedAt() []string {
	var list []string
	add := func(a *attachee, what string) {
		words := "no policies"
		if len(a.attached) > 0 {
			var names []string
			for _, at := range a.attached {
				if at.rules != nil {
					names = append(names, fmt.Sprintf("inline policy %d", at.inline))
				} else {
					names = append(names, at.policy)
				}
			}
			words = strings.Join(names, ", ")
		}
		list = append(list, fmt.Sprintf("%s (%s)", what, words))
	}
	for _, k := range j.decision.DependsOn {
		switch k.Kind {
		case api.KindService:
			add(&j.service.attachee, "Service "+k.Name)
		case api.KindNamespace:
			if n, ok := j.namespaces.get(k.Name); ok {
				add(&n.attachee, "Namespace "+k.Name)
			}
		case api.KindUser:
			add(&j.user.attachee, "User "+k.Name)
		case api.KindGroup:
			if g, ok := j.groups.get(k.Name); ok {
				add(&g.attachee, "Group "+k.Name)
			}
		case api.KindSession:
			add(&j.session.attachee, "Session "+k.Name)
		case api.KindDevice:
			add(&j.device.attachee, "Device "+k.Name)
		case api.KindClusterConfig:
			if j.cluster != nil {
				add(&j.cluster.attachee, "ClusterConfig")
			}
		}
	}
	return list
}
