package control

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"

	"cardea/api"
	"cardea/store"
)

// standardNamespace returns the namespace that Objects of other systems are of if they
// name none.
func (s *Server) standardNamespace() string {
	return cmp.Or(s.AmbassadorNamespace, api.DefaultNamespace)
}

// place sets the namespace of an Object of another system that names none: what is
// stored has one.
func place(h *api.Head, namespace string) {
	if h.Key().Group != api.GroupCore && h.Metadata.Namespace == "" {
		h.Metadata.Namespace = namespace
	}
}

// sameForeign reports whether two documents say the same of one Object of another
// system.
func sameForeign(a, b api.Object) bool {
	if a == nil || b == nil || b.Header().Key().Group == api.GroupCore {
		return false
	}
	same, err := equal(a, b)
	return err == nil && same
}

// foreignUses asks for each Secret that an Object of Ambassador's uses, by its name or
// by what it names, unless what says so is as before. What is named need not exist.
func (w *writer) foreignUses(r store.Reader, before, after api.Object) (list []question, err error) {
	if after == nil || after.Header().Key().Group != api.GroupAmbassador || isSameUser(before, after) {
		return nil, nil
	}
	if w.tls == nil { // what the writer writes meanwhile he is asked for on its own
		if w.tls, err = readTLS(r); err != nil {
			return nil, err
		}
	}
	for _, n := range w.tls.secrets(after) {
		asked, err := n.questions(r)
		if err != nil {
			return nil, err
		}
		for _, q := range asked {
			isAsked := func(p question) bool { return p.about == q.about }
			if !slices.ContainsFunc(list, isAsked) {
				list = append(list, q)
			}
		}
	}
	return list, nil
}

// isSameUser reports whether an Object says as before which Secrets it uses.
func isSameUser(before, after api.Object) bool {
	switch o := after.(type) {
	case *api.TLSContext:
		was, ok := before.(*api.TLSContext)
		return ok && reflect.DeepEqual(was.Spec, o.Spec)
	case *api.Host:
		was, ok := before.(*api.Host)
		return ok && reflect.DeepEqual(was.Spec, o.Spec)
	case *api.TCPMapping:
		was, ok := before.(*api.TCPMapping)
		return ok && reflect.DeepEqual(was.Spec, o.Spec) && maps.Equal(was.Metadata.Annotations, o.Metadata.Annotations)
	}
	return true
}

// A naming says that a field names a Secret, and has the keys that the name can stand
// for.
type naming struct {
	pointer string
	keys    []api.Key // that which would be used first is the first
}

// questions asks for those of the Secrets that exist, or else for the first.
func (n *naming) questions(r store.Reader) (list []question, err error) {
	ask := func(k api.Key) {
		list = append(list, question{verbUse, k, n.pointer, "uses the Secret " + nameOf(k)})
	}
	for _, k := range n.keys {
		rec, err := r.Get(k)
		switch {
		case api.HasCode(err, api.CodeNotFound):
		case err != nil:
			return nil, err
		case !isOwn(rec):
			ask(k)
		}
	}
	if list == nil {
		ask(n.keys[0])
	}
	return list, nil
}

// namings collects those of one Object.
type namings struct {
	namespace string // of the Object
	list      []naming
}

// secret notes a name: NAME, or NAME.NAMESPACE, of a Secret of Kubernetes, or one of
// ours.
func (n *namings) secret(name, pointer string) {
	if name == "" {
		return
	}
	keys := []api.Key{kubernetesSecret(n.namespace, name), coreKey(api.KindSecret, name)}
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		keys = append([]api.Key{kubernetesSecret(name[i+1:], name[:i])}, keys...)
	}
	n.list = append(n.list, naming{pointer, keys})
}

func (n *namings) settings(s *api.TLSSettings, at string) {
	n.secret(s.CASecret, at+"/ca_secret")
	n.secret(s.CRLSecret, at+"/crl_secret")
	n.secret(s.V3CRLSecret, at+"/v3CRLSecret")
}

func kubernetesSecret(namespace, name string) api.Key {
	return api.Key{Group: api.GroupKubernetes, Kind: api.KindSecret, Namespace: namespace, Name: name}
}

// ownSecrets returns the Secrets that a TLSContext or Host itself names.
func ownSecrets(o api.Object) []naming {
	n := namings{namespace: o.Header().Metadata.Namespace}
	switch o := o.(type) {
	case *api.TLSContext:
		n.secret(o.Spec.Secret, "/spec/secret")
		n.settings(&o.Spec.TLSSettings, "/spec")
	case *api.Host:
		if t := o.Spec.TLSSecret; t != nil && t.Namespace != "" {
			n.list = append(n.list, naming{"/spec/tlsSecret", []api.Key{kubernetesSecret(t.Namespace, t.Name)}})
		} else if t != nil {
			n.secret(t.Name, "/spec/tlsSecret")
		}
		if o.Spec.TLS != nil {
			settings := o.Spec.TLS.Settings()
			n.settings(&settings, "/spec/tls")
		}
	}
	return n.list
}

// tlsObjects are the Objects by which others have certificates.
type tlsObjects struct {
	contexts []*api.TLSContext
	hosts    []*api.Host
}

func readTLS(r store.Reader) (*tlsObjects, error) {
	t := new(tlsObjects)
	for o, err := range store.AllIn[*api.TLSContext](r, api.GroupAmbassador, api.KindTLSContext) {
		if err != nil {
			return nil, err
		}
		t.contexts = append(t.contexts, o)
	}
	for o, err := range store.AllIn[*api.Host](r, api.GroupAmbassador, api.KindHost) {
		if err != nil {
			return nil, err
		}
		t.hosts = append(t.hosts, o)
	}
	return t, nil
}

// A means is a TLSContext or Host by which an Object has a certificate, and the field
// that says so.
type means struct {
	pointer string
	object  api.Object
}

// means returns those of an Object: what a TCPMapping names by tls and what covers its
// host, if TLS is ended there, and what a Host names.
func (t *tlsObjects) means(o api.Object) (list []means) {
	named := func(name, namespace, pointer string) {
		for _, c := range t.named(name, namespace) {
			list = append(list, means{pointer, c})
		}
	}
	switch o := o.(type) {
	case *api.Host:
		if c := o.Spec.TLSContext; c != nil {
			named(c.Name, cmp.Or(c.Namespace, o.Metadata.Namespace), "/spec/tlsContext")
		}
	case *api.TCPMapping:
		named(o.Spec.TLS.Name, o.Metadata.Namespace, "/spec/tls")
		if o.Spec.Host == "" || isPassthrough(o) {
			break
		}
		for _, c := range t.contexts {
			if slices.ContainsFunc(c.Spec.Hosts, func(name string) bool { return covers(name, o.Spec.Host) }) {
				list = append(list, means{"/spec/host", c})
			}
		}
		for _, h := range t.hosts {
			if !covers(cmp.Or(h.Spec.Hostname, api.AnyName), o.Spec.Host) {
				continue
			}
			list = append(list, means{"/spec/host", h})
			for _, m := range t.means(h) {
				list = append(list, means{"/spec/host", m.object})
			}
		}
	}
	return list
}

// named returns the TLSContexts of a name: those of the namespace, or else all.
func (t *tlsObjects) named(name, namespace string) (list []*api.TLSContext) {
	if name == "" {
		return nil
	}
	isNear := false
	for _, c := range t.contexts {
		m := &c.Metadata
		switch {
		case m.Name == name && m.Namespace == namespace:
			if !isNear {
				isNear, list = true, nil
			}
			list = append(list, c)
		case !isNear && (m.Name == name || m.Name+"."+m.Namespace == name):
			list = append(list, c)
		}
	}
	return list
}

// secrets returns the Secrets that an Object uses, by whatever means. The pointers are
// into the Object.
func (t *tlsObjects) secrets(o api.Object) []naming {
	list := ownSecrets(o)
	for _, m := range t.means(o) {
		for _, n := range ownSecrets(m.object) {
			list = append(list, naming{m.pointer, n.keys})
		}
	}
	return list
}

// isPassthrough reports whether TLS is left to the service of a TCPMapping.
func isPassthrough(m *api.TCPMapping) bool {
	return strings.EqualFold(strings.TrimSpace(m.Metadata.Annotations[api.AnnotationPrefix+api.AnnotationTLS]), "passthrough")
}

// covers reports whether there is a server name for which both stand, that of a
// certificate and the host of a TCPMapping: NAME, *.DOMAIN or *.
func covers(name, host string) bool {
	name, host = api.FoldName(name), api.FoldName(host)
	within := func(pattern, s string) bool {
		return pattern == s || pattern == api.AnyName || strings.HasPrefix(pattern, "*.") && strings.HasSuffix(s, pattern[1:])
	}
	return within(name, host) || within(host, name)
}
