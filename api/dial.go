package api

// A Destination is where a Grant leads: what the room that dials is told.
type Destination struct {
	// Service is the full name of the Service, or KIND/NAMESPACE/NAME of a foreign
	// Object.
	Service      string
	Object       Key
	Config       *ServiceConfig
	Facts        *Facts // of the client, for a PROXY header
	ConnectionID string // for the same
}

// A DialReport is what a dial tells beside its connection, or its error.
type DialReport struct {
	Retries int // other endpoints that were tried before
	// Verified is nil without TLS. If it is false the connection was made all the
	// same, and Words say why the certificate does not verify.
	Verified *bool
	Words    string
	// Hold is the place of the connection at its endpoint; nil if nobody counts those.
	// Whoever has the connection calls Release once, when it is over.
	Hold Hold
}

// A Hold is the place of one connection at an endpoint.
type Hold interface {
	// Release gives the place back, and tells how the connection was: how many bytes the
	// endpoint had sent, and whether it was the endpoint that broke it off.
	Release(sent int64, broken bool)
}
