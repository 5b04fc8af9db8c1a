package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"cardea/api"
	"cardea/manifest"
	"cardea/rpc"
)

// allKinds stands for every kind.
const allKinds = "all"

// findKind returns the kind that a person means.
func findKind(name string) (api.Kind, error) {
	if k, ok := api.FindKind(name); ok {
		return k, nil
	}
	for _, later := range api.LaterKinds() {
		if l := strings.ToLower(later); slices.Contains([]string{l, l + "s"}, strings.ToLower(name)) {
			return api.Kind{}, hinted(fmt.Errorf("the kind %s is not yet available", later), "the kinds are "+kindNames())
		}
	}
	u := usagef("there is no kind %q", name)
	u.hint = "the kinds are " + kindNames()
	return api.Kind{}, u
}

func kindNames() string {
	var names []string
	for _, k := range api.Kinds() {
		names = append(names, strings.ToLower(k.Name))
	}
	return strings.Join(names, ", ")
}

// completeKinds completes the first argument of a verb.
func completeKinds(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, k := range api.Kinds() {
		names = append(names, k.Plural)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// objectPath returns the path of an Object in the API.
func objectPath(k api.Kind, name string) string {
	return "/api/core/v1/" + k.Plural + "/" + url.PathEscape(name)
}

func (r *run) get() *cobra.Command {
	var q listQuery
	var watch bool
	c := &cobra.Command{
		Use:   "get KIND [NAME…]",
		Short: "Show resources",
		Long: "Shows the resources of a kind, or those that are named. \"get all\" is every resource that\n" +
			"people wrote; with -o yaml, as apply takes it. -w goes on with what changes.",
		Example:           "  cardea get services\n  cardea get user alice -o yaml\n  cardea get sessions --user alice -w\n  cardea get all -o yaml > all.yaml",
		ValidArgsFunction: completeKinds,
	}
	c.Flags().StringVarP(&q.namespace, "namespace", "n", "", "only Services of that Namespace")
	c.Flags().StringVar(&q.user, "user", "", "only what belongs to that User: Sessions, Devices, Credentials")
	c.Flags().StringArrayVarP(&q.labels, "label", "l", nil, "only what has the label: KEY=VALUE; may be repeated")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "go on with what changes")
	out := output(c, formatTable, formatWide, formatJSON, formatYAML, formatName)
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usagef("get needs a kind: all, %s", kindNames())
		}
		if args[0] == allKinds {
			if len(args) > 1 {
				return usagef("get all takes no name")
			}
			call, err := r.api(c.Context())
			if err != nil {
				return err
			}
			list, err := written(c.Context(), call)
			if err == nil && out.value == formatYAML {
				list, err = asWritten(list)
			}
			if err != nil {
				return err
			}
			return printObjects(r.Out, out.value, list, false, true)
		}
		k, err := findKind(args[0])
		if err != nil {
			return err
		}
		call, err := r.api(c.Context())
		if err != nil {
			return err
		}
		if len(args) > 1 && watch {
			return usagef("-w watches a kind, not names")
		}
		if len(args) > 1 {
			list, failure := named(c.Context(), call, k, args[1:])
			if len(list) > 0 {
				if err := printObjects(r.Out, out.value, list, len(args) == 2, false); err != nil {
					return err
				}
			}
			return failure
		}
		list, at, err := q.list(c.Context(), call, k)
		if err != nil {
			return err
		}
		if watch {
			return r.watch(c, call, k, &q, out.value, list, at)
		}
		if len(list) == 0 && (out.value == formatTable || out.value == formatWide) {
			fmt.Fprintf(r.Err, "there are no %s\n", k.Plural)
			return nil
		}
		return printObjects(r.Out, out.value, list, false, false)
	}
	return c
}

// listKind returns all Objects of a kind.
func listKind(ctx context.Context, call *rpc.Client, k api.Kind) ([]json.RawMessage, error) {
	list, _, err := new(listQuery).list(ctx, call, k)
	return list, err
}

// A listQuery says which Objects of a kind are meant.
type listQuery struct {
	namespace, user string
	labels          []string
}

// pageSize is how many Objects are asked for at once.
const pageSize = 1000

func (q *listQuery) values() url.Values {
	v := url.Values{}
	for name, value := range map[string]string{"namespace": q.namespace, "user": q.user} {
		if value != "" {
			v.Set(name, value)
		}
	}
	for _, l := range q.labels {
		v.Add("label", l)
	}
	return v
}

// list returns the Objects of a kind, page by page, and the revision of the first
// page: what changed later a watch from there tells.
func (q *listQuery) list(ctx context.Context, call *rpc.Client, k api.Kind) (all []json.RawMessage, at api.Revision, err error) {
	v := q.values()
	v.Set("limit", strconv.Itoa(pageSize))
	for {
		var page api.List
		if err := call.Do(ctx, http.MethodGet, "/api/core/v1/"+k.Plural+"?"+v.Encode(), nil, &page); err != nil {
			return nil, at, err
		}
		if all = append(all, page.Items...); at == (api.Revision{}) {
			at = page.Revision
		}
		if page.Next == "" {
			return all, at, nil
		}
		v.Set("after", page.Next)
	}
}

// watch prints a list and then what changes, until ctx is done.
func (r *run) watch(c *cobra.Command, call *rpc.Client, k api.Kind, q *listQuery, format string, list []json.RawMessage, at api.Revision) error {
	show := func(raw json.RawMessage, deleted bool) error {
		switch {
		case format == formatJSON:
			_, err := fmt.Fprintf(r.Out, "%s\n", raw)
			return err
		case format == formatYAML:
			return manifest.Encode(r.Out, raw)
		}
		o, err := decode(raw)
		if err != nil {
			return err
		}
		t := kindTable(k, []api.Object{o}, format == formatWide, false)
		t.headings = nil
		if format == formatName {
			t = new(table)
			t.add(slashName(k.Name, o.Header().Metadata.Name))
		}
		if deleted {
			t.rows[0] = append(t.rows[0], "(deleted)")
		}
		return t.print(r.Out)
	}
	if len(list) > 0 {
		if err := printObjects(r.Out, format, list, false, false); err != nil {
			return err
		}
	}
	v := q.values()
	v.Set("watch", "true")
	v.Set("revision", at.String())
	err := call.Stream(c.Context(), http.MethodGet, "/api/core/v1/"+k.Plural+"?"+v.Encode(), nil, func(line json.RawMessage) error {
		var e api.WatchEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("the cluster sent an event that is not understood: %w", err)
		}
		if e.Type == api.WatchSynced {
			return nil
		}
		return show(e.Object, e.Type == api.WatchDeleted)
	})
	if c.Context().Err() != nil { // Ctrl-C
		return nil
	}
	if err == nil {
		err = hinted(errors.New("the cluster ended the watch: it stopped, or you may not read on"), "start it again")
	}
	return err
}

// named returns the Objects of a kind that have these names: those that could be
// had, and why the others could not.
func named(ctx context.Context, call *rpc.Client, k api.Kind, names []string) (list []json.RawMessage, failure error) {
	for _, name := range names {
		var raw json.RawMessage
		if err := call.Do(ctx, http.MethodGet, objectPath(k, name), nil, &raw); err != nil {
			failure = errors.Join(failure, missing(k, err))
			continue
		}
		list = append(list, raw)
	}
	return list, failure
}

// missing adds to an error of the cluster how to find the name that was meant.
func missing(k api.Kind, err error) error {
	if api.HasCode(err, api.CodeNotFound) {
		return hinted(err, "cardea get "+k.Plural+" lists those that there are")
	}
	return err
}

// written returns every Object that a person wrote, those that are referred to
// first.
func written(ctx context.Context, call *rpc.Client) (all []json.RawMessage, err error) {
	for _, k := range api.Kinds() {
		if !k.ByHand {
			continue
		}
		list, err := listKind(ctx, call, k)
		if err != nil {
			return nil, err
		}
		for _, raw := range list {
			o, err := decode(raw)
			if err != nil {
				return nil, err
			}
			if o.Header().Metadata.ActorRef != nil { // what the system makes has no actor
				all = append(all, raw)
			}
		}
	}
	return all, nil
}

// asWritten returns Objects without what the system adds to them.
func asWritten(list []json.RawMessage) ([]json.RawMessage, error) {
	docs := make([]json.RawMessage, len(list))
	for i, raw := range list {
		var d struct {
			APIVersion string          `json:"apiVersion"`
			Kind       string          `json:"kind"`
			Metadata   api.Metadata    `json:"metadata"`
			Spec       json.RawMessage `json:"spec"`
		}
		if err := json.Unmarshal(raw, &d); err != nil {
			return nil, err
		}
		m := d.Metadata
		d.Metadata = api.Metadata{Name: m.Name, DisplayName: m.DisplayName, Description: m.Description, PicURL: m.PicURL,
			Labels: m.Labels, Annotations: m.Annotations, Tags: m.Tags}
		var err error
		if docs[i], err = json.Marshal(d); err != nil {
			return nil, err
		}
	}
	return docs, nil
}

func (r *run) describe() *cobra.Command {
	return &cobra.Command{
		Use:               "describe KIND NAME",
		Short:             "Show all of one resource, for a person",
		Long:              "Shows who made a resource and when, and all that it says.\nFor programs there is get -o json.",
		Example:           "  cardea describe service nats",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeKinds,
		RunE: func(c *cobra.Command, args []string) error {
			k, err := findKind(args[0])
			if err != nil {
				return err
			}
			call, err := r.api(c.Context())
			if err != nil {
				return err
			}
			var raw json.RawMessage
			if err := call.Do(c.Context(), http.MethodGet, objectPath(k, args[1]), nil, &raw); err != nil {
				return missing(k, err)
			}
			return r.describeObject(raw)
		},
	}
}

func (r *run) describeObject(raw json.RawMessage) error {
	o, err := decode(raw)
	if err != nil {
		return err
	}
	h := o.Header()
	m := h.Metadata
	t := new(table)
	t.add(h.Kind, m.Name)
	if m.DisplayName != "" {
		t.add("Called", m.DisplayName)
	}
	if m.Description != "" {
		t.add("For", m.Description)
	}
	by := "the system"
	if m.ActorRef != nil {
		by = m.ActorRef.Kind + " " + m.ActorRef.Name
	}
	t.add("Created", stamp(m.CreatedAt))
	t.add("Last written", stamp(m.UpdatedAt)+" by "+by)
	t.add("UID", m.UID)
	if err := t.print(r.Out); err != nil {
		return err
	}
	var parts struct {
		Spec   json.RawMessage `json:"spec,omitempty"`
		Status json.RawMessage `json:"status,omitempty"`
	}
	if err := json.Unmarshal(raw, &parts); err != nil {
		return err
	}
	var text strings.Builder
	if err := manifest.Encode(&text, parts); err != nil {
		return err
	}
	fmt.Fprintf(r.Out, "\n%s", text.String())
	return nil
}

func (r *run) delete() *cobra.Command {
	var allowLockout bool
	c := &cobra.Command{
		Use:               "delete KIND NAME…",
		Aliases:           []string{"del", "rm"},
		Short:             "Delete resources",
		Long:              "Deletes resources, unless others refer to them. Live connections that lose their right by it\nare cut.",
		Example:           "  cardea delete session alice-x1y2z3\n  cardea delete service nats pg.prod",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: completeKinds,
	}
	c.Flags().BoolVar(&allowLockout, "allow-lockout", false, "also if you could no longer write policies afterwards")
	c.RunE = func(c *cobra.Command, args []string) error {
		k, err := findKind(args[0])
		if err != nil {
			return err
		}
		call, err := r.api(c.Context())
		if err != nil {
			return err
		}
		var failure error
		for _, name := range args[1:] {
			path := objectPath(k, name)
			if allowLockout {
				path += "?allowLockout=true"
			}
			var out api.WriteResponse
			if err := call.Do(c.Context(), http.MethodDelete, path, nil, &out); err != nil {
				failure = errors.Join(failure, missing(k, err))
				continue
			}
			r.printResult(out.Result, false)
		}
		return failure
	}
	return c
}
