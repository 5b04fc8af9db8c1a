package control

import (
	"cmp"
	"encoding/json"
	"iter"
	"slices"
	"strings"

	"cardea/api"
	"cardea/audit"
	"cardea/rpc"
)

// why answers POST /api/why: what would be decided, and how.
func (c *call) why() (any, error) {
	who, err := c.who() // before reading what a stranger sends
	if err != nil {
		return nil, err
	}
	var in api.WhyRequest
	if err := rpc.Read(c.r, &in); err != nil {
		return nil, err
	}
	if in.Subject == "" || in.Service == "" {
		return nil, api.Errorf(api.CodeInvalid, "subject and service are required")
	}
	if len(in.Subject) > maxName || len(in.Service) > maxName {
		return nil, api.Errorf(api.CodeInvalid, "subject or service is longer than names are")
	}
	service := api.Key{Group: api.GroupCore, Kind: api.KindService, Name: api.ServiceName(in.Service)}
	if _, err := c.may(verbWhy, service); err != nil {
		return nil, err
	}
	r := api.Request{Service: service.Name, Facts: in.Facts, Now: in.At}
	if r.Now.IsZero() {
		r.Now = c.Now()
	}
	if r.Facts == nil {
		r.Facts = new(api.Facts) // of a connection of which nothing is known
	}
	user, err := c.subject(who, in.Subject, &r)
	if err != nil {
		return nil, err
	}
	x, err := c.Explainer.Explain(c.r.Context(), r, user)
	if err != nil {
		return nil, err
	}
	if !c.showsAll(&x) {
		return outline(&x), nil
	}
	x.Unserved = c.unserved(service, &x.Decision)
	return x, nil
}

// unserved says why who is let in reaches no endpoint of a Service, "" if he does as far
// as is known.
func (c *call) unserved(k api.Key, d *api.Decision) string {
	o, err := c.load(k)
	if err != nil || c.Live == nil || !d.Allowed() || d.Config == nil {
		return ""
	}
	s := c.Live(o).(*api.Service).Status
	name := d.Config.Name
	if name == api.DefaultConfig {
		name = ""
	}
	known := d.Config.IsServed()
	for _, e := range s.Endpoints {
		if e.Config != name {
			continue
		}
		if known = true; e.State.Serves() {
			return ""
		}
	}
	i := slices.IndexFunc(s.Conditions, func(c api.StatusCondition) bool { return c.Type == api.ConditionUpstreamHealthy && c.Status == "False" })
	if !known || i < 0 {
		return ""
	}
	return s.Conditions[i].Message
}

// showsAll reports whether the caller may see all that an Explanation names: what
// it hangs on, where its rules are written, and the names that its hints may
// suggest.
func (c *call) showsAll(x *api.Explanation) bool {
	keys := map[api.Key]bool{}
	for _, k := range x.Decision.DependsOn {
		keys[k] = true
	}
	for _, s := range x.Steps {
		if s.Rule.Policy != "" {
			keys[coreKey(api.KindPolicy, s.Rule.Policy)] = true
		}
		if s.Rule.Owner != nil {
			keys[*s.Rule.Owner] = true
		}
	}
	for _, kind := range []string{api.KindUser, api.KindGroup, api.KindService, api.KindPolicy} {
		keys[coreKey(kind, "")] = true
	}
	for k := range keys {
		if !c.shows(k) {
			return false
		}
	}
	return true
}

// outline returns the decision of an Explanation, without what it was made from.
func outline(x *api.Explanation) api.Explanation {
	d := &x.Decision
	return api.Explanation{
		Decision: api.Decision{
			ID: d.ID, Revision: d.Revision, Effect: d.Effect, Reason: d.Reason, Message: d.Message, Lease: d.Lease,
			Words:   "by what you may not see all of",
			Subject: api.Subject{Session: d.Subject.Session, User: d.Subject.User, IsAnonymous: d.Subject.IsAnonymous},
		},
		Hypothetical: x.Hypothetical,
		Hints:        []string{"the rules are not shown: it takes the verb get on all that the decision hangs on, and on all Users, Groups, Services and Policies"},
	}
}

// anonymous is the subject who comes in through the public port of a Service.
const anonymous = "anonymous"

// subject puts who a subject is into r: the Session that it names, the latest one
// of the User that it names, or nobody's. It returns the User's name if there is
// no Session of his. What the caller may not see is not there for him.
func (c *call) subject(who api.Ref, subject string, r *api.Request) (user string, err error) {
	if subject == anonymous {
		r.Evidence = api.Evidence{Kind: api.EvidenceAnonymous}
		return "", nil
	}
	if name, ok := strings.CutPrefix(subject, "session/"); ok {
		k := coreKey(api.KindSession, name)
		o, err := c.load(k)
		if err != nil {
			return "", err
		}
		if name != who.Name && !c.shows(k) {
			return "", api.NotFound(k)
		}
		r.Session = o.Header().Metadata.UID
		return "", nil
	}
	k := coreKey(api.KindUser, subject)
	if _, err := c.load(k); err != nil {
		return "", err
	}
	own, err := c.load(coreKey(api.KindSession, who.Name))
	if err != nil {
		return "", err
	}
	if userOf(own) != subject && !c.shows(k) {
		return "", api.NotFound(k)
	}
	s, err := c.latestSession(subject)
	if err != nil || s == nil || s.Metadata.Name != who.Name && !c.shows(s.Key()) {
		return subject, err
	}
	r.Session = s.Metadata.UID
	return "", nil
}

// conns answers GET /api/conns.
func (c *call) conns() (any, error) {
	if _, err := c.query(); err != nil {
		return nil, err
	}
	if _, err := c.may(verbConns, api.Key{}); err != nil {
		return nil, err
	}
	list := c.Conns.List()
	if list.Items == nil {
		list.Items = []api.Connection{}
	}
	return list, nil
}

// kill answers DELETE /api/conns/{id}.
func (c *call) kill() (any, error) {
	id, err := c.name("id")
	if err != nil {
		return nil, err
	}
	k := api.Key{Kind: kindConnection, Name: id}
	d, err := c.may(verbKill, k)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(c.Conns.List().Items, func(x api.Connection) bool { return x.ID == id }) {
		return nil, api.NotFound(k)
	}
	// What cannot be recorded does not happen.
	if err := c.append(c.r.Context(), []*api.AccessLog{c.record(d, about(verbKill, k), nil, nil)}); err != nil {
		return nil, err
	}
	by := d.Subject.Session.Name
	if d.Subject.User != nil {
		by = d.Subject.User.Name + " (Session " + by + ")"
	}
	c.Conns.Kill(id, by)
	return api.Empty{}, nil
}

// logs answers GET /api/logs.
func (c *call) logs() (any, error) {
	if _, err := c.may(verbLogs, api.Key{}); err != nil {
		return nil, err
	}
	q, err := c.query("follow", "user", "service", "session", "device", "type", "decision", "since", "until", "limit")
	if err != nil {
		return nil, err
	}
	want := audit.Query{User: q["user"], Service: q["service"], Session: q["session"], Device: q["device"], Type: api.LogType(q["type"]), Decision: q["decision"]}
	var errs [4]error
	want.Follow, errs[0] = boolean(q, "follow")
	want.Since, errs[1] = instant(q, "since")
	want.Until, errs[2] = instant(q, "until")
	want.Limit, errs[3] = number(q, "limit")
	if err := cmp.Or(errs[:]...); err != nil {
		return nil, err
	}
	if err := want.Validate(); err != nil {
		return nil, api.Errorf(api.CodeInvalid, "%s", err)
	}
	rpc.Lines(c.w, lines(c.Logs.Records(c.r.Context(), want)), c.Log)
	return nil, nil
}

// lines writes records as the log itself has them: with every digit of their
// times, and without what a terminal must not show.
func lines(recs iter.Seq2[api.AccessLog, error]) iter.Seq2[json.RawMessage, error] {
	return func(yield func(json.RawMessage, error) bool) {
		for rec, err := range recs {
			var line []byte
			if err == nil {
				line, err = audit.AppendRecord(nil, &rec)
			}
			if !yield(line, err) || err != nil {
				return
			}
		}
	}
}

// verifyLogs answers POST /api/logs/verify.
func (c *call) verifyLogs() (any, error) {
	if _, err := c.may(verbLogs, api.Key{}); err != nil {
		return nil, err
	}
	return c.Logs.Verify(c.r.Context())
}
