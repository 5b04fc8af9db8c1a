package api

import "time"

// A Session is what a User has after logging in: one client, bound to a key
// that was made there. Nobody creates one by hand.
type Session struct {
	Head
	Spec   SessionSpec   `json:"spec"`
	Status SessionStatus `json:"status,omitzero"`
}

// SessionState says whether a Session may be used.
type SessionState string

// The states of a Session.
const (
	SessionActive   SessionState = "ACTIVE"
	SessionPending  SessionState = "PENDING"
	SessionRejected SessionState = "REJECTED"
)

// Values implements Enum.
func (SessionState) Values() []string {
	return []string{string(SessionActive), string(SessionPending), string(SessionRejected)}
}

// SessionSpec is what an administrator sets.
type SessionSpec struct {
	State SessionState `json:"state"`
	// ExpiresAt is when the Session ends, with its connections.
	ExpiresAt     time.Time     `json:"expiresAt"`
	Authorization Authorization `json:"authorization,omitzero"`
}

// SessionStatus is what the cluster knows of it.
type SessionStatus struct {
	Type          string `json:"type,omitempty"` // CLIENT
	UserRef       Ref    `json:"userRef"`
	CredentialRef *Ref   `json:"credentialRef,omitempty"` // by which it was made
	DeviceRef     *Ref   `json:"deviceRef,omitempty"`     // the Device it was bound to
	// CertificateSeconds is how long its certificates are good; 0 is 4 hours.
	CertificateSeconds int `json:"certificateSeconds,omitempty"`
	// KeySHA256 is the SHA-256, in hex, of the public key (SubjectPublicKeyInfo,
	// DER) that the Session is bound to. From login on, the key is the credential.
	KeySHA256 string `json:"keySHA256,omitempty"`
	// Connection is the place of the Session in the private network, once it has
	// connected to that.
	Connection *SessionConnection `json:"connection,omitempty"`
}

// Default implements Object.
func (s *Session) Default() {
	s.APIVersion, s.Kind = Version, KindSession
	if s.Spec.State == "" {
		s.Spec.State = SessionActive
	}
}

// Validate implements Object.
func (s *Session) Validate(p *Problems) {
	s.Metadata.validateMade(p)
	if s.Spec.ExpiresAt.IsZero() {
		p.Add("/spec/expiresAt", "is required", "")
	}
	s.Spec.Authorization.validate(p, "/spec/authorization")
}

func sessionKind() Kind {
	return Kind{Name: KindSession, Plural: "sessions", Short: []string{"sess"},
		Updatable: true, New: func() Object { return new(Session) },
		Columns: []Column{
			{Heading: "USER", Cell: func(o Object) string { return o.(*Session).Status.UserRef.Name }},
			{Heading: "DEVICE", Wide: true, Cell: func(o Object) string {
				if d := o.(*Session).Status.DeviceRef; d != nil {
					return d.Name
				}
				return ""
			}},
			{Heading: "ADDRESS", Wide: true, Cell: func(o Object) string {
				if c := o.(*Session).Status.Connection; c != nil {
					return c.Addresses.IPv4
				}
				return ""
			}},
			{Heading: "STATE", Cell: func(o Object) string { return string(o.(*Session).Spec.State) }},
			{Heading: "EXPIRES", Cell: func(o Object) string { return o.(*Session).Spec.ExpiresAt.UTC().Format(time.RFC3339) }},
		}}
}
