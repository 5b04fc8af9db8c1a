package api

import (
	"encoding/json"
	"time"
)

// What is said over the API, beside Objects. Paths:
//
//	POST   /api/login                                   LoginRequest → LoginResponse (no certificate needed)
//	POST   /api/renew                                   RenewRequest → LoginResponse (by proof of the Session's key)
//	GET    /api/self                                    → Self
//	GET    /api/self/services?denied=true               → Reachable
//	POST   /api/self/device                             DeviceRequest → DeviceResponse; makes a Device of the caller's machine
//	GET    /api/connect                                 → NetworkState as it would be, and nothing changes
//	POST   /api/connect                                 ConnectRequest → ConnectEvent, one JSON value a line; a place in the private network
//	POST   /api/disconnect                              → Empty; gives up its key
//	POST   /api/logout                                  → Empty; ends the caller's Session
//	POST   /api/apply?allowLockout=true                 ApplyRequest → ApplyResponse
//	GET    /api/{group}/{version}/{plural}?limit=N&after=NAME&namespace=N&user=U&label=K%3DV   → List
//	GET    /api/{group}/{version}/{plural}?watch=true&revision=E.N → WatchEvent, one JSON value a line
//	GET    /api/{group}/{version}/{plural}/{name}       → the Object
//	POST   /api/{group}/{version}/{plural}              the Object → WriteResponse; CONFLICT if it exists
//	PUT    /api/{group}/{version}/{plural}/{name}       the Object → WriteResponse; CONFLICT if resourceVersion is stale
//	PATCH  /api/{group}/{version}/{plural}/{name}       a merge patch (RFC 7386) → WriteResponse
//	DELETE /api/{group}/{version}/{plural}/{name}       → WriteResponse
//	GET    /api/route?port=N&address=IP&sni=NAME&notls=true&alpn=P,P&from=IP   → RouteAnswer
//	POST   /api/core/v1/credentials/{name}/token        → TokenResponse; makes a new token, the old one is void
//	POST   /api/why                                     WhyRequest → Explanation
//	GET    /api/conns                                   → Connections
//	DELETE /api/conns/{id}                              → Empty
//	GET    /api/logs?follow=true&user=U&service=S&session=N&device=D&type=T&decision=ID&since=RFC3339&until=RFC3339&limit=N
//	                                                    → AccessLog, one JSON value a line
//	POST   /api/logs/verify                             → VerifyReport
//	GET    /api/backup                                  → a backup of the store, one JSON value a line
//	POST   /api/rotate                                  RotateRequest → RotateResponse
//	GET    /api/health                                  → Health
//	GET    /api/openapi.json                            → the OpenAPI document of this API
//	GET    /livez, /readyz                              → "ok" (no certificate needed), or 503 and why not
//	GET    /metrics                                     → metrics in the Prometheus text format
//
// What changes Objects takes dryRun=true, and then changes nothing. Group and
// version of our kinds are core/v1. Those of other systems' kinds are
// getambassador.io/v3alpha1, v2 or v1, or kubernetes/v1, all versions of a group
// for the same Objects, of which each is returned as it was written; namespace=N
// names the namespace of one of them; without, it is that which Objects are of that
// name none.
//
// A failure is an Error with the HTTP status of its code: INVALID 400,
// UNAUTHENTICATED 401, PERMISSION_DENIED 403, NOT_FOUND 404, CONFLICT 409,
// UNAVAILABLE 503, INTERNAL 500.

// Empty is the answer that says nothing.
type Empty struct{}

// A LoginRequest proves a token and asks for a certificate for a key that was
// made on the device.
type LoginRequest struct {
	Token string `json:"token"`
	CSR   []byte `json:"csr"` // PKCS #10, DER; its signature proves the key
	// User, if set, is the only one whose token will do: that of another is
	// refused with CONFLICT, and is not used up.
	User string `json:"user,omitempty"`
}

// A LoginResponse is a Session and its certificate.
type LoginResponse struct {
	Domain      string    `json:"domain"`
	User        string    `json:"user"`
	Session     string    `json:"session"`
	Certificate []byte    `json:"certificate"` // leaf, DER
	CA          [][]byte  `json:"ca"`          // roots, DER
	NotAfter    time.Time `json:"notAfter"`    // of the certificate
	// State is that of the Session: with PENDING nothing can be reached until an
	// administrator approves it.
	State SessionState `json:"state"`
	// Now is the clock of the cluster: a client whose own differs says so.
	Now time.Time `json:"now"`
}

// A DeviceRequest registers the machine of the caller as a Device of his User and
// binds his Session to it. A machine that was registered before stays the Device
// it is.
type DeviceRequest struct {
	OSType OSType       `json:"osType"`
	Report DeviceReport `json:"report"`
}

// A DeviceResponse is the Device, and what became of it.
type DeviceResponse struct {
	Device  *Device `json:"device"`
	Created bool    `json:"created"`
}

// A RenewRequest asks for a new certificate for the Session's key. It proves the
// key by the TLS connection it comes over.
type RenewRequest struct {
	CSR []byte `json:"csr"` // PKCS #10, DER, by the Session's key
}

// Self is what a Session may know of itself.
type Self struct {
	Domain   string    `json:"domain"`
	User     *User     `json:"user"`
	Session  *Session  `json:"session"`
	Revision Revision  `json:"revision"`
	Now      time.Time `json:"now"`
	// OlderProcesses is how many processes of the cluster an upgrade has replaced that
	// keep their connections.
	OlderProcesses int `json:"olderProcesses,omitempty"`
}

// Reachable is the Services that a Session may connect to now, ordered by name.
type Reachable struct {
	Items []ReachableService `json:"items"`
	// Denied is, if it is asked for, the Services that the Session may see and not
	// connect to, and why: those first of which it lacks least.
	Denied []DeniedService `json:"denied,omitempty"`
	// Domain is that of the cluster: NAME.NAMESPACE.svc.DOMAIN is a Service's server
	// name for bare TLS.
	Domain string `json:"domain"`
}

// A DeniedService is a Service that a Session may see and not connect to.
type DeniedService struct {
	Name        string     `json:"name"`
	Mode        Mode       `json:"mode"`
	Description string     `json:"description,omitempty"`
	Reason      ReasonType `json:"reason"`
	Message     string     `json:"message,omitempty"` // the rule's, for callers
}

// A ReachableService is what a Session may know of a Service that it may reach.
type ReachableService struct {
	Name        string    `json:"name"`
	Mode        Mode      `json:"mode"`
	Port        int       `json:"port,omitempty"`
	Addresses   Addresses `json:"addresses,omitzero"`
	Description string    `json:"description,omitempty"`
}

// An ApplyRequest is a list of documents that are written together or not at all.
type ApplyRequest struct {
	Documents []json.RawMessage `json:"documents"`
	DryRun    bool              `json:"dryRun,omitempty"`
	// Set stamps what is written as belonging to a set; CONFLICT if it bears the
	// stamp of another.
	Set string `json:"set,omitempty"`
	// Prune deletes what bears the stamp of Set and is not among the documents.
	Prune bool `json:"prune,omitempty"`
	// Diff asks for the Objects before and after in each Result.
	Diff bool `json:"diff,omitempty"`
}

// Action says what became of an Object.
type Action string

// The values of Action.
const (
	ActionCreated    Action = "created"
	ActionConfigured Action = "configured"
	ActionUnchanged  Action = "unchanged"
	ActionDeleted    Action = "deleted"
)

// A Result is what became of one document.
type Result struct {
	Group     string `json:"group,omitempty"` // of foreign kinds
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"` // of foreign Objects
	Name      string `json:"name"`
	Action    Action `json:"action"`
	// Before and After are the Objects, redacted, if they were asked for.
	Before json.RawMessage `json:"before,omitempty"`
	After  json.RawMessage `json:"after,omitempty"`
}

// An ApplyResponse says what became of each document, in order, but for those that
// a warning calls skipped. It is sent once every decision is made on the new state.
// The Document of a warning about what no document says is -1.
type ApplyResponse struct {
	Results  []Result  `json:"results"`
	Warnings []Problem `json:"warnings,omitempty"`
	Revision Revision  `json:"revision"`
}

// A WriteResponse is the answer to a write of one Object.
type WriteResponse struct {
	Result   Result          `json:"result"`
	Object   json.RawMessage `json:"object,omitempty"`
	Warnings []Problem       `json:"warnings,omitempty"`
	Revision Revision        `json:"revision"`
}

// A List is the Objects of a kind, ordered by namespace, if they have one, and
// name.
type List struct {
	Items    []json.RawMessage `json:"items"`
	Revision Revision          `json:"revision"`
	// Next is the name to go on after, if there are more than were asked for. Of
	// foreign Objects it is NAMESPACE/NAME.
	Next string `json:"next,omitempty"`
}

// WatchType says what a WatchEvent tells.
type WatchType string

// The types of a WatchEvent.
const (
	WatchPut     WatchType = "PUT"     // the Object was made or changed, or has come into view
	WatchDeleted WatchType = "DELETED" // it was deleted, or has gone out of view
	// WatchSynced says that everything up to Revision has been told. It comes
	// after each commit, and at least once every 15 seconds.
	WatchSynced WatchType = "SYNCED"
)

// A WatchEvent is one line of a watch. It begins at a revision, as a List has
// one; CONFLICT says that history does not reach back that far: list again.
type WatchEvent struct {
	Type     WatchType       `json:"type"`
	Object   json.RawMessage `json:"object,omitempty"`
	Revision Revision        `json:"revision"`
}

// A TokenResponse carries a token, once.
type TokenResponse struct {
	Token string `json:"token"`
	// CASHA256 is the SHA-256 of the cluster's CA as it is now, in hex: what
	// whoever logs in by the token pins.
	CASHA256 string `json:"caSHA256,omitempty"`
}

// A WhyRequest asks what would be decided. Subject is the name of a User, or
// session/NAME.
type WhyRequest struct {
	Subject string    `json:"subject"`
	Service string    `json:"service"`
	Facts   *Facts    `json:"facts,omitempty"`
	At      time.Time `json:"at,omitzero"` // instead of now
}

// A Connection is one live connection.
type Connection struct {
	ID            string    `json:"id"`
	Service       string    `json:"service"`
	User          string    `json:"user,omitempty"`
	Session       string    `json:"session,omitempty"`
	Device        string    `json:"device,omitempty"`
	Source        string    `json:"source,omitempty"`   // HOST:PORT
	Upstream      string    `json:"upstream,omitempty"` // HOST:PORT
	ConfigName    string    `json:"configName,omitempty"`
	Tunnel        string    `json:"tunnel,omitempty"`
	StartedAt     time.Time `json:"startedAt"`
	ReceivedBytes int64     `json:"receivedBytes,string"`
	SentBytes     int64     `json:"sentBytes,string"`
	DecisionID    string    `json:"decisionID"`
	Rule          *RuleRef  `json:"rule,omitempty"`
	Process       int       `json:"process,omitempty"`  // the id of the process that carries it
	Draining      bool      `json:"draining,omitempty"` // an upgrade has replaced that process, and it keeps what it has
}

// Connections is a list of live connections, the oldest first.
type Connections struct {
	Items []Connection `json:"items"`
	// Silent are the processes of the same data directory that did not answer: what they
	// carry is not listed.
	Silent []int `json:"silent,omitempty"`
}

// A VerifyReport says whether the log is whole.
type VerifyReport struct {
	OK       bool     `json:"ok"`
	Records  int64    `json:"records"`
	Segments int      `json:"segments"`
	Journals int      `json:"journals,omitempty"` // each process of a data directory writes one at a time
	Heads    int64    `json:"heads"`              // signed heads that were checked
	Open     int64    `json:"open"`               // STARTs whose connection is live
	Findings []string `json:"findings,omitempty"` // what is wrong, one sentence each
	Notes    []string `json:"notes,omitempty"`    // what is worth saying and not wrong
}

// A RotateRequest makes a new key: "ca" (the cluster's CA), "audit" (signs the
// log) or "seal" (encrypts Secrets). What the old one made stays good for an
// overlap, and clients learn a new CA when they renew.
type RotateRequest struct {
	What string `json:"what"`
}

// A RotateResponse says what was made, and until when the old one counts.
type RotateResponse struct {
	What     string    `json:"what"`
	KeyID    string    `json:"keyID"`
	CASHA256 string    `json:"caSHA256,omitempty"` // the new pin, of "ca"
	Overlap  time.Time `json:"overlap,omitzero"`
}

// Health is how the cluster does.
type Health struct {
	OK     bool          `json:"ok"`
	Checks []HealthCheck `json:"checks"`
}

// A HealthCheck is one thing that was looked at.
type HealthCheck struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Warning is set if what is wrong keeps nobody from being served: readiness
	// does not depend on it.
	Warning bool   `json:"warning,omitempty"`
	Words   string `json:"words,omitempty"`
	Hint    string `json:"hint,omitempty"` // the way out
}
