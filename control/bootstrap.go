package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cardea/api"
	"cardea/identity/token"
	"cardea/store"
)

// rootLogin is the name of the Credential by which root logs in at first, and
// after everything else was lost. Its count of uses tells whether root ever did.
const rootLogin = "root-login"

// rootLoginLife is how long its token can be used.
const rootLoginLife = 15 * time.Minute

// actorSystem is who does what no Session does.
const actorSystem = "system"

// Bootstrap makes what every cluster has and is missing: on the first start that
// is all of it. What people cannot change is made as this version has it. As long
// as root has never logged in, it returns a new token for root, which voids the
// one before; later it returns "".
//
// It fails if the store belongs to a cluster of another domain.
func (s *Server) Bootstrap(ctx context.Context) (rootToken string, err error) {
	_, err = s.Store.Update(ctx, actorSystem, func(tx store.Tx) error {
		rootToken = ""
		regionUID, err := s.region(tx)
		if err != nil {
			return err
		}
		for _, o := range s.founding(regionUID) {
			if err := s.ensure(tx, o); err != nil {
				return err
			}
		}
		if err := s.layOut(tx); err != nil {
			return err
		}
		cred, err := store.Get[*api.Credential](tx, rootLoginKey())
		if err != nil {
			return err
		}
		if cred.Status.TotalAuthentications > 0 {
			return nil
		}
		rootToken, err = s.renewRootLogin(tx, cred)
		return err
	})
	return rootToken, err
}

// region returns the uid of the Region, which the ClusterConfig knows: a new one
// if there is no cluster yet.
func (s *Server) region(r store.Reader) (uid string, err error) {
	cc, err := clusterConfig(r)
	switch {
	case api.HasCode(err, api.CodeNotFound):
		return newUID(), nil
	case err != nil:
		return "", err
	case cc.Status.Domain != s.Domain:
		return "", fmt.Errorf("this store belongs to the cluster of domain %s, not %s", cc.Status.Domain, s.Domain)
	}
	return cc.Status.RegionUID, nil
}

// ensure makes an Object of the founding if it is missing. If it is there and
// people cannot change it, it becomes what it is in this version.
func (s *Server) ensure(tx store.Tx, o api.Object) error {
	old, err := stored(tx, o.Header().Key())
	if err != nil {
		return err
	}
	h := &o.Header().Metadata
	if old == nil {
		now := s.Now().UTC()
		if h.UID == "" {
			h.UID = newUID()
		}
		h.ResourceVersion, h.IsSystem, h.CreatedAt, h.UpdatedAt = newVersion(), true, now, now
		return put(tx, o)
	}
	if k := o.Header().Key(); slices.Contains(changeable(), k) || k == rootLoginKey() {
		return nil
	}
	description := h.Description
	*h = old.Header().Metadata
	h.Description = description
	return s.rewrite(tx, o)
}

// A Recovery is what Recover did.
type Recovery struct {
	Token string // logs root in, once, within 15 minutes
	// Changes says, in a sentence each, what stood in root's way and was changed.
	Changes []string
}

// Recover returns a new token for root, which voids the one before, for whoever
// owns the data. So that it is of use, root is enabled and names the Policy
// api-full-access again, should somebody have changed that.
//
// If root could still not write policies, Recover fails and says why; with reset
// it takes out of the way what people can have put there: the policies of the
// ClusterConfig, and root's Groups and other policies. Audit, unless it is nil,
// takes a record of each Object that is changed, before that happens.
func (s *Server) Recover(ctx context.Context, reset bool) (Recovery, error) {
	var out Recovery
	_, err := s.Store.Update(ctx, actorSystem, func(tx store.Tx) error {
		out = Recovery{}
		root, err := store.Get[*api.User](tx, coreKey(api.KindUser, api.RootUser))
		if api.HasCode(err, api.CodeNotFound) {
			return errors.New("there is no cluster in this store yet: start it with cardea up")
		}
		if err != nil {
			return err
		}
		cc, err := clusterConfig(tx)
		if err != nil {
			return err
		}
		cred, err := store.Get[*api.Credential](tx, rootLoginKey())
		if err != nil {
			return err
		}
		before := []api.Object{api.Clone(root), api.Clone(cc), api.Clone(cred)}

		if root.Spec.IsDisabled {
			root.Spec.IsDisabled = false
			out.Changes = append(out.Changes, "User root was disabled, and is not any more.")
		}
		if a := &root.Spec.Authorization; !slices.Contains(a.Policies, api.PolicyAPIFullAccess) {
			a.Policies = append(a.Policies, api.PolicyAPIFullAccess)
			out.Changes = append(out.Changes, "User root did not name the Policy "+api.PolicyAPIFullAccess+", and does again.")
		}
		why, err := s.obstacle(ctx, tx, cc, root)
		if err != nil {
			return err
		}
		if why != "" && reset {
			out.Changes = append(out.Changes, clearWay(cc, root)...)
			if why, err = s.obstacle(ctx, tx, cc, root); err != nil {
				return err
			}
		}
		if why != "" {
			e := api.Errorf(api.CodeConflict, "root could log in and not write policies: %s", why)
			e.Hint = "recover --reset removes the policies of the ClusterConfig, and root's Groups and other policies"
			return e
		}
		if out.Token, err = s.renewRootLogin(tx, cred); err != nil {
			return err
		}
		return s.recordRecovery(ctx, before, []api.Object{root, cc, cred})
	})
	return out, err
}

// recordRecovery records what Recover changed of each Object.
func (s *Server) recordRecovery(ctx context.Context, before, after []api.Object) error {
	if s.Audit == nil {
		return nil
	}
	var recs []*api.AccessLog
	for i, o := range after {
		if same, err := equal(before[i], o); err != nil {
			return err
		} else if same {
			continue
		}
		rec, err := systemRecord(s.Now(), verbUpdate, "cardea recover, by the owner of the data", before[i], o)
		if err != nil {
			return err
		}
		recs = append(recs, rec)
	}
	return s.Audit.Append(ctx, recs...)
}

// rewrite stores what the system has changed of an Object, if it has.
func (s *Server) rewrite(tx store.Tx, o api.Object) error {
	before, err := stored(tx, o.Header().Key())
	if err != nil {
		return err
	}
	if same, err := equal(before, o); err != nil || same {
		return err
	}
	m := &o.Header().Metadata
	m.ResourceVersion, m.UpdatedAt, m.ActorRef = newVersion(), s.Now().UTC(), nil
	return put(tx, o)
}

// obstacle writes the ClusterConfig and root, if they were changed, and returns
// why a new Session of root could not write policies, "" if it could.
func (s *Server) obstacle(ctx context.Context, tx store.Tx, cc *api.ClusterConfig, root *api.User) (why string, err error) {
	if err := errors.Join(s.rewrite(tx, cc), s.rewrite(tx, root)); err != nil || s.Proposed == nil {
		return "", err
	}
	trial := &api.Session{
		Head:   api.Head{Metadata: api.Metadata{Name: "root-recovery", UID: newUID()}},
		Spec:   api.SessionSpec{State: api.SessionActive, ExpiresAt: s.Now().Add(time.Hour)},
		Status: api.SessionStatus{UserRef: root.Ref()},
	}
	trial.Default()
	if err := put(tx, trial); err != nil {
		return "", err
	}
	a := about(verbUpdate, api.Key{Kind: api.KindPolicy})
	d, err := s.Proposed(ctx, tx, api.Request{Service: api.APIService, Session: trial.Metadata.UID, Facts: &api.Facts{API: &a}, Now: s.Now()})
	if err == nil && !d.Allowed() {
		why = d.Words
	}
	return why, errors.Join(err, tx.Delete(trial.Key()))
}

// clearWay takes out of root's way what people can have put there, and says what
// that was.
func clearWay(cc *api.ClusterConfig, root *api.User) (changes []string) {
	removed := func(from string, a *api.Authorization, keep ...string) {
		for _, name := range a.Policies {
			if !slices.Contains(keep, name) {
				changes = append(changes, fmt.Sprintf("%s named the Policy %s, and does not any more.", from, name))
			}
		}
		for i, p := range a.InlinePolicies {
			changes = append(changes, strings.TrimSpace(fmt.Sprintf("%s had the inline policy %d %s", from, i+1, p.Name))+", and does not any more.")
		}
		*a = api.Authorization{Policies: keep}
	}
	removed("ClusterConfig "+api.ClusterConfigName, &cc.Spec.Authorization)
	for _, g := range root.Spec.Groups {
		changes = append(changes, fmt.Sprintf("User root was in the Group %s, and is not any more.", g))
	}
	root.Spec.Groups = nil
	removed("User root", &root.Spec.Authorization, api.PolicyAPIFullAccess)
	return changes
}

// renewRootLogin gives root's Credential a new token, which can be used once.
func (s *Server) renewRootLogin(tx store.Tx, cred *api.Credential) (string, error) {
	now := s.Now().UTC()
	secret, hash := token.New(cred.Metadata.UID)
	cred.Status.TokenSHA256 = hash
	cred.Spec.MaxAuthentications = cred.Status.TotalAuthentications + 1
	cred.Spec.ExpiresAt = now.Add(rootLoginLife)
	cred.Metadata.ResourceVersion, cred.Metadata.UpdatedAt = newVersion(), now
	return secret, put(tx, cred)
}

func rootLoginKey() api.Key {
	return coreKey(api.KindCredential, rootLogin)
}

// founding returns what the first start makes. What refers to something comes
// after it.
func (s *Server) founding(regionUID string) []api.Object {
	named := func(name, description string) api.Head {
		return api.Head{Metadata: api.Metadata{Name: name, Description: description}}
	}
	always := api.Condition{MatchAny: true}
	when := func(expression string) api.Condition { return api.Condition{Match: expression} }
	policy := func(name, description string, effect api.Effect, c api.Condition) api.Object {
		return &api.Policy{Head: named(name, description), Spec: api.PolicySpec{Rules: []api.Rule{{Effect: effect, Condition: c}}}}
	}
	const isAPI = `ctx.service.metadata.name == "` + api.APIService + `"`
	all := []api.Object{
		&api.ClusterConfig{Head: named(api.ClusterConfigName, ""),
			Status: api.ClusterConfigStatus{Domain: s.Domain, RegionUID: regionUID}},
		&api.Region{Head: api.Head{Metadata: api.Metadata{Name: api.DefaultRegion, UID: regionUID, Description: "The Region of all Services."}}},
		policy(api.PolicyAllowAll, "Allows everything.", api.Allow, always),
		policy(api.PolicyDenyAll, "Denies everything.", api.Deny, always),
		policy(api.PolicyAPIFullAccess, "Allows every call to the API.", api.Allow, when(isAPI)),
		policy(api.PolicyAPIReadOnly, "Allows reading all resources.", api.Allow,
			when(isAPI+` && ctx.request.api.verb in ["get", "list", "watch"]`)),
		&api.Namespace{Head: named(api.DefaultNamespace, "The Namespace of Services whose name says none.")},
		&api.Namespace{Head: named(api.SystemNamespace, "The Services that are Cardea itself.")},
		&api.Service{Head: named(api.APIService, "The API."), Spec: api.ServiceSpec{Mode: api.ModeAPI,
			Authorization: api.Authorization{InlinePolicies: []api.InlinePolicy{{
				Name: "own-session",
				Spec: api.PolicySpec{Rules: []api.Rule{
					{Name: "own-session", Effect: api.Allow, Condition: when(
						`ctx.request.api.kind == "Session" && ctx.request.api.name == ctx.session.metadata.name` +
							` && ctx.request.api.verb in ["get", "delete", "renew"]`)},
					{Name: "register-device", Effect: api.Allow, Condition: when(
						`ctx.request.api.kind == "Device" && ctx.request.api.name == "" && ctx.request.api.verb == "create"`)},
					{Name: "own-device", Effect: api.Allow, Condition: when(
						`ctx.request.api.kind == "Device" && ctx.request.api.verb == "get" && has(ctx.session.status.deviceRef)` +
							` && ctx.request.api.name == ctx.session.status.deviceRef.name`)},
				}},
			}}}}},
		&api.User{Head: named(api.RootUser, "The first administrator."), Spec: api.UserSpec{Type: api.UserHuman,
			Authorization: api.Authorization{Policies: []string{api.PolicyAPIFullAccess}}}},
		&api.Credential{Head: named(rootLogin, "The token that the first start, and cardea recover, print."),
			Spec: api.CredentialSpec{Type: api.CredentialAuthToken, User: api.RootUser}},
	}
	for _, o := range all {
		o.Default()
	}
	return all
}
