package api

import (
	"strconv"
	"time"
)

// A Credential lets whoever holds its token log in as a User.
type Credential struct {
	Head
	Spec   CredentialSpec   `json:"spec"`
	Status CredentialStatus `json:"status,omitzero"`
}

// CredentialType says what kind of token a Credential has.
type CredentialType string

// CredentialAuthToken is a token that `cardea login` takes.
const CredentialAuthToken CredentialType = "AUTH_TOKEN"

// Values implements Enum.
func (CredentialType) Values() []string { return []string{string(CredentialAuthToken)} }

// Later implements LaterEnum.
func (CredentialType) Later() []string { return []string{"OAUTH2", "ACCESS_TOKEN"} }

// CredentialSpec is what an administrator sets.
type CredentialSpec struct {
	Type CredentialType `json:"type"`
	User string         `json:"user"` // cannot be changed
	// MaxAuthentications is how often the token can be used; 0 is any number.
	MaxAuthentications int       `json:"maxAuthentications,omitempty"`
	ExpiresAt          time.Time `json:"expiresAt,omitzero"` // zero is never
	IsDisabled         bool      `json:"isDisabled,omitempty"`
	// Authorization is copied onto the Sessions that it makes.
	Authorization Authorization `json:"authorization,omitzero"`
	SessionType   SessionType   `json:"sessionType,omitempty"` // CLIENT
	// AutoDelete deletes it when it has been used MaxAuthentications times. Its
	// Sessions stay.
	AutoDelete bool `json:"autoDelete,omitempty"`
}

// SessionType says how a Session is used.
type SessionType string

// SessionClient is the type of a Session that is bound to a key on a device.
const SessionClient SessionType = "CLIENT"

// Values implements Enum.
func (SessionType) Values() []string { return []string{string(SessionClient)} }

// Later implements LaterEnum.
func (SessionType) Later() []string { return []string{"CLIENTLESS"} }

// CredentialStatus is what the cluster knows of it.
type CredentialStatus struct {
	// TokenSHA256 is the SHA-256, in hex, of the token. The API never returns it.
	TokenSHA256          string    `json:"tokenSHA256,omitempty"`
	TotalAuthentications int       `json:"totalAuthentications,omitempty"`
	LastAuthenticationAt time.Time `json:"lastAuthenticationAt,omitzero"`
	TotalRotations       int       `json:"totalRotations,omitempty"` // how often a new token was made
	LastRotationAt       time.Time `json:"lastRotationAt,omitzero"`
}

// Default implements Object.
func (c *Credential) Default() {
	c.APIVersion, c.Kind = Version, KindCredential
	if c.Spec.Type == "" {
		c.Spec.Type = CredentialAuthToken
	}
	if c.Spec.SessionType == "" {
		c.Spec.SessionType = SessionClient
	}
}

// Validate implements Object.
func (c *Credential) Validate(p *Problems) {
	c.Metadata.validate(p, 1)
	if c.Spec.User == "" {
		p.Add("/spec/user", "is required", "")
	} else if !validLabel(c.Spec.User) {
		p.Add("/spec/user", labelRule, c.Spec.User)
	}
	if n := c.Spec.MaxAuthentications; n < 0 || n > 1_000_000 {
		p.Add("/spec/maxAuthentications", "must be from 0 to 1000000", strconv.Itoa(n))
	}
	if c.Spec.AutoDelete && c.Spec.MaxAuthentications == 0 {
		p.Add("/spec/autoDelete", "needs maxAuthentications", "true")
	}
	c.Spec.Authorization.validate(p, "/spec/authorization")
}

func credentialKind() Kind {
	return Kind{Name: KindCredential, Plural: "credentials", Short: []string{"cred"}, ByHand: true,
		New: func() Object { return new(Credential) },
		Columns: []Column{
			{Heading: "TYPE", Cell: func(o Object) string { return string(o.(*Credential).Spec.Type) }},
			{Heading: "USER", Cell: func(o Object) string { return o.(*Credential).Spec.User }},
			{Heading: "USED", Cell: func(o Object) string { return strconv.Itoa(o.(*Credential).Status.TotalAuthentications) }},
		}}
}
