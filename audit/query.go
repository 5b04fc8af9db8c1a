package audit

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"cardea/api"
)

// The types of records that are not about a connection.
const (
	LogAPI    api.LogType = "API"    // a call to Cardea's own API
	LogHealth api.LogType = "HEALTH" // a change in the health of an endpoint
)

// A Query says which records to give back. The zero Query is all of them.
type Query struct {
	User string // name or uid of the User
	// Service is the name or uid of the Service, of which .default may be left out, or
	// NAME, NAMESPACE/NAME or NAME.NAMESPACE of a TCPMapping, also after its kind.
	Service  string
	Session  string      // name or uid of the Session
	Device   string      // name or uid of the Device
	Decision string      // id of the decision
	Type     api.LogType // START, END, DENIED (refused calls to the API too), API or HEALTH
	Since    time.Time   // made then or later
	Until    time.Time   // made before then
	// Follow waits for more records once those that are there have been given.
	Follow bool
	// Limit is how many of the records that are there to give, the latest; 0 is
	// all. Those that Follow waits for do not count.
	Limit int
}

// Validate reports a Query that cannot be meant.
func (q *Query) Validate() error {
	switch q.Type {
	case "", api.LogStart, api.LogEnd, api.LogDenied, LogAPI, LogHealth:
	default:
		return fmt.Errorf("type: %q is not a type of record; use START, END, DENIED, API or HEALTH", q.Type)
	}
	if q.Limit < 0 {
		return fmt.Errorf("limit: %d is less than 0; use 0 for all", q.Limit)
	}
	if !q.Since.IsZero() && !q.Until.IsZero() && !q.Since.Before(q.Until) {
		return fmt.Errorf("until: %s is not after since: %s", q.Until.Format(time.RFC3339), q.Since.Format(time.RFC3339))
	}
	return nil
}

// Match reports whether the Query asks for rec.
func (q *Query) Match(rec *api.AccessLog) bool {
	c, m := &rec.Entry.Common, &rec.Metadata
	return (q.Since.IsZero() || !m.CreatedAt.Before(q.Since)) &&
		(q.Until.IsZero() || m.CreatedAt.Before(q.Until)) &&
		q.matchType(rec) &&
		(q.Decision == "" || q.Decision == c.DecisionID) &&
		names(c.DeviceRef, q.Device, q.Device) &&
		names(c.UserRef, q.User, q.User) &&
		(names(cmp.Or(c.ServiceRef, m.TargetRef), q.Service, api.ServiceName(q.Service)) ||
			namesRoute(cmp.Or(c.ServiceRef, m.TargetRef), q.Service)) &&
		names(cmp.Or(c.SessionRef, m.ActorRef), q.Session, q.Session)
}

func (q *Query) matchType(rec *api.AccessLog) bool {
	switch q.Type {
	case "", TypeOf(rec):
		return true
	case api.LogDenied:
		return rec.Entry.Common.Status == api.StatusDenied
	}
	return false
}

// names reports whether ref has that uid or name; nothing asked for is always met.
func names(ref *api.Ref, uid, name string) bool {
	return name == "" || ref != nil && (ref.Name == name || ref.UID == uid)
}

// namesRoute reports whether ref is to a foreign Object that connections are routed
// to, and s is a name of it.
func namesRoute(ref *api.Ref, s string) bool {
	if ref == nil || ref.Kind != api.KindTCPMapping {
		return false
	}
	s = strings.TrimPrefix(s, ref.Kind+"/")
	return s == ref.Name || ref.Namespace != "" && (s == ref.Namespace+"/"+ref.Name || s == ref.Name+"."+ref.Namespace)
}

// TypeOf returns the type of a record; "" if it has none.
func TypeOf(rec *api.AccessLog) api.LogType {
	switch i := &rec.Entry.Info; {
	case i.Flow() != nil:
		return i.Flow().Type
	case i.API != nil:
		return LogAPI
	case i.Health != nil:
		return LogHealth
	}
	return ""
}
