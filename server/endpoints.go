package server

import (
	"fmt"
	"time"

	"cardea/api"
	"cardea/audit"
	"cardea/relay"
)

// watched takes the destinations of whose endpoints it is to be known whether they serve. A
// process that another one has replaced goes on with those that it has.
func (h *house) watched(all []api.Destination) {
	if !h.isLeft() {
		h.upstreams.Watch(all)
	}
}

// isLeft reports whether another process has taken the place of this one.
func (h *house) isLeft() bool {
	select {
	case <-h.left:
		return true
	default:
		return false
	}
}

// endpointChanged tells of an endpoint that has become healthy, or is not any more:
// unless another process does so, which has taken the place of this one.
func (h *house) endpointChanged(d api.Destination, x api.HealthInfo) {
	if h.isLeft() {
		return
	}
	name := x.Endpoint
	if x.Address != name { // one of its addresses
		name += " (" + x.Address + ")"
	}
	words := fmt.Sprintf("the endpoint %s was %s and is %s", name, x.From, x.To)
	if x.Words != "" {
		words += ": " + x.Words
	}
	if x.To.Serves() {
		h.cfg.Log.Info(words, "object", d.Object.String())
	} else {
		h.cfg.Log.Warn(words, "object", d.Object.String())
	}
	now := time.Now()
	rec := audit.New(now)
	rec.Metadata.TargetRef = d.Object.Ref()
	rec.Entry.Common = api.AccessLogCommon{
		StartedAt: now.UTC(), EndedAt: now.UTC(), IsAuthorized: true, Status: api.StatusAllowed,
		Reason: &api.LogReason{Type: api.ReasonHealth, Words: words}, ConfigName: x.Config, Upstream: x.Address, ServiceRef: rec.Metadata.TargetRef,
	}
	rec.Entry.Info.Health = &x
	if err := h.journal.Note(rec); err != nil {
		h.cfg.Log.Error("a change of health is not in the access log", "error", err)
	}
}

// endpointLost ends the connections to an endpoint that does not serve any more.
func (h *house) endpointLost(d api.Destination, at, words string) {
	h.gate.Shun(d.Object, d.Config.Name, at, relay.Unhealthy, words)
}
