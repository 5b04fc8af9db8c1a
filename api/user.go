package api

import "strings"

// A User is a person or a program that reaches Services.
type User struct {
	Head
	Spec   UserSpec   `json:"spec"`
	Status UserStatus `json:"status,omitzero"`
}

// RootUser is the User that the first start makes. It is an ordinary User that
// names the Policy api-full-access.
const RootUser = "root"

// UserType tells people from programs.
type UserType string

// The types of a User.
const (
	UserHuman    UserType = "HUMAN"
	UserWorkload UserType = "WORKLOAD"
)

// Values implements Enum.
func (UserType) Values() []string { return []string{string(UserHuman), string(UserWorkload)} }

// UserSpec is what an administrator sets.
type UserSpec struct {
	Type          UserType      `json:"type"`
	Groups        []string      `json:"groups,omitempty"`
	Email         string        `json:"email,omitempty"`
	IsDisabled    bool          `json:"isDisabled,omitempty"` // a disabled User reaches nothing
	Authorization Authorization `json:"authorization,omitzero"`
	Attrs         Attrs         `json:"attrs,omitempty"`
	Info          *UserInfo     `json:"info,omitempty"`
	// Session overrides what the ClusterConfig says of Sessions.
	Session        *SessionSettings `json:"session,omitempty"`
	Authentication NotYet           `json:"authentication,omitzero"`
}

// UserInfo describes a person; nothing follows from it.
type UserInfo struct {
	FirstName  string `json:"firstName,omitempty"`
	MiddleName string `json:"middleName,omitempty"`
	LastName   string `json:"lastName,omitempty"`
	Phone      string `json:"phone,omitempty"`
	Locale     string `json:"locale,omitempty"`
	Website    string `json:"website,omitempty"`
	Country    string `json:"country,omitempty"`
}

// UserStatus is what the cluster knows of it.
type UserStatus struct {
	// NoEffect lists the fields of spec that are kept and have no effect yet.
	NoEffect []string `json:"noEffect,omitempty"`
}

// Default implements Object.
func (u *User) Default() {
	u.APIVersion, u.Kind = Version, KindUser
	u.Status.NoEffect = u.Spec.Session.noEffect("spec.session")
}

// Validate implements Object.
func (u *User) Validate(p *Problems) {
	u.Metadata.validate(p, 1)
	if u.Spec.Type == "" {
		p.Add("/spec/type", "is required", "").Allowed = u.Spec.Type.Values()
	}
	checkNames(p, "/spec/groups", u.Spec.Groups)
	if e := u.Spec.Email; e != "" && (len(e) > 150 || !strings.Contains(e, "@") || strings.ToLower(e) != e) {
		p.Add("/spec/email", "must be a lower-case address of at most 150 bytes", e)
	}
	u.Spec.Authorization.validate(p, "/spec/authorization")
	u.Spec.Session.validate(p, "/spec/session")
}

func userKind() Kind {
	return Kind{Name: KindUser, Plural: "users", Short: []string{"usr"}, ByHand: true,
		New: func() Object { return new(User) },
		Columns: []Column{
			{Heading: "TYPE", Cell: func(o Object) string { return string(o.(*User).Spec.Type) }},
			{Heading: "GROUPS", Cell: func(o Object) string { return strings.Join(o.(*User).Spec.Groups, ",") }},
			{Heading: "DISABLED", Wide: true, Cell: func(o Object) string { return yes(o.(*User).Spec.IsDisabled) }},
		}}
}

// yes returns "yes", or nothing.
func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}
