package api

import (
	"encoding/json"
	"time"
)

// An AccessLog is one record of who did what. Its shape is that of the mission
// documents, with fields of ours beside theirs.
type AccessLog struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"` // AccessLog
	Metadata   AccessLogMetadata `json:"metadata"`
	Entry      AccessLogEntry    `json:"entry"`
}

// AccessLogMetadata says what the record is.
type AccessLogMetadata struct {
	ID        string    `json:"id"` // 4-4-24-4-4 of [a-z0-9]
	CreatedAt time.Time `json:"createdAt"`
	ActorRef  *Ref      `json:"actorRef,omitempty"`  // the Session; absent for strangers
	TargetRef *Ref      `json:"targetRef,omitempty"` // the Service
}

// AccessLogEntry is what happened: what all protocols have in common, and what
// one protocol adds.
type AccessLogEntry struct {
	Common AccessLogCommon `json:"common"`
	Info   AccessLogInfo   `json:"info"`
}

// Status says whether a decision let the caller in.
type Status string

// The values of Status.
const (
	StatusAllowed Status = "ALLOWED"
	StatusDenied  Status = "DENIED"
)

// AccessLogCommon is what all protocols have in common.
type AccessLogCommon struct {
	ConnectionID    string     `json:"connectionID,omitempty"` // 4-4-24-4-4; one for START, END and what is between
	Sequence        int64      `json:"sequence,omitempty"`     // of a unit of work within its connection, from 1
	StartedAt       time.Time  `json:"startedAt,omitzero"`
	EndedAt         time.Time  `json:"endedAt,omitzero"`
	IsAuthenticated bool       `json:"isAuthenticated"`
	IsAuthorized    bool       `json:"isAuthorized"`
	IsPublic        bool       `json:"isPublic,omitempty"`    // it came in through the Service's public port
	IsAnonymous     bool       `json:"isAnonymous,omitempty"` // nobody asked who it is
	Status          Status     `json:"status"`
	Mode            Mode       `json:"mode,omitempty"`
	Reason          *LogReason `json:"reason,omitempty"`
	DecisionID      string     `json:"decisionID,omitempty"`
	Revision        Revision   `json:"revision,omitzero"` // of the snapshot that the decision was made on
	ConfigName      string     `json:"configName,omitempty"`
	Facts           *Facts     `json:"facts,omitempty"`    // what the decision was made on; source address and port
	Upstream        string     `json:"upstream,omitempty"` // HOST:PORT that was dialled
	Route           *LogRoute  `json:"route,omitempty"`
	NamespaceRef    *Ref       `json:"namespaceRef,omitempty"`
	RegionRef       *Ref       `json:"regionRef,omitempty"`
	ServiceRef      *Ref       `json:"serviceRef,omitempty"`
	SessionRef      *Ref       `json:"sessionRef,omitempty"`
	UserRef         *Ref       `json:"userRef,omitempty"`
	DeviceRef       *Ref       `json:"deviceRef,omitempty"`
}

// LogRoute is how a connection was routed: of public ports, and on an END whatever
// there is to tell of the way to the upstream.
type LogRoute struct {
	Listener string `json:"listener,omitempty"` // ADDRESS:PORT as it is configured
	Match    string `json:"match,omitempty"`    // what of the listener's it matched: "sni db.example.com"
	// Version names the sequence by which members got their turns: within it each
	// has had its share, exactly.
	Version string `json:"version,omitempty"`
	Retries int    `json:"retries,omitempty"` // other endpoints that were tried before this one
	// UpstreamVerified is false if the upstream's certificate was not verified, and
	// UpstreamWords say why; absent without TLS.
	UpstreamVerified *bool  `json:"upstreamVerified,omitempty"`
	UpstreamWords    string `json:"upstreamWords,omitempty"`
}

// LogReason says why.
type LogReason struct {
	Type  ReasonType `json:"type"`
	Rule  *RuleRef   `json:"rule,omitempty"`
	Words string     `json:"words,omitempty"`
	// Count is how many refusals this record stands for, if more than one.
	Count int64 `json:"count,omitempty"`
}

// AccessLogInfo is what one protocol adds: at most one field is there.
type AccessLogInfo struct {
	TCP    *TCPInfo    `json:"tcp,omitempty"`
	UDP    *UDPInfo    `json:"udp,omitempty"`
	API    *APIInfo    `json:"api,omitempty"`
	Health *HealthInfo `json:"health,omitempty"`
}

// Flow returns what is said of a connection, TCP or UDP; nil if it is about none.
func (i *AccessLogInfo) Flow() *TCPInfo {
	if i.UDP != nil {
		return &i.UDP.TCPInfo
	}
	return i.TCP
}

// LogType says what a record of a connection marks.
type LogType string

// The types of a record.
const (
	LogStart  LogType = "START"
	LogEnd    LogType = "END"
	LogDenied LogType = "DENIED"
)

// TCPInfo is the log of a TCP connection.
type TCPInfo struct {
	Type LogType `json:"type"`
	// Bytes from the client, and to it; unknown (-1) after a crash. On START they are absent.
	ReceivedBytes *int64 `json:"receivedBytes,omitempty,string"`
	SentBytes     *int64 `json:"sentBytes,omitempty,string"`
	CloseReason   string `json:"closeReason,omitempty"` // of END: relay.Reason
	Error         string `json:"error,omitempty"`       // detail of a failure, of END
}

// UDPInfo is the log of a flow of datagrams: what that of a TCP connection is, and how
// many datagrams were carried.
type UDPInfo struct {
	TCPInfo
	// Datagrams from the client, and to it; as the bytes.
	ReceivedPackets *int64 `json:"receivedPackets,omitempty,string"`
	SentPackets     *int64 `json:"sentPackets,omitempty,string"`
}

// APIInfo is the log of a call to Cardea's own API. Values of Secrets, tokens and
// their hashes are never in it, but for the keyed hash of a Secret.
type APIInfo struct {
	Verb   string          `json:"verb"`
	Kind   string          `json:"kind,omitempty"`
	Name   string          `json:"name,omitempty"`
	Before json.RawMessage `json:"before,omitempty"` // the Object, redacted
	After  json.RawMessage `json:"after,omitempty"`
}
