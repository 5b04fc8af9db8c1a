package api

// An Authenticator is a second proof of who a User is. Nothing registers one yet.
type Authenticator struct {
	Head
	Spec   AuthenticatorSpec   `json:"spec"`
	Status AuthenticatorStatus `json:"status,omitzero"`
}

// AuthenticatorState says whether an Authenticator may be used.
type AuthenticatorState string

// The states of an Authenticator.
const (
	AuthenticatorActive   AuthenticatorState = "ACTIVE"
	AuthenticatorPending  AuthenticatorState = "PENDING"
	AuthenticatorRejected AuthenticatorState = "REJECTED"
)

// Values implements Enum.
func (AuthenticatorState) Values() []string {
	return []string{string(AuthenticatorActive), string(AuthenticatorPending), string(AuthenticatorRejected)}
}

// AuthenticatorSpec is what an administrator sets.
type AuthenticatorSpec struct {
	DisplayName string             `json:"displayName,omitempty"`
	State       AuthenticatorState `json:"state"`
}

// AuthenticatorStatus is what the cluster knows of it.
type AuthenticatorStatus struct {
	UserRef Ref               `json:"userRef"`
	Type    AuthenticatorType `json:"type,omitempty"`
}

// AuthenticatorType says what kind of proof it gives.
type AuthenticatorType string

// Values implements Enum.
func (AuthenticatorType) Values() []string { return []string{"FIDO", "TOTP", "TPM"} }

// Default implements Object.
func (a *Authenticator) Default() {
	a.APIVersion, a.Kind = Version, KindAuthenticator
	if a.Spec.State == "" {
		a.Spec.State = AuthenticatorActive
	}
}

// Validate implements Object.
func (a *Authenticator) Validate(p *Problems) {
	a.Metadata.validateMade(p)
	if len(a.Spec.DisplayName) > 120 {
		p.Add("/spec/displayName", "must be at most 120 bytes", a.Spec.DisplayName)
	}
}

func authenticatorKind() Kind {
	return Kind{Name: KindAuthenticator, Plural: "authenticators", Short: []string{"authn"}, Updatable: true,
		New: func() Object { return new(Authenticator) },
		Columns: []Column{
			{Heading: "USER", Cell: func(o Object) string { return o.(*Authenticator).Status.UserRef.Name }},
			{Heading: "TYPE", Cell: func(o Object) string { return string(o.(*Authenticator).Status.Type) }},
			{Heading: "STATE", Cell: func(o Object) string { return string(o.(*Authenticator).Spec.State) }},
		}}
}
