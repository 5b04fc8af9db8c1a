package proxy

import (
	"errors"
	"time"

	"cardea/api"
)

// maxOwed is how many records may be owed before nobody new gets in, and nothing
// new is done. So no more than that is owed beside what was live.
const maxOwed = 1000

var errDebt = errors.New("too many records wait for the access log")

// owe writes the record of something that has happened, and so cannot be refused
// any more. If the log cannot take it now, it keeps it until it can.
func (c *Conn) owe(e *entry) {
	if err := c.gate.Audit.Note(&e.AccessLog); err != nil {
		c.gate.Log.Error("a record can never be written to the access log", "connection", e.Entry.Common.ConnectionID, "error", err)
	}
	c.gate.free(e)
}

// An entry is a record of a connection, with all that it points to and is its own.
type entry struct {
	api.AccessLog
	flow    api.UDPInfo // of one that is not of datagrams, what it has of TCPInfo
	reason  api.LogReason
	facts   api.Facts
	carried [4]int64 // received and sent, bytes and datagrams
}

// free gives e back, of which nobody keeps anything.
func (g *Gate) free(e *entry) {
	*e = entry{}
	g.entries.Put(e)
}

// record builds a record of the connection: START and DENIED are about decision
// d; END is about how the connection, which d had opened, ended.
func (c *Conn) record(t api.LogType, d *api.Decision, how *ending) *entry {
	now := time.Now().UTC()
	e, ok := c.gate.entries.Get().(*entry)
	if !ok {
		e = new(entry)
	}
	e.APIVersion, e.Kind = api.Version, "AccessLog"
	e.Metadata.ID, e.Metadata.CreatedAt = api.NewID(), now
	s, common := &d.Subject, &e.Entry.Common
	c.mu.Lock()
	common.StartedAt, common.Upstream = time.Unix(0, c.since).UTC(), c.upstream.String()
	report := c.report
	c.mu.Unlock()
	common.ConnectionID, common.Mode, common.Status = c.ID(), s.Mode, api.StatusAllowed
	common.IsAuthenticated, common.IsAuthorized = s.Session != nil, t != api.LogDenied
	common.IsPublic = c.from.facts.Tunnel == publicPort || c.from.anonymous()
	common.IsAnonymous = s.IsAnonymous || s.Session == nil && c.from.anonymous()
	e.reason = api.LogReason{Type: d.Reason, Rule: d.Rule, Words: clip(d.Words)}
	common.Reason = &e.reason
	common.DecisionID, common.Revision, common.ConfigName = d.ID, d.Revision, configName(d.Config)
	e.facts = c.facts()
	common.Facts = &e.facts
	common.NamespaceRef, common.RegionRef, common.ServiceRef = s.Namespace, s.Region, s.Service
	common.SessionRef, common.UserRef, common.DeviceRef = s.Session, s.User, s.Device
	if c.from.route != nil {
		common.Route = &c.from.route.Log
	}
	e.flow.Type = t
	if c.datagrams {
		e.Entry.Info.UDP = &e.flow
	} else {
		e.Entry.Info.TCP = &e.flow.TCPInfo
	}
	switch t {
	case api.LogDenied:
		common.Status, common.EndedAt = api.StatusDenied, now
		if c.run != nil && c.run.units.Load() > 1 {
			common.Sequence = c.run.units.Load()
		}
		if s.Service == nil {
			common.ServiceRef = c.from.asked()
		}
	case api.LogEnd:
		common.EndedAt = now
		e.flow.CloseReason, e.flow.Error = string(how.reason), clip(how.words)
		if by := how.by; by != nil {
			// The decision that cut it; START names the one that opened it.
			e.reason = api.LogReason{Type: by.Reason, Rule: by.Rule, Words: clip(by.Words)}
			common.DecisionID, common.Revision = by.ID, by.Revision
		}
		if report != nil {
			common.Route = met(common.Route, report)
		}
	}
	e.Metadata.ActorRef, e.Metadata.TargetRef = s.Session, common.ServiceRef
	return e
}

// met adds to how a connection was routed what was met on the way to its upstream.
func met(l *api.LogRoute, r *api.DialReport) *api.LogRoute {
	var whole api.LogRoute
	if l != nil {
		whole = *l
	}
	whole.Retries, whole.UpstreamVerified, whole.UpstreamWords = r.Retries, r.Verified, clip(r.Words)
	return &whole
}

// publicPort is Facts.Tunnel of what came in through the port of a Service.
const publicPort = "public"

// clip bounds words that may come from a peer.
func clip(s string) string {
	const most = 512
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
