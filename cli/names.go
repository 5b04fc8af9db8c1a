package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"cardea/api"
	"cardea/client"
)

// findKind returns the kind that a person means, if there can be Objects of it.
func findKind(name string) (api.Kind, error) {
	if k, ok := api.FindKind(name); ok && !k.Later {
		return k, nil
	} else if ok {
		return k, laterKind(k.Name)
	}
	for _, later := range api.LaterKinds() {
		if l := strings.ToLower(later); slices.Contains([]string{l, l + "s"}, strings.ToLower(name)) {
			return api.Kind{}, laterKind(later)
		}
	}
	u := usagef("there is no kind %q", name)
	u.hint = "the kinds are " + kindNames()
	var known []string
	for _, k := range api.Kinds() {
		known = append(known, typed(k, k.Name), typed(k, k.Plural))
	}
	if near := api.Nearest(name, known); near != "" {
		u.hint = "did you mean " + near + "?"
	}
	return api.Kind{}, u
}

func laterKind(name string) error {
	return hinted(fmt.Errorf("the kind %s is not yet available", name), "the kinds are "+kindNames())
}

func kindNames() string {
	var names []string
	for _, k := range api.Kinds() {
		if !k.Later {
			names = append(names, typed(k, k.Name))
		}
	}
	return strings.Join(names, ", ")
}

// typed returns the name or plural of a kind as a person types it: where it is also
// that of another kind, with the version behind it.
func typed(k api.Kind, word string) string {
	word = strings.ToLower(word)
	if found, ok := api.FindKind(word); ok && found.APIGroup() != k.APIGroup() {
		return word + "." + k.Versions[0]
	}
	return word
}

// completeKinds completes the first argument of a verb.
func completeKinds(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, k := range api.Kinds() {
		if !k.Later {
			names = append(names, typed(k, k.Plural))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// keyName returns KIND/NAME, or KIND/NAMESPACE/NAME, as people see it.
func keyName(key api.Key) string {
	kind := strings.ToLower(key.Kind)
	if k, ok := api.KindIn(key.Group, key.Kind); ok {
		kind = typed(k, k.Name)
	}
	if key.Namespace != "" {
		return kind + "/" + key.Namespace + "/" + key.Name
	}
	return kind + "/" + key.Name
}

// resultName names the Object that was written.
func resultName(x *api.Result) string {
	return keyName(api.Key{Group: x.Group, Kind: x.Kind, Namespace: x.Namespace, Name: x.Name})
}

// titled returns KIND NAME, or KIND NAMESPACE/NAME, for a sentence.
func titled(key api.Key) string {
	if key.Namespace != "" {
		return key.Kind + " " + key.Namespace + "/" + key.Name
	}
	return key.Kind + " " + key.Name
}

// kindOf returns the kind of that name of ours.
func kindOf(name string) api.Kind {
	k, ok := api.KindOf(name)
	if !ok {
		panic("cli: no kind " + name)
	}
	return k
}

// foreignKind returns the kind of that name of another system.
func foreignKind(group, name string) api.Kind {
	k, ok := api.KindIn(group, name)
	if !ok {
		panic("cli: no kind " + group + " " + name)
	}
	return k
}

// kindOfObject returns the kind that an Object is of.
func kindOfObject(o api.Object) api.Kind {
	k, _ := api.KindIn(o.Header().Key().Group, o.Header().Kind) // it was made as one of that kind
	return k
}

// objects returns the Objects of a kind, for the Session of the home.
func (r *run) objects(ctx context.Context, k api.Kind) (client.Objects, error) {
	call, err := r.api(ctx)
	return client.Objects{API: call, Kind: k}, err
}

// A wanted is an Object as a person names it.
type wanted struct {
	kind api.Kind
	name string // NAME, or NAMESPACE/NAME
}

// wantedOf reads KIND NAME…, or KIND/NAME and KIND/NAMESPACE/NAME of any kinds, as
// names are printed. There is at least one, or it is an error.
func wantedOf(args []string) ([]wanted, error) {
	var all []wanted
	if len(args) == 0 {
		return nil, usagef("name a kind and what is meant, or KIND/NAME")
	}
	if !strings.Contains(args[0], "/") {
		k, err := findKind(args[0])
		if err != nil {
			return nil, err
		}
		if len(args) == 1 {
			return nil, usagef("name the %s that is meant", k.Name)
		}
		for _, name := range args[1:] {
			all = append(all, wanted{k, name})
		}
		return all, nil
	}
	for _, word := range args {
		kind, name, _ := strings.Cut(word, "/")
		if name == "" {
			return nil, usagef("%.100q must be KIND/NAME, as what is before it", word)
		}
		k, err := findKind(kind)
		if err != nil {
			return nil, err
		}
		all = append(all, wanted{k, name})
	}
	return all, nil
}

// A placed is where an Object that a person named is, if there is one.
type placed struct {
	client.Objects
	namespace, name string
}

// find looks for what is named, all before anything is done with any. The failure is
// why some could not be told; err is set if it was not understood.
func (r *run) find(ctx context.Context, all []wanted, namespace string) (list []placed, failure, err error) {
	call, err := r.api(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, w := range all {
		f := placed{Objects: client.Objects{API: call, Kind: w.kind}}
		f.namespace, f.name, err = target(ctx, f.Objects, namespace, w.name)
		if _, ok := errors.AsType[usageError](err); ok {
			return nil, nil, err
		}
		if err != nil {
			failure = errors.Join(failure, err)
			continue
		}
		list = append(list, f)
	}
	return list, failure, nil
}

// get returns the Object.
func (f *placed) get(ctx context.Context) (json.RawMessage, error) {
	raw, err := f.Get(ctx, f.namespace, f.name)
	if err != nil {
		return nil, f.missing(ctx, err)
	}
	return raw, nil
}

// namespaceFlag adds -n to a verb whose names are those of one kind.
func namespaceFlag(c *cobra.Command, namespace *string) {
	c.Flags().StringVarP(namespace, "namespace", "n", "", "the Namespace of a Service, or that of another system's resource in its own")
}

// target returns the namespace and name of the Object that a person means by what
// was typed and -n: NAME or NAMESPACE/NAME; of /NAME the cluster says the namespace. A NAME
// alone is looked for in all namespaces.
func target(ctx context.Context, o client.Objects, namespace, word string) (ns, name string, err error) {
	k := o.Kind
	if ns, name, ok := strings.Cut(word, "/"); ok && !k.IsForeign() { // as others' are printed
		if namespace != "" && namespace != ns {
			return "", "", usagef("-n %s is not the namespace of %s", namespace, word)
		}
		namespace, word = ns, name
	}
	if !k.IsForeign() {
		name, err := ownName(k, namespace, word)
		return "", name, err
	}
	if ns, name, ok := strings.Cut(word, "/"); ok {
		if namespace != "" && namespace != ns {
			return "", "", usagef("-n %s is not the namespace of %s", namespace, word)
		}
		return ns, name, nil
	}
	if namespace != "" {
		return namespace, word, nil
	}
	list, _, err := o.List(ctx, client.Selection{})
	if err != nil {
		return "", "", err
	}
	var found []string
	for _, raw := range list {
		h, err := head(raw)
		if err != nil {
			return "", "", err
		}
		if h.Metadata.Name == word {
			ns, found = h.Metadata.Namespace, append(found, h.Metadata.Namespace+"/"+word)
		}
	}
	if len(found) > 1 {
		return "", "", hinted(fmt.Errorf("there are several %s of the name %s: %s", typed(k, k.Plural), word, strings.Join(found, ", ")),
			"name one as NAMESPACE/NAME, or with -n NAMESPACE")
	}
	return ns, word, nil // if there is none, the cluster says so
}

// ownName returns the name of an Object by a name and -n, which is a part of the
// name of a Service of ours.
func ownName(k api.Kind, namespace, word string) (string, error) {
	switch {
	case namespace == "", k.IsForeign():
		return word, nil
	case k.Name != api.KindService:
		return "", noNamespace(k, namespace)
	case !strings.Contains(word, "."):
		return word + "." + namespace, nil
	case api.NamespaceOf(word) != namespace:
		return "", usagef("-n %s is not the Namespace of %s", namespace, word)
	}
	return word, nil
}

// noNamespace says that Objects of a kind of ours have no namespace, and which kind
// of that name has.
func noNamespace(k api.Kind, namespace string) error {
	u := usagef("a %s is in no namespace, found %q", k.Name, namespace)
	for _, other := range namesakes(k) {
		u.hint = fmt.Sprintf("those of Kubernetes are: cardea get %s -n %s", typed(other, other.Name), namespace)
	}
	return u
}

// namesakes returns the other kinds of the same name.
func namesakes(k api.Kind) []api.Kind {
	return slices.DeleteFunc(api.Kinds(), func(o api.Kind) bool { return o.Name != k.Name || o.APIGroup() == k.APIGroup() })
}

// missing adds to an error of the cluster how to find the name that was meant.
func missing(k api.Kind, err error) error {
	if api.HasCode(err, api.CodeNotFound) {
		return hinted(err, "cardea get "+typed(k, k.Plural)+" lists those that there are")
	}
	return err
}

// missing does so for an Object that was looked for: it may be of another kind of the
// same name.
func (f *placed) missing(ctx context.Context, err error) error {
	if !api.HasCode(err, api.CodeNotFound) {
		return err
	}
	for _, k := range namesakes(f.Kind) {
		list, _, failure := client.Objects{API: f.API, Kind: k}.List(ctx, client.Selection{})
		if failure != nil {
			continue // the first error counts
		}
		for _, raw := range list {
			if h, bad := head(raw); bad == nil && h.Metadata.Name == f.name {
				return hinted(err, "there is "+keyName(h.Key())+", which is of another kind: name it so")
			}
		}
	}
	return missing(f.Kind, err)
}
