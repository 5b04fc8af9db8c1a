package proxy

import (
	"context"
	"errors"
	"time"

	"cardea/api"
	"cardea/audit"
	"cardea/relay"
)

// append writes a record. It must not be lost because the connection it is about
// has just ended.
func (c *Conn) append(rec *api.AccessLog) error {
	return c.gate.Audit.Append(context.WithoutCancel(c.ctx), rec)
}

// owe writes a record of something that has happened, and so cannot be refused
// any more. If the log cannot take it now, it is kept and tried again each
// second: meanwhile nobody new gets in, so that no more is owed than was live.
func (g *Gate) owe(ctx context.Context, rec *api.AccessLog) {
	switch err := g.Audit.Append(context.WithoutCancel(ctx), rec); {
	case errors.Is(err, audit.ErrMalformed):
		g.Log.Error("a record can never be written to the access log", "connection", rec.Entry.Common.ConnectionID, "error", err)
	case err != nil:
		g.Log.Error("the access log cannot be written; its records are kept until it can", "error", err)
		g.mu.Lock()
		g.owed = append(g.owed, rec)
		g.mu.Unlock()
	}
}

// settle writes what is owed to the log.
func (g *Gate) settle(ctx context.Context) {
	g.mu.Lock()
	owed := g.owed
	g.owed = nil
	g.mu.Unlock()
	for i, rec := range owed {
		if err := g.Audit.Append(context.WithoutCancel(ctx), rec); err != nil {
			g.mu.Lock()
			g.owed = append(owed[i:], g.owed...)
			g.mu.Unlock()
			return
		}
	}
}

// record builds a record of the connection: START and DENIED are about decision
// d; END is about how the connection, which d had opened, ended.
func (c *Conn) record(t api.LogType, d *api.Decision, e *ending) *api.AccessLog {
	now := time.Now().UTC()
	c.mu.Lock()
	started, upstream := c.startedAt.UTC(), c.upstream
	c.mu.Unlock()
	s := d.Subject
	common := api.AccessLogCommon{
		ConnectionID: c.ID, StartedAt: started,
		IsAuthenticated: s.Session != nil, IsAuthorized: t != api.LogDenied, Status: api.StatusAllowed, Mode: s.Mode,
		Reason:     &api.LogReason{Type: d.Reason, Rule: d.Rule, Words: clip(d.Words)},
		DecisionID: d.ID, Revision: d.Revision, ConfigName: configName(d.Config), Facts: c.facts, Upstream: upstream,
		NamespaceRef: s.Namespace, RegionRef: s.Region, ServiceRef: s.Service, SessionRef: s.Session, UserRef: s.User,
	}
	info := &api.TCPInfo{Type: t}
	switch t {
	case api.LogDenied:
		common.Status, common.EndedAt = api.StatusDenied, now
		if n := c.units.Load(); n > 1 {
			common.Sequence = n
		}
		if s.Service == nil {
			// What was asked for, although it may not exist.
			common.ServiceRef = &api.Ref{APIVersion: api.Version, Kind: api.KindService, Name: clip(c.arrival.Service)}
		}
	case api.LogEnd:
		received, sent := c.bytes()
		common.EndedAt = now
		info.ReceivedBytes, info.SentBytes = &received, &sent
		info.CloseReason, info.Error = string(e.reason), clip(e.words)
		if e.reason == relay.Revoked && e.by != nil {
			// The decision that cut it; START names the one that opened it.
			common.Reason = &api.LogReason{Type: e.by.Reason, Rule: e.by.Rule, Words: clip(e.by.Words)}
			common.DecisionID, common.Revision = e.by.ID, e.by.Revision
		}
	}
	rec := audit.New(now)
	rec.Metadata.ActorRef, rec.Metadata.TargetRef = s.Session, common.ServiceRef
	rec.Entry = api.AccessLogEntry{Common: common, Info: api.AccessLogInfo{TCP: info}}
	return rec
}

// clip bounds words that may come from a peer.
func clip(s string) string {
	const most = 512
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
