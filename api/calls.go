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
//	GET    /api/self/services                           → Reachable
//	POST   /api/logout                                  → Empty; ends the caller's Session
//	POST   /api/apply                                   ApplyRequest → ApplyResponse
//	GET    /api/core/v1/{plural}                        → List
//	GET    /api/core/v1/{plural}/{name}                 → the Object
//	POST   /api/core/v1/{plural}                        the Object → WriteResponse; CONFLICT if it exists
//	PUT    /api/core/v1/{plural}/{name}                 the Object → WriteResponse; CONFLICT if resourceVersion is stale
//	DELETE /api/core/v1/{plural}/{name}                 → WriteResponse
//	POST   /api/core/v1/credentials/{name}/token        → TokenResponse; makes a new token, the old one is void
//	POST   /api/why                                     WhyRequest → Explanation
//	GET    /api/conns                                   → Connections
//	DELETE /api/conns/{id}                              → Empty
//	GET    /api/logs?follow=true&user=U&service=S&session=N&type=T&since=RFC3339   → AccessLog, one JSON value a line
//	POST   /api/logs/verify                             → VerifyReport
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
}

// Reachable is the Services that a Session may connect to now, ordered by name.
type Reachable struct {
	Items []ReachableService `json:"items"`
}

// A ReachableService is what a Session may know of a Service that it may reach.
type ReachableService struct {
	Name        string `json:"name"`
	Mode        Mode   `json:"mode"`
	Port        int    `json:"port,omitempty"`
	Description string `json:"description,omitempty"`
}

// An ApplyRequest is a list of documents that are written together or not at all.
type ApplyRequest struct {
	Documents []json.RawMessage `json:"documents"`
	DryRun    bool              `json:"dryRun,omitempty"`
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
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Action Action `json:"action"`
}

// An ApplyResponse says what became of each document, in order. It is sent once
// every decision is made on the new state.
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

// A List is the Objects of a kind, ordered by name.
type List struct {
	Items    []json.RawMessage `json:"items"`
	Revision Revision          `json:"revision"`
}

// A TokenResponse carries a token, once.
type TokenResponse struct {
	Token string `json:"token"`
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
	Source        string    `json:"source,omitempty"`   // HOST:PORT
	Upstream      string    `json:"upstream,omitempty"` // HOST:PORT
	ConfigName    string    `json:"configName,omitempty"`
	Tunnel        string    `json:"tunnel,omitempty"`
	StartedAt     time.Time `json:"startedAt"`
	ReceivedBytes int64     `json:"receivedBytes,string"`
	SentBytes     int64     `json:"sentBytes,string"`
	DecisionID    string    `json:"decisionID"`
	Rule          *RuleRef  `json:"rule,omitempty"`
}

// Connections is a list of live connections, the oldest first.
type Connections struct {
	Items []Connection `json:"items"`
}

// A VerifyReport says whether the log is whole.
type VerifyReport struct {
	OK       bool     `json:"ok"`
	Records  int64    `json:"records"`
	Segments int      `json:"segments"`
	Heads    int64    `json:"heads"`              // signed heads that were checked
	Open     int64    `json:"open"`               // STARTs whose connection is live
	Findings []string `json:"findings,omitempty"` // what is wrong, one sentence each
	Notes    []string `json:"notes,omitempty"`    // what is worth saying and not wrong
}
