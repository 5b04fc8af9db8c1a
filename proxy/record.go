package proxy

import (
	"context"
	"errors"
	"net"
	"time"

	"cardea/api"
	"cardea/audit"
)

// append writes a record. It must not be lost because the connection it is about
// has just ended.
func (c *Conn) append(rec *api.AccessLog) error {
	return c.gate.Audit.Append(context.WithoutCancel(c.ctx), rec)
}

// maxOwed is how many records may be owed before nobody new gets in, and nothing
// new is done. So no more than that is owed beside what was live.
const maxOwed = 1000

var errDebt = errors.New("too many records wait for the access log")

// owe writes the record of something that has happened, and so cannot be refused
// any more. If the log cannot take it now, it is kept and tried again each
// second.
func (c *Conn) owe(rec *api.AccessLog) {
	g := c.gate
	err := c.append(rec)
	if err == nil || g.hopeless(rec, err) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.owed = append(g.owed, rec); len(g.owed) == 1 {
		g.Log.Error("the access log cannot be written; its records are kept until it can", "error", err)
	}
}

// hopeless reports, and says, that a record can never be written.
func (g *Gate) hopeless(rec *api.AccessLog, err error) bool {
	if !errors.Is(err, audit.ErrMalformed) {
		return false
	}
	g.Log.Error("a record can never be written to the access log", "connection", rec.Entry.Common.ConnectionID, "error", err)
	return true
}

// owes returns how many records are owed.
func (g *Gate) owes() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.owed)
}

// settle writes what is owed to the log, and returns how much then still is. It
// is called by one goroutine at a time.
func (g *Gate) settle(ctx context.Context) int {
	ctx = context.WithoutCancel(ctx)
	for {
		g.mu.Lock()
		if len(g.owed) == 0 {
			g.owed = nil
			g.mu.Unlock()
			return 0
		}
		rec := g.owed[0]
		g.mu.Unlock()
		if err := g.Audit.Append(ctx, rec); err != nil && !g.hopeless(rec, err) {
			return g.owes()
		}
		g.mu.Lock()
		g.owed = g.owed[1:]
		g.mu.Unlock()
	}
}

// settleDebts settles each second until ctx is done. The log may take its time:
// nothing else waits for that.
func (g *Gate) settleDebts(ctx context.Context) {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			g.settle(ctx)
		}
	}
}

// record builds a record of the connection: START and DENIED are about decision
// d; END is about how the connection, which d had opened, ended.
func (c *Conn) record(t api.LogType, d *api.Decision, e *ending) *api.AccessLog {
	now := time.Now().UTC()
	c.mu.Lock()
	started, upstream := c.startedAt.UTC(), address(c.upstream)
	c.mu.Unlock()
	s := d.Subject
	common := api.AccessLogCommon{
		ConnectionID: c.ID, StartedAt: started,
		IsAuthenticated: s.Session != nil, IsAuthorized: t != api.LogDenied, Status: api.StatusAllowed, Mode: s.Mode,
		IsPublic: c.facts.Tunnel == publicPort || c.anonymous(), IsAnonymous: s.IsAnonymous || s.Session == nil && c.anonymous(),
		Reason:     &api.LogReason{Type: d.Reason, Rule: d.Rule, Words: clip(d.Words)},
		DecisionID: d.ID, Revision: d.Revision, ConfigName: configName(d.Config), Facts: c.facts, Upstream: upstream, Route: c.logRoute(t),
		NamespaceRef: s.Namespace, RegionRef: s.Region, ServiceRef: s.Service, SessionRef: s.Session, UserRef: s.User, DeviceRef: s.Device,
	}
	info := &api.TCPInfo{Type: t}
	switch t {
	case api.LogDenied:
		common.Status, common.EndedAt = api.StatusDenied, now
		if n := c.units.Load(); n > 1 {
			common.Sequence = n
		}
		if s.Service == nil {
			common.ServiceRef = c.asked()
		}
	case api.LogEnd:
		n := new([2]int64)
		n[0], n[1] = c.bytes()
		common.EndedAt = now
		info.ReceivedBytes, info.SentBytes = &n[0], &n[1]
		info.CloseReason, info.Error = string(e.reason), clip(e.words)
		if e.by != nil {
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

// publicPort is Facts.Tunnel of what came in through the port of a Service.
const publicPort = "public"

// address returns an address as text, "" for none.
func address(a net.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}

// clip bounds words that may come from a peer.
func clip(s string) string {
	const most = 512
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
