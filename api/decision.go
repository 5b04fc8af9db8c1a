package api

import (
	"fmt"
	"time"
)

// EvidenceKind says what a caller presented.
type EvidenceKind string

// The kinds of evidence.
const (
	EvidenceCertificate EvidenceKind = "CERTIFICATE" // Data is the leaf certificate, DER; its key was proved
	EvidenceMemory      EvidenceKind = "MEMORY"      // Data is a Session uid; inside one process only
	// EvidenceTunnel is that of who came through the private network: Data is the uid of
	// the Session to whose key the source address is bound. Inside one process only.
	EvidenceTunnel EvidenceKind = "TUNNEL"
	// EvidenceAnonymous is that of a caller who came in through the public port of
	// a Service and whom nobody asked who he is. Inside one process only.
	EvidenceAnonymous EvidenceKind = "ANONYMOUS"
)

// Evidence is what a caller presented, opaque to all but package identity. The
// zero Evidence is nobody.
type Evidence struct {
	Kind EvidenceKind `json:"kind,omitempty"`
	Data []byte       `json:"data,omitempty"`
}

// Side says at which end of workload to workload traffic a decision is made.
type Side string

// The sides. "" is Ingress.
const (
	Ingress Side = "INGRESS"
	Egress  Side = "EGRESS"
)

// A Request asks whether somebody may do something with a Service, now.
type Request struct {
	Service string `json:"service"` // SERVICE.NAMESPACE
	// Route is, instead of a Service, the foreign Object that is asked for.
	Route *Key `json:"route,omitempty"`
	// Evidence is verified by the first decision, which answers with a Session;
	// every later one about the same unit of work names that Session's uid.
	Evidence Evidence `json:"evidence,omitzero"`
	Session  string   `json:"session,omitempty"`
	Facts    *Facts   `json:"facts,omitempty"`
	Side     Side     `json:"side,omitempty"`
	// Now is the one instant of the decision.
	Now time.Time `json:"now"`
	// AtLeast is the revision that the answer must have been made on, or later.
	AtLeast Revision `json:"atLeast,omitzero"`
}

// ReasonType says why a decision came out as it did.
type ReasonType string

// The types of a Reason.
const (
	ReasonPolicyMatch      ReasonType = "POLICY_MATCH"
	ReasonNoPolicyMatch    ReasonType = "NO_POLICY_MATCH"
	ReasonUnauthenticated  ReasonType = "UNAUTHENTICATED" // no evidence, or evidence that proves nothing
	ReasonNoSession        ReasonType = "NO_SESSION"      // the Session does not exist (any more)
	ReasonSessionNotActive ReasonType = "SESSION_NOT_ACTIVE"
	ReasonSessionExpired   ReasonType = "SESSION_EXPIRED"
	ReasonKeyMismatch      ReasonType = "KEY_MISMATCH" // the Session is bound to another key
	ReasonUserDisabled     ReasonType = "USER_DEACTIVATED"
	ReasonNoUser           ReasonType = "NO_USER"
	ReasonDeviceNotActive  ReasonType = "DEVICE_NOT_ACTIVE"
	ReasonAnonymous        ReasonType = "ANONYMOUS" // the Service is open to everyone
	ReasonLimit            ReasonType = "LIMIT"     // as many connections as there may be, at once or a second
	ReasonNoService        ReasonType = "NO_SERVICE"
	ReasonServiceDisabled  ReasonType = "SERVICE_DISABLED"
	ReasonConfig           ReasonType = "DYNAMIC_CONFIG" // no config could be chosen
	ReasonError            ReasonType = "ERROR"          // no answer could be had
	ReasonHandshake        ReasonType = "HANDSHAKE"      // refused before there was a request
	ReasonKilled           ReasonType = "KILLED"         // an administrator ended the connection
	ReasonOverload         ReasonType = "OVERLOAD"       // a limit of the process itself
	ReasonDrained          ReasonType = "DRAINED"        // the process is stopping
	ReasonNoRoute          ReasonType = "NO_ROUTE"       // nothing is served there, or not to this caller
	ReasonRouteRefused     ReasonType = "ROUTE_REFUSED"  // the route lacks something: its status says what
	ReasonRouteRemoved     ReasonType = "ROUTE_REMOVED"  // the Object of a live connection is gone
	ReasonProxyHeader      ReasonType = "PROXY_HEADER"   // none where there must be one, from who is not trusted, or malformed
	ReasonHealth           ReasonType = "HEALTH"         // an endpoint became healthy, or unhealthy
	ReasonSystem           ReasonType = "SYSTEM"         // the cluster, by itself: nobody asked
)

// A RuleRef names the rule that decided.
type RuleRef struct {
	Policy   string `json:"policy,omitempty"` // a named Policy
	Owner    *Key   `json:"owner,omitempty"`  // the Object whose authorization it stands in, or that names the Policy
	Inline   int    `json:"inline,omitempty"` // for an inline policy: its place in the list, from 1
	Index    int    `json:"index"`            // the rule's place in the policy, from 0
	Name     string `json:"name,omitempty"`   // the rule's name
	Effect   Effect `json:"effect"`
	Priority int    `json:"priority,omitempty"`
}

// String says which rule it is and where it is written, counting from 1.
func (r RuleRef) String() string {
	rule := fmt.Sprintf("rule %d", r.Index+1)
	if r.Name != "" {
		rule = fmt.Sprintf("rule %q", r.Name)
	}
	switch {
	case r.Policy != "" && r.Owner != nil:
		return fmt.Sprintf("%s of Policy %s, which %s %s names", rule, r.Policy, r.Owner.Kind, r.Owner.Name)
	case r.Policy != "":
		return rule + " of Policy " + r.Policy
	case r.Owner != nil:
		return fmt.Sprintf("%s of inline policy %d of %s %s", rule, r.Inline, r.Owner.Kind, r.Owner.Name)
	}
	return rule
}

// A Decision is the answer to a Request: a lease, plus the names of what it was
// made from. Its zero value denies.
type Decision struct {
	ID       string     `json:"id"`
	Revision Revision   `json:"revision"` // of the snapshot that it was made on
	Effect   Effect     `json:"effect"`
	Reason   ReasonType `json:"reason"`
	Words    string     `json:"words,omitempty"`   // the reason for a person; never for the caller
	Message  string     `json:"message,omitempty"` // the rule's message for the caller
	Rule     *RuleRef   `json:"rule,omitempty"`
	// Subject is who asks for what, as far as it could be told.
	Subject Subject `json:"subject"`
	// Config is the config that was chosen; it is shared and must not be written to.
	Config *ServiceConfig `json:"config,omitempty"`
	// Limits bound what is granted.
	Limits Limits `json:"limits,omitzero"`
	// DependsOn names everything that was read, also what was looked for and
	// does not exist: when one of them changes, ask again. It is shared and must
	// not be written to.
	DependsOn []Key `json:"dependsOn,omitempty"`
	// TimeBound is set if the clock was read: ask again each second.
	TimeBound bool `json:"timeBound,omitempty"`
	// Until is when the answer stops to hold for certain (a Session's expiry);
	// zero if that is not known.
	Until time.Time `json:"until,omitzero"`
	// Lease is how long the answer holds if the Decider cannot be asked again.
	Lease time.Duration `json:"lease"`
}

// Allowed reports whether the decision lets the caller in.
func (d *Decision) Allowed() bool { return d.Effect == Allow && d.Lease > 0 }

// A Subject is who asks for what, as references for the log.
type Subject struct {
	Session   *Ref `json:"session,omitempty"`
	User      *Ref `json:"user,omitempty"`
	Device    *Ref `json:"device,omitempty"`
	Service   *Ref `json:"service,omitempty"`
	Namespace *Ref `json:"namespace,omitempty"`
	Region    *Ref `json:"region,omitempty"`
	Mode      Mode `json:"mode,omitempty"`
	// IsAnonymous is set if nobody asked who the caller is.
	IsAnonymous bool `json:"isAnonymous,omitempty"`
}

// Limits bound what is granted; zero is no bound.
type Limits struct {
	Connections           int `json:"connections,omitempty"`           // of the Service, live at once
	ConnectionsPerSession int `json:"connectionsPerSession,omitempty"` // of the Session or, without one, the source network
	// Pending is how many connections may wait, each for at most PendingTimeout, until
	// there is one less than Connections; zero is none.
	Pending        int           `json:"pending,omitempty"`
	PendingTimeout time.Duration `json:"pendingTimeout,omitempty"`
	Idle           time.Duration `json:"idle,omitempty"`
	HalfClose      time.Duration `json:"halfClose,omitempty"`
	Duration       time.Duration `json:"duration,omitempty"`
	// Bytes is how many one connection may carry, of both directions together; Upload
	// and Download how many a second.
	Bytes    int64 `json:"bytes,omitempty"`
	Upload   int64 `json:"upload,omitempty"`
	Download int64 `json:"download,omitempty"`
}

// A Change says that answers which depend on one of Keys may no longer hold.
// One without Keys is a heartbeat. All is set if everything must be asked again
// (a new epoch, or a follower that fell behind).
type Change struct {
	Revision Revision `json:"revision"`
	Keys     []Key    `json:"keys,omitempty"`
	All      bool     `json:"all,omitempty"`
}

// An Outcome says how a rule came out for a request.
type Outcome string

// The outcomes of a rule.
const (
	OutcomeMatch   Outcome = "MATCH"
	OutcomeNoMatch Outcome = "NO_MATCH"
	OutcomeUnknown Outcome = "UNKNOWN" // it could not be told: an ALLOW then does not match, a DENY does
	OutcomeSkipped Outcome = "SKIPPED" // a stronger rule had decided
)

// A Step is one rule that was considered.
type Step struct {
	Rule      RuleRef `json:"rule"`
	Condition string  `json:"condition,omitempty"` // for a person
	Outcome   Outcome `json:"outcome"`
	Words     string  `json:"words,omitempty"` // why it is unknown, or does not apply
}

// An Explanation is a Decision with all that was considered.
type Explanation struct {
	Decision Decision `json:"decision"`
	Steps    []Step   `json:"steps"`
	// Hypothetical is set if the subject has no Session and the decision is the
	// one that a new Session would get.
	Hypothetical bool `json:"hypothetical,omitempty"`
	// Unserved says why a connection that is let in comes to nothing all the same: none of
	// the endpoints that it would go to serves now.
	Unserved string `json:"unserved,omitempty"`
	// Hints say what would change the answer.
	Hints []string `json:"hints,omitempty"`
}

// A Verdict is what a caller is told about a request to connect. Whoever has no
// Session is told nothing.
type Verdict struct {
	Code       VerdictCode `json:"code"`
	DecisionID string      `json:"decisionID,omitempty"`
	Words      string      `json:"words,omitempty"`
}

// VerdictCode says what became of a request to connect.
type VerdictCode string

// The codes of a Verdict.
const (
	VerdictOK          VerdictCode = "OK"
	VerdictDenied      VerdictCode = "DENIED"      // may not, or there is no such Service
	VerdictUnavailable VerdictCode = "UNAVAILABLE" // the upstream, or the decision, could not be had
)
