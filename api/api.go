// Package api holds the nouns of Cardea: the resources that people write down,
// what a decision is asked and answers, what the access log records, and what
// our processes say to each other.
//
// It is plain data with JSON names, defaults and validation. It imports nothing
// of ours and starts nothing, so that every other package may speak its
// language. One file holds one kind; one file holds what one protocol puts into
// ctx.request.
package api

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Version is the apiVersion of our own kinds. Input may leave it out.
const Version = "core/v1"

// The groups of kinds.
const (
	GroupCore       = "core"             // ours: the part of Version before the slash
	GroupAmbassador = "getambassador.io" // Ambassador, Emissary
	GroupKubernetes = "kubernetes"       // what Kubernetes calls v1, without a group
)

// GroupOf returns the group that an apiVersion says, and the version within it. No
// apiVersion is ours.
func GroupOf(apiVersion string) (group, version string) {
	switch group, version, ok := strings.Cut(apiVersion, "/"); {
	case apiVersion == "":
		return GroupCore, "v1"
	case !ok: // v1
		return GroupKubernetes, apiVersion
	default:
		return group, version
	}
}

// An Object is one resource. The concrete types are pointers to the structs of
// this package, as made by [Kind.New].
//
// An Object that has been stored or put into a snapshot is shared and must not
// be written to: make a copy with [Clone].
type Object interface {
	// Header returns what every Object has; it is never nil.
	Header() *Head
	// Default fills in what the input left out: it is idempotent.
	Default()
	// Validate reports what is wrong with the Object alone, without looking at
	// any other; it expects Default to have been called.
	Validate(*Problems)
}

// A Head is what every Object has in common.
type Head struct {
	APIVersion string   `json:"apiVersion,omitempty"`
	Kind       string   `json:"kind"`
	Metadata   Metadata `json:"metadata"`
}

// Header implements part of Object.
func (h *Head) Header() *Head { return h }

// Key returns the identity of the Object in the store.
func (h *Head) Key() Key {
	group, _ := GroupOf(h.APIVersion)
	return Key{Group: group, Kind: h.Kind, Namespace: h.Metadata.Namespace, Name: h.Metadata.Name}
}

// Ref returns a reference to the Object as it stands.
func (h *Head) Ref() Ref {
	return Ref{
		APIVersion: cmp.Or(h.APIVersion, Version), Kind: h.Kind, Namespace: h.Metadata.Namespace, Name: h.Metadata.Name,
		UID: h.Metadata.UID, ResourceVersion: h.Metadata.ResourceVersion,
	}
}

// Metadata is what is known of an Object beside what it is for.
//
// name, displayName, description, picURL, labels, annotations and tags are the
// user's; the rest is set by the server, and ignored in input.
type Metadata struct {
	// Name is unique among the Objects of a kind, and of a Namespace if they have
	// one. A Service's is SERVICE.NAMESPACE.
	Name string `json:"name"`
	// Namespace is that of a foreign Object, in the system that it comes from; our
	// own kinds have none.
	Namespace   string            `json:"namespace,omitempty"`
	DisplayName string            `json:"displayName,omitempty"`
	Description string            `json:"description,omitempty"`
	PicURL      string            `json:"picURL,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`      // what selectors match
	Annotations map[string]string `json:"annotations,omitempty"` // notes of programs
	Tags        []string          `json:"tags,omitempty"`

	UID             string    `json:"uid,omitempty"`             // UUIDv4; never changes
	ResourceVersion string    `json:"resourceVersion,omitempty"` // UUIDv7; new at each effective update
	CreatedAt       time.Time `json:"createdAt,omitzero"`
	UpdatedAt       time.Time `json:"updatedAt,omitzero"`
	ActorRef        *Ref      `json:"actorRef,omitempty"` // the Session that wrote it last
	IsSystem        bool      `json:"isSystem,omitempty"` // made by the first start; cannot be deleted
	// ApplySet is the set that the Object was applied with: apply --prune deletes
	// what bears the set and is no longer in the input.
	ApplySet string `json:"applySet,omitempty"`
}

// A Ref names an Object in output and logs.
type Ref struct {
	APIVersion      string `json:"apiVersion,omitempty"`
	Kind            string `json:"kind,omitempty"`
	Namespace       string `json:"namespace,omitempty"` // of foreign kinds
	Name            string `json:"name,omitempty"`
	UID             string `json:"uid,omitempty"`
	ResourceVersion string `json:"resourceVersion,omitempty"`
}

// A Key is the identity of an Object in the store and in what a Decision
// depends on. Namespace is that of foreign kinds; a Service of ours carries its
// Namespace in its Name.
type Key struct {
	Group     string `json:"group,omitempty"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// String returns KIND/NAME, or KIND/NAMESPACE/NAME.
func (k Key) String() string {
	if k.Namespace != "" {
		return k.Kind + "/" + k.Namespace + "/" + k.Name
	}
	return k.Kind + "/" + k.Name
}

// A Revision is a point in the history of a store: the Number-th commit of an
// Epoch. A restore begins a new epoch, and revisions of different epochs cannot
// be compared. The zero Revision is before every other.
type Revision struct {
	Epoch  uint64
	Number uint64
}

// Compare returns -1, 0 or +1. The epoch counts first: whoever follows a store
// lists again when it changes.
func (r Revision) Compare(o Revision) int {
	return cmp.Or(cmp.Compare(r.Epoch, o.Epoch), cmp.Compare(r.Number, o.Number))
}

// String returns EPOCH.NUMBER.
func (r Revision) String() string { return fmt.Sprintf("%d.%d", r.Epoch, r.Number) }

// MarshalText implements encoding.TextMarshaler.
func (r Revision) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *Revision) UnmarshalText(b []byte) error {
	e, n, ok := strings.Cut(string(b), ".")
	if !ok {
		return fmt.Errorf("revision %q: want EPOCH.NUMBER", b)
	}
	var err, err2 error
	r.Epoch, err = strconv.ParseUint(e, 10, 64)
	r.Number, err2 = strconv.ParseUint(n, 10, 64)
	if err = cmp.Or(err, err2); err != nil {
		return fmt.Errorf("revision %q: want EPOCH.NUMBER", b)
	}
	return nil
}

// An Enum is a string with a fixed set of values. Decoders refuse any other
// and name the nearest.
type Enum interface{ Values() []string }

// A LaterEnum is an Enum that has values which are known and not yet to be had.
type LaterEnum interface {
	Enum
	Later() []string
}

// NotYet is the type of a field that is known and has no effect yet. Decoders
// refuse it with "not yet", whatever its value: nothing is accepted and ignored.
type NotYet struct{}

// A Loose value can be written in more than one form, as other systems have it.
// Decoders hand it what was written, as encoding/json would into an any, with
// numbers as json.Number; the error completes "must be …".
type Loose interface{ SetLoose(v any) error }

// Attrs is free data that administrators attach to an Object for policies to
// read. What a device or client says of itself never gets here.
type Attrs map[string]any

// Clone returns a deep copy of o.
func Clone[T Object](o T) T {
	k, ok := KindIn(o.Header().Key().Group, o.Header().Kind)
	if !ok {
		panic("api: Clone of an Object of unknown kind " + o.Header().Kind)
	}
	b, err := json.Marshal(o)
	if err != nil {
		panic("api: an Object that does not marshal: " + err.Error())
	}
	c := k.New()
	if err := json.Unmarshal(b, c); err != nil {
		panic("api: an Object that does not unmarshal: " + err.Error())
	}
	return c.(T)
}
