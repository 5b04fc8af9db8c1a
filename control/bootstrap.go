package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
// is all of it. As long as root has never logged in, it returns a new token for
// root, which voids the one before; later it returns "".
//
// It fails if the store belongs to a cluster of another domain.
func (s *Server) Bootstrap(ctx context.Context) (rootToken string, err error) {
	_, err = s.Store.Update(ctx, actorSystem, func(tx store.Tx) error {
		rootToken = ""
		for _, o := range s.founding() {
			old, err := stored(tx, o.Header().Key())
			if err != nil {
				return err
			}
			if cc, ok := old.(*api.ClusterConfig); ok && cc.Status.Domain != s.Domain {
				return fmt.Errorf("this store belongs to the cluster of domain %s, not %s", cc.Status.Domain, s.Domain)
			}
			if old != nil {
				continue
			}
			now := s.Now().UTC()
			h := &o.Header().Metadata
			h.UID, h.ResourceVersion, h.IsSystem = newUID(), newVersion(), true
			h.CreatedAt, h.UpdatedAt = now, now
			if err := put(tx, o); err != nil {
				return err
			}
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

// Recover returns a new token for root, which voids the one before, for whoever
// owns the data. So that it is of use, root is enabled and names the Policy
// api-full-access again, should somebody have changed that.
//
// If root could still not write policies, Recover fails and says why; with reset
// it takes out of the way what people can have put there: the policies of the
// ClusterConfig, and root's Groups and other policies.
func (s *Server) Recover(ctx context.Context, reset bool) (rootToken string, err error) {
	_, err = s.Store.Update(ctx, actorSystem, func(tx store.Tx) error {
		root, err := store.Get[*api.User](tx, api.Key{Group: api.GroupCore, Kind: api.KindUser, Name: api.RootUser})
		if api.HasCode(err, api.CodeNotFound) {
			return errors.New("there is no cluster in this store yet: start it with cardea up")
		}
		if err != nil {
			return err
		}
		root.Spec.IsDisabled = false
		if a := &root.Spec.Authorization; !slices.Contains(a.Policies, api.PolicyAPIFullAccess) {
			a.Policies = append(a.Policies, api.PolicyAPIFullAccess)
		}
		if err := s.rewrite(tx, root); err != nil {
			return err
		}
		why, err := s.obstacle(ctx, tx, root)
		if err != nil {
			return err
		}
		if why != "" && reset {
			if why, err = s.clearWay(ctx, tx, root); err != nil {
				return err
			}
		}
		if why != "" {
			e := api.Errorf(api.CodeConflict, "root could log in and not write policies: %s", why)
			e.Hint = "recover --reset removes the policies of the ClusterConfig, and root's Groups and other policies"
			return e
		}
		cred, err := store.Get[*api.Credential](tx, rootLoginKey())
		if err != nil {
			return err
		}
		rootToken, err = s.renewRootLogin(tx, cred)
		return err
	})
	return rootToken, err
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

// obstacle returns why a new Session of root could not write policies, "" if it
// could.
func (s *Server) obstacle(ctx context.Context, tx store.Tx, root *api.User) (why string, err error) {
	if s.Proposed == nil {
		return "", nil
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

// clearWay takes out of root's way what people can have put there, and returns
// what is still in it.
func (s *Server) clearWay(ctx context.Context, tx store.Tx, root *api.User) (why string, err error) {
	cc, err := store.Get[*api.ClusterConfig](tx, api.Key{Group: api.GroupCore, Kind: api.KindClusterConfig, Name: api.ClusterConfigName})
	if err != nil {
		return "", err
	}
	cc.Spec.Authorization = api.Authorization{}
	root.Spec.Groups, root.Spec.Authorization = nil, api.Authorization{Policies: []string{api.PolicyAPIFullAccess}}
	if err := errors.Join(s.rewrite(tx, cc), s.rewrite(tx, root)); err != nil {
		return "", err
	}
	return s.obstacle(ctx, tx, root)
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
	return api.Key{Group: api.GroupCore, Kind: api.KindCredential, Name: rootLogin}
}

// founding returns what the first start makes. What refers to something comes
// after it.
func (s *Server) founding() []api.Object {
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
			Status: api.ClusterConfigStatus{Domain: s.Domain, RegionUID: newUID()}},
		policy(api.PolicyAllowAll, "Allows everything.", api.Allow, always),
		policy(api.PolicyDenyAll, "Denies everything.", api.Deny, always),
		policy(api.PolicyAPIFullAccess, "Allows every call to the API.", api.Allow, when(isAPI)),
		policy(api.PolicyAPIReadOnly, "Allows the calls to the API that change nothing.", api.Allow,
			when(isAPI+` && ctx.request.api.verb in ["get", "list", "watch", "why", "conns", "logs"]`)),
		&api.Namespace{Head: named(api.DefaultNamespace, "The Namespace of Services whose name says none.")},
		&api.Namespace{Head: named(api.SystemNamespace, "The Services that are Cardea itself.")},
		&api.Service{Head: named(api.APIService, "The API."), Spec: api.ServiceSpec{Mode: api.ModeAPI,
			Authorization: api.Authorization{InlinePolicies: []api.InlinePolicy{{
				Name: "own-session",
				Spec: api.PolicySpec{Rules: []api.Rule{{
					Name: "own-session", Effect: api.Allow,
					Condition: when(`ctx.request.api.kind == "Session" && ctx.request.api.name == ctx.session.metadata.name` +
						` && ctx.request.api.verb in ["get", "delete", "renew"]`),
				}}},
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
