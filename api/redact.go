package api

// Redact returns o without what the API never returns: the value of a Secret,
// of ours or of Kubernetes, sealed or not, and the hash of a Credential's token. What it leaves in place
// is shared with o; an Object that has nothing to hide is returned as it is.
func Redact(o Object) Object {
	switch o := o.(type) {
	case *Secret:
		c := *o
		c.Data, c.Status.Sealed = nil, nil
		return &c
	case *KubernetesSecret:
		c := *o
		c.Data, c.StringData, c.Status.Sealed = nil, nil, nil
		return &c
	case *Credential:
		c := *o
		c.Status.TokenSHA256 = ""
		return &c
	}
	return o
}
