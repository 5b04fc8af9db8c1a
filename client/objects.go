package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"cardea/api"
	"cardea/rpc"
)

// Objects reads and writes the Objects of one kind over the API, of ours or of
// another system. Its errors are those of [rpc.Client.Do]. Both fields are
// required.
type Objects struct {
	API  *rpc.Client
	Kind api.Kind
}

// A Selection says which Objects of a kind are meant. The zero Selection is all of
// them.
type Selection struct {
	Namespace string   // of foreign Objects, or of Services
	User      string   // only what is that User's
	Labels    []string // KEY=VALUE, all of which an Object must have
}

// WriteOptions say how Objects are written. The zero value is as usual.
type WriteOptions struct {
	DryRun       bool // change nothing
	AllowLockout bool // also if the writer could no longer write policies
}

// pageSize is how many Objects are asked for at once.
const pageSize = 1000

// Get returns an Object. The namespace is that of a foreign one; "" is that which the
// cluster has for those that name none.
func (o Objects) Get(ctx context.Context, namespace, name string) (json.RawMessage, error) {
	var out json.RawMessage
	return out, o.API.Do(ctx, http.MethodGet, o.path(namespace, name, url.Values{}), nil, &out)
}

// List returns the Objects that are meant, page by page, ordered by namespace and
// name, and the revision of the first page: what changed later [Objects.Watch]
// tells from there.
func (o Objects) List(ctx context.Context, s Selection) (all []json.RawMessage, at api.Revision, err error) {
	q := s.values()
	q.Set("limit", strconv.Itoa(pageSize))
	for {
		var page api.List
		if err := o.API.Do(ctx, http.MethodGet, o.path("", "", q), nil, &page); err != nil {
			return nil, at, err
		}
		if all = append(all, page.Items...); at == (api.Revision{}) {
			at = page.Revision
		}
		if page.Next == "" {
			return all, at, nil
		}
		q.Set("after", page.Next)
	}
}

// Watch calls each with what changes of the Objects that are meant after a
// revision, until ctx is done or the cluster ends it (then it returns nil), or each
// returns an error, which it returns.
func (o Objects) Watch(ctx context.Context, s Selection, from api.Revision, each func(api.WatchEvent) error) error {
	q := s.values()
	q.Set("watch", "true")
	q.Set("revision", from.String())
	err := o.API.Stream(ctx, http.MethodGet, o.path("", "", q), nil, func(line json.RawMessage) error {
		var e api.WatchEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("the cluster sent an event that is not understood: %w", err)
		}
		return each(e)
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Create makes an Object that must not exist. A foreign one says its namespace
// itself.
func (o Objects) Create(ctx context.Context, doc json.RawMessage, opt WriteOptions) (out api.WriteResponse, err error) {
	return out, o.API.Do(ctx, http.MethodPost, o.path("", "", opt.values()), doc, &out)
}

// Update replaces what people write of an Object that must exist.
func (o Objects) Update(ctx context.Context, namespace, name string, doc json.RawMessage, opt WriteOptions) (out api.WriteResponse, err error) {
	return out, o.API.Do(ctx, http.MethodPut, o.path(namespace, name, opt.values()), doc, &out)
}

// Patch changes an Object by a merge patch (RFC 7386).
func (o Objects) Patch(ctx context.Context, namespace, name string, patch any, opt WriteOptions) (out api.WriteResponse, err error) {
	return out, o.API.Do(ctx, http.MethodPatch, o.path(namespace, name, opt.values()), patch, &out)
}

// Delete deletes an Object.
func (o Objects) Delete(ctx context.Context, namespace, name string, opt WriteOptions) (out api.WriteResponse, err error) {
	return out, o.API.Do(ctx, http.MethodDelete, o.path(namespace, name, opt.values()), nil, &out)
}

// path returns where the API has an Object, or without a name the kind, with a
// query, to which it adds the namespace.
func (o Objects) path(namespace, name string, q url.Values) string {
	path := o.Kind.Path("")
	if name != "" {
		path += "/" + url.PathEscape(name)
	}
	if namespace != "" {
		q.Set("namespace", namespace)
	}
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	return path
}

func (s *Selection) values() url.Values {
	q := url.Values{}
	for name, value := range map[string]string{"namespace": s.Namespace, "user": s.User} {
		if value != "" {
			q.Set(name, value)
		}
	}
	for _, l := range s.Labels {
		q.Add("label", l)
	}
	return q
}

func (w *WriteOptions) values() url.Values {
	q := url.Values{}
	if w.DryRun {
		q.Set("dryRun", "true")
	}
	if w.AllowLockout {
		q.Set("allowLockout", "true")
	}
	return q
}

// Route asks where a connection would go.
func Route(ctx context.Context, call *rpc.Client, question api.RouteQuestion) (out api.RouteAnswer, err error) {
	q := url.Values{"port": {strconv.Itoa(question.Port)}}
	for name, value := range map[string]string{"address": question.Address, "sni": question.SNI,
		"alpn": strings.Join(question.ALPN, ","), "from": question.From} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if question.NoTLS {
		q.Set("notls", "true")
	}
	if question.UDP {
		q.Set("udp", "true")
	}
	return out, call.Do(ctx, http.MethodGet, "/api/route?"+q.Encode(), nil, &out)
}
