package control

import (
	"cmp"
	"reflect"
	"strings"

	"cardea/api"
	"cardea/store"
)

// foreignUses asks for each Secret that an Object of Ambassador's names, and for
// those of the TLSContext by which a TCPMapping shows a certificate, unless what
// names them is as before. What is named need not exist.
func (w *writer) foreignUses(r store.Reader, before, after api.Object) ([]question, error) {
	if after == nil {
		return nil, nil
	}
	all := secretUser{Reader: r, standard: w.namespace}
	u := all.of(after)
	switch o := after.(type) {
	case *api.TLSContext:
		if was, ok := before.(*api.TLSContext); !ok || !reflect.DeepEqual(was.Spec, o.Spec) {
			u.context(&o.Spec, "/spec")
		}
	case *api.Host:
		if was, ok := before.(*api.Host); !ok || !reflect.DeepEqual(was.Spec, o.Spec) {
			u.host(&o.Spec)
		}
	case *api.TCPMapping:
		if was, ok := before.(*api.TCPMapping); !ok || !reflect.DeepEqual(was.Spec, o.Spec) {
			u.mapping(o.Spec.TLS.Name)
		}
	}
	return u.list, u.err
}

// A secretUser collects the questions about the Secrets that one Object uses.
type secretUser struct {
	store.Reader
	namespace string // of the Object
	standard  string // of Objects that say none
	list      []question
	err       error
}

// of returns a secretUser for an Object.
func (u *secretUser) of(o api.Object) *secretUser {
	return &secretUser{Reader: u.Reader, namespace: cmp.Or(o.Header().Metadata.Namespace, u.standard), standard: u.standard}
}

func (u *secretUser) context(s *api.TLSContextSpec, at string) {
	u.secret(s.Secret, at+"/secret")
	u.settings(&s.TLSSettings, at)
}

func (u *secretUser) settings(s *api.TLSSettings, at string) {
	u.secret(s.CASecret, at+"/ca_secret")
	u.secret(s.CRLSecret, at+"/crl_secret")
	u.secret(s.V3CRLSecret, at+"/v3CRLSecret")
}

func (u *secretUser) host(s *api.HostSpec) {
	if t := s.TLSSecret; t != nil && t.Namespace != "" {
		u.kubernetes(t.Name, t.Namespace, "/spec/tlsSecret")
	} else if t != nil {
		u.secret(t.Name, "/spec/tlsSecret")
	}
	if s.TLS != nil {
		settings := s.TLS.Settings()
		u.settings(&settings, "/spec/tls")
	}
}

// mapping asks for what the TLSContexts of a name use: those of the namespace, or
// else all.
func (u *secretUser) mapping(context string) {
	if context == "" {
		return
	}
	var near, all []*api.TLSContext
	for c, err := range store.AllIn[*api.TLSContext](u, api.GroupAmbassador, api.KindTLSContext) {
		if err != nil {
			u.err = err
			return
		}
		switch {
		case c.Metadata.Name == context && u.isHere(c.Metadata.Namespace):
			near = append(near, c)
			fallthrough
		case c.Metadata.Name == context, c.Metadata.Name+"."+c.Metadata.Namespace == context:
			all = append(all, c)
		}
	}
	if len(near) > 0 {
		all = near
	}
	for _, c := range all {
		of := u.of(c)
		of.context(&c.Spec, "")
		for _, q := range of.list {
			q.pointer = "/spec/tls"
			u.list = append(u.list, q)
		}
		u.err = cmp.Or(u.err, of.err)
	}
}

// isHere reports whether an Object that says that namespace is in the Object's.
func (u *secretUser) isHere(namespace string) bool {
	return cmp.Or(namespace, u.standard) == u.namespace
}

// secret asks for the Secrets that a name can stand for: NAME, or NAME.NAMESPACE, of
// Kubernetes, or one of ours. If none of them exists, it asks for that which would
// be used first.
func (u *secretUser) secret(name, pointer string) {
	if name == "" {
		return
	}
	keys := u.kubernetesKeys(name, u.namespace)
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		keys = append(u.kubernetesKeys(name[:i], name[i+1:]), keys...)
	}
	u.ask(append(keys, coreKey(api.KindSecret, name)), pointer)
}

func (u *secretUser) kubernetes(name, namespace, pointer string) {
	u.ask(u.kubernetesKeys(name, namespace), pointer)
}

// kubernetesKeys returns the keys that a Secret of Kubernetes can have.
func (u *secretUser) kubernetesKeys(name, namespace string) []api.Key {
	k := api.Key{Group: api.GroupKubernetes, Kind: api.KindSecret, Namespace: namespace, Name: name}
	none := k
	none.Namespace = ""
	if namespace == u.standard {
		return []api.Key{k, none}
	}
	return []api.Key{k}
}

// ask asks for those of some Secrets that exist, or else for the first.
func (u *secretUser) ask(keys []api.Key, pointer string) {
	question := func(k api.Key) {
		u.list = append(u.list, question{verbUse, k, pointer, "uses the Secret " + nameOf(k)})
	}
	isThere := false
	for _, k := range keys {
		rec, err := u.Get(k)
		switch {
		case api.HasCode(err, api.CodeNotFound):
		case err != nil:
			u.err = cmp.Or(u.err, err)
		case !isOwn(rec):
			isThere = true
			question(k)
		}
	}
	if !isThere {
		question(keys[0])
	}
}
