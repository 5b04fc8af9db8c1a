package control

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"cardea/api"
	"cardea/audit"
)

// The verbs of calls, as policies see them in ctx.request.api.verb. The API's
// verb apply does not occur: each document that is applied is created or updated.
const (
	verbGet    = "get"
	verbList   = "list"
	verbWatch  = "watch"
	verbCreate = "create"
	verbUpdate = "update"
	verbDelete = "delete"
	verbLogin  = "login" // in the log only
	verbRenew  = "renew"
	verbWhy    = "why"
	verbRoute  = "route"
	verbConns  = "conns"
	verbKill   = "kill"
	verbLogs   = "logs"
	// What a write may take beside create, update and delete: see question.
	verbUse         = "use"
	verbPublish     = "publish"
	verbApprove     = "approve"
	verbImpersonate = "impersonate"
	verbAttach      = "attach"
	verbJoin        = "join"
	verbEscalate    = "escalate"
	// What a Session is in the private network.
	verbConnect    = "connect"    // in the log only
	verbDisconnect = "disconnect" // in the log only
	verbServe      = "serve"
)

// kindConnection is the kind of a live connection in decisions and the log.
const kindConnection = "Connection"

// isNobody reports whether a DENY for that reason is one for a caller who has no
// valid Session. Such a caller learns nothing, also not the reason.
func isNobody(r api.ReasonType) bool {
	switch r {
	case api.ReasonUnauthenticated, api.ReasonNoSession, api.ReasonSessionNotActive,
		api.ReasonSessionExpired, api.ReasonKeyMismatch, api.ReasonUserDisabled, api.ReasonNoUser:
		return true
	}
	return false
}

// about returns what a call does, and to what, as policies see it.
func about(verb string, k api.Key) api.APIFacts {
	return api.APIFacts{Verb: verb, Kind: policyKind(k), Name: k.Name, Namespace: namespaceOf(k)}
}

// policyKind returns what policies call the kind of an Object: a rule about a Secret of
// ours must not be one about a Secret of Kubernetes.
func policyKind(k api.Key) string {
	if k.Group == api.GroupKubernetes && k.Kind == api.KindSecret {
		return api.FactKubernetesSecret
	}
	return k.Kind
}

// decide asks whether the caller may do that. An answer that could not be had
// is an error and a decision that denies.
func (c *call) decide(ctx context.Context, a api.APIFacts) (api.Decision, error) {
	facts := c.facts
	facts.API = &a
	r := api.Request{Service: api.APIService, Facts: &facts, Now: c.Now()}
	if c.verified != "" {
		r.Session = c.verified
	} else {
		r.Evidence = c.evidence
	}
	d, err := c.decider.Decide(ctx, r)
	if err != nil {
		d.Effect, d.Reason, d.Words = api.Deny, api.ReasonError, err.Error()
	}
	return d, err
}

// may asks whether the caller may do that. If not, it records it, and its error
// is for the caller.
func (c *call) may(verb string, k api.Key) (api.Decision, error) {
	ctx, a := c.r.Context(), about(verb, k)
	d, err := c.decide(ctx, a)
	if err == nil && d.Allowed() {
		return d, nil
	}
	c.deny(ctx, d, a)
	switch {
	case err != nil:
		return d, undecided()
	case d.Reason == api.ReasonSessionNotActive && d.Subject.Session != nil:
		return d, inactive(d.Subject.Session)
	case d.Reason == api.ReasonDeviceNotActive && d.Subject.Device != nil:
		e := api.Errorf(api.CodePermissionDenied, "your Device %s may not be used now", d.Subject.Device.Name)
		e.Hint = "an administrator says: cardea update device " + d.Subject.Device.Name + " --approve"
		return d, e
	case isNobody(d.Reason):
		return d, stranger()
	}
	return d, forbidden(d, asked(verb, k))
}

// asked says what a caller wants to do, as policies call it: "update User alice".
func asked(verb string, k api.Key) string {
	return strings.TrimSpace(fmt.Sprintf("%s %s %s", verb, policyKind(k), nameOf(k)))
}

// nameOf returns the name of an Object, with its namespace if it has one.
func nameOf(k api.Key) string {
	if k.Namespace != "" {
		return k.Namespace + "/" + k.Name
	}
	return k.Name
}

// forbidden is what the bearer of a valid Session is told who may not do that.
func forbidden(d api.Decision, what string) *api.Error {
	e := api.Errorf(api.CodePermissionDenied, "not allowed: %s", what)
	if d.Message != "" {
		e.Message += ": " + d.Message
	}
	e.DecisionID = d.ID
	return e
}

// sees decides whether the caller may do that, and records nothing: it is asked
// about each of many Objects, of which he is shown those that he may see.
func (c *call) sees(verb string, k api.Key) (api.Decision, error) {
	d, err := c.decide(c.r.Context(), about(verb, k))
	if err != nil {
		c.Log.Error("no decision could be made on a call to the API", "error", err)
		return d, undecided()
	}
	return d, nil
}

// shows reports whether an Object may be named to the caller: he may get or list
// it, whether it is there or not.
func (c *call) shows(k api.Key) bool {
	for _, verb := range []string{verbGet, verbList} {
		if d, err := c.sees(verb, k); err != nil || d.Allowed() {
			return err == nil
		}
	}
	return false
}

// undecided is what a caller is told on whom no decision could be made.
func undecided() error {
	e := api.Errorf(api.CodeUnavailable, "no decision could be made")
	e.Hint = "try again"
	return e
}

// stranger is what everybody without a valid Session is told.
func stranger() error {
	e := api.Errorf(api.CodeUnauthenticated, "this needs a valid Session: there is none, or it has expired or was ended")
	e.Hint = "cardea login, with a new token"
	return e
}

// who returns the caller's Session.
func (c *call) who() (api.Ref, error) {
	d, err := c.decide(c.r.Context(), api.APIFacts{Verb: verbGet, Kind: api.KindSession})
	if err == nil && d.Subject.Session != nil && !isNobody(d.Reason) {
		return *d.Subject.Session, nil
	}
	// Whoever has no name has no right: this denies, records and words it.
	if _, err := c.may(verbGet, api.Key{Group: api.GroupCore, Kind: api.KindSession}); err != nil {
		return api.Ref{}, err
	}
	return api.Ref{}, stranger()
}

// deny records a call that was refused. A record that cannot be kept changes
// nothing for the caller, who is refused all the same.
func (c *call) deny(ctx context.Context, d api.Decision, a api.APIFacts) {
	rec := c.record(d, a, nil, nil)
	if c.Refuse != nil {
		c.Refuse(api.Refusal{Facts: *rec.Entry.Common.Facts, Reason: d.Reason, Words: d.Words, Record: rec})
		return
	}
	if err := c.Audit.Append(context.WithoutCancel(ctx), rec); err != nil {
		c.Log.Error("a refused call to the API is not in the access log", "error", err)
	}
}

// record returns the record of a call, or of a part of one, and of what it
// changed.
func (c *call) record(d api.Decision, a api.APIFacts, before, after api.Object) *api.AccessLog {
	rec := audit.New(c.Now())
	who := d.Subject
	facts := c.facts
	facts.API = &a
	service := &api.Ref{APIVersion: api.Version, Kind: api.KindService, Name: api.APIService}
	if who.Service != nil {
		service = who.Service
	}
	rec.Metadata.ActorRef, rec.Metadata.TargetRef = who.Session, service
	rec.Entry.Common = api.AccessLogCommon{
		StartedAt: c.started, EndedAt: c.Now(),
		IsAuthenticated: who.Session != nil && !isNobody(d.Reason),
		IsAuthorized:    d.Allowed(), Status: api.StatusDenied, Mode: api.ModeAPI,
		Reason:     &api.LogReason{Type: d.Reason, Rule: d.Rule, Words: d.Words},
		DecisionID: d.ID, Revision: d.Revision, Facts: &facts,
		NamespaceRef: who.Namespace, RegionRef: who.Region, ServiceRef: service,
		SessionRef: who.Session, UserRef: who.User, DeviceRef: who.Device,
	}
	if d.Allowed() {
		rec.Entry.Common.Status = api.StatusAllowed
	}
	info := &api.APIInfo{Verb: a.Verb, Kind: a.Kind, Name: a.Name}
	var err, err2 error
	info.Before, err = encode(before)
	info.After, err2 = encode(after)
	if err = errors.Join(err, err2); err != nil {
		c.Log.Error("a record of the access log is without the Object", "error", err)
	}
	rec.Entry.Info.API = info
	return rec
}
