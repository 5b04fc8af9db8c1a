package control

import (
	"strings"
	"testing"
)

// Whoever may write a part of a Namespace changes no route of another: not by a
// context that ends its TLS, nor by a Listener of its port, defaults for all, or a
// mapping that takes a share of its connections.
func TestRoutesOfOthers(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, tlsSecret("prod", "tls"), tlsContext("prod", "theirs", "tls"), mapping("prod", "db", `,'host':'db.example.com'`),
		onAPI("tenant", "a.namespace == ^team^"))
	bob := w.user(root, "bob", "tenant")
	w.mustApply(bob, tlsSecret("team", "mine"), strings.ReplaceAll(mapping("team", "own", ""), "5432", "5433"))

	const head = `{'apiVersion':'getambassador.io/v3alpha1','metadata':{'name':'x','namespace':'team'},`
	for name, document := range map[string]string{
		"context of the name":  tlsContext("team", "x", "mine"),
		"context of all names": strings.Replace(tlsContext("team", "x", "mine"), "db.example.com", "*", 1),
		"wildcard context":     strings.Replace(tlsContext("team", "x", "mine"), "db.example.com", "*.Example.com.", 1),
		"Host":                 head + `'kind':'Host','spec':{'hostname':'db.example.com','tlsSecret':{'name':'mine'}}}`,
		"Host of all names":    head + `'kind':'Host','spec':{'tlsSecret':{'name':'mine'}}}`,
		"Listener":             head + `'kind':'Listener','spec':{'port':5432,'protocolStack':['PROXY','TCP']}}`,
		"Module":               head + `'kind':'Module','spec':{'config':{'circuit_breakers':[{'max_connections':0}]}}}`,
		"share":                mapping("team", "x", `,'weight':100`),
	} {
		_, err := w.apply(bob, document)
		if err == nil || !strings.Contains(err.Error(), "not allowed") {
			t.Errorf("%s: %v", name, err)
			continue
		}
		needs(t, err, "publish TCPMapping prod/db", "/metadata/name")
	}
	// What is of nobody else is his.
	w.mustApply(bob, strings.Replace(tlsContext("team", "x", "mine"), "db.example.com", "other.example.net", 1),
		head+`'kind':'Listener','spec':{'port':5433,'protocolStack':['PROXY','TCP']}}`)
	// And what is in force, only who may change it takes away.
	w.mustApply(root, strings.Replace(tlsContext("team", "given", "mine"), "db.example.com", "*.example.com", 1))
	if err := w.do(bob, "DELETE", ambassador+"tlscontexts/given?namespace=team", nil, nil); err == nil {
		t.Error("a context that serves another Namespace can be deleted")
	}
}
