package api

// An IdentityProvider vouches for Users. None can be made yet.
type IdentityProvider struct {
	Head
	Spec   IdentityProviderSpec   `json:"spec"`
	Status IdentityProviderStatus `json:"status,omitzero"`
}

// IdentityProviderSpec is what an administrator sets: one of github, oidc, saml
// and oidcIdentityToken.
type IdentityProviderSpec struct {
	DisplayName            string `json:"displayName,omitempty"`
	IsDisabled             bool   `json:"isDisabled,omitempty"`
	DisableEmailAsIdentity bool   `json:"disableEmailAsIdentity,omitempty"`
	AALRules               NotYet `json:"aalRules,omitzero"`
	PostAuthentication     NotYet `json:"postAuthenticationRules,omitzero"`
	GitHub                 NotYet `json:"github,omitzero"`
	OIDC                   NotYet `json:"oidc,omitzero"`
	SAML                   NotYet `json:"saml,omitzero"`
	OIDCIdentityToken      NotYet `json:"oidcIdentityToken,omitzero"`
}

// IdentityProviderStatus is empty for now.
type IdentityProviderStatus struct{}

// Default implements Object.
func (i *IdentityProvider) Default() { i.APIVersion, i.Kind = Version, KindIdentityProvider }

// Validate implements Object.
func (i *IdentityProvider) Validate(p *Problems) { i.Metadata.validate(p, 1) }

func identityProviderKind() Kind {
	return Kind{Name: KindIdentityProvider, Plural: "identityproviders", Short: []string{"idp"}, Later: true,
		New: func() Object { return new(IdentityProvider) }}
}
