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
	"cardea/manifest"
	"cardea/rpc"
)

// allKinds stands for every kind.
const allKinds = "all"

func (r *run) get() *cobra.Command {
	var s client.Selection
	var watch, everywhere bool
	c := &cobra.Command{
		Use:   "get KIND [NAME…] | KIND/NAME…",
		Short: "Show resources",
		Long: "Shows the resources of a kind, or those that are named: NAME or, of another system's,\n" +
			"NAMESPACE/NAME. Those of several kinds are named KIND/NAME or KIND/NAMESPACE/NAME. \"get all\"\n" +
			"is every resource that people wrote; with -o yaml, as apply takes it. -w goes on with what\n" +
			"changes. On a terminal the last column is cut, except with -o wide.",
		Example: "  cardea get services\n  cardea get user alice -o yaml\n  cardea get sessions --user alice -w\n" +
			"  cardea get tcpmappings -n default\n  cardea get tcpmapping/default/ssh service/nats\n  cardea get all -o yaml > all.yaml",
		ValidArgsFunction: completeKinds,
	}
	c.Flags().StringVarP(&s.Namespace, "namespace", "n", "", "only Services of that Namespace, or another system's resources of that namespace")
	c.Flags().BoolVarP(&everywhere, "all-namespaces", "A", false, "those of all namespaces, as without -n")
	c.Flags().StringVar(&s.User, "user", "", "only what belongs to that User: Sessions, Devices, Credentials")
	c.Flags().StringArrayVarP(&s.Labels, "label", "l", nil, "only what has the label: KEY=VALUE; may be repeated")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "go on with what changes")
	out := output(c, formatTable, formatWide, formatJSON, formatYAML, formatName)
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usagef("get needs a kind: all, %s", kindNames())
		}
		if everywhere && s.Namespace != "" {
			return usagef("-A and -n cannot both be")
		}
		if args[0] == allKinds {
			if len(args) > 1 {
				return usagef("get all takes no name")
			}
			return r.getAll(c.Context(), out.value)
		}
		if len(args) > 1 || strings.Contains(args[0], "/") {
			all, err := wantedOf(args)
			if err != nil {
				return err
			}
			if watch {
				return usagef("-w watches a kind, not names")
			}
			return r.getNamed(c.Context(), all, s.Namespace, out.value)
		}
		k, err := findKind(args[0])
		if err != nil {
			return err
		}
		if s.Namespace != "" && !k.IsForeign() && k.Name != api.KindService {
			return noNamespace(k, s.Namespace)
		}
		o, err := r.objects(c.Context(), k)
		if err != nil {
			return err
		}
		list, at, err := o.List(c.Context(), s)
		if err != nil {
			return err
		}
		if watch {
			return r.watch(c.Context(), o, s, out.value, list, at)
		}
		if len(list) == 0 && (out.value == formatTable || out.value == formatWide) {
			fmt.Fprintf(r.Err, "there are no %s\n", typed(k, k.Plural))
			return nil
		}
		return printObjects(r.Out, out.value, list, false, false)
	}
	return c
}

// getNamed prints the Objects of some names.
func (r *run) getNamed(ctx context.Context, all []wanted, namespace, format string) error {
	list, failure, err := r.named(ctx, all, namespace)
	if err != nil {
		return err
	}
	if len(list) > 0 {
		mixed := slices.ContainsFunc(all, func(w wanted) bool { return w.kind.Path("") != all[0].kind.Path("") })
		if err := printObjects(r.Out, format, list, len(all) == 1, mixed); err != nil {
			return err
		}
	}
	return failure
}

// getAll prints every Object that a person wrote.
func (r *run) getAll(ctx context.Context, format string) error {
	call, err := r.api(ctx)
	if err != nil {
		return err
	}
	list, err := written(ctx, call)
	if err == nil && format == formatYAML {
		list, err = asWritten(list)
	}
	if err != nil {
		return err
	}
	return printObjects(r.Out, format, list, false, true)
}

// watch prints a list and then what changes, until ctx is done.
func (r *run) watch(ctx context.Context, o client.Objects, s client.Selection, format string, list []json.RawMessage, at api.Revision) error {
	if len(list) > 0 {
		if err := printObjects(r.Out, format, list, false, false); err != nil {
			return err
		}
	}
	err := o.Watch(ctx, s, at, func(e api.WatchEvent) error {
		if e.Type == api.WatchSynced {
			return nil
		}
		return r.printChange(format, e.Object, e.Type == api.WatchDeleted)
	})
	if ctx.Err() != nil { // Ctrl-C
		return nil
	}
	if err == nil {
		err = hinted(errors.New("the cluster ended the watch: it stopped, or you may not read on"), "start it again")
	}
	return err
}

// printChange prints an Object that has changed.
func (r *run) printChange(format string, raw json.RawMessage, deleted bool) error {
	switch format {
	case formatJSON:
		_, err := fmt.Fprintf(r.Out, "%s\n", raw)
		return err
	case formatYAML:
		return manifest.Encode(r.Out, raw)
	}
	o, err := decode(raw)
	if err != nil {
		return err
	}
	t := kindTable(kindOfObject(o), []api.Object{o}, format == formatWide, false)
	t.headings = nil
	if format == formatName {
		t = new(table)
		t.add(keyName(o.Header().Key()))
	}
	if deleted {
		t.rows[0] = append(t.rows[0], "(deleted)")
	}
	return t.print(r.Out)
}

// named returns the Objects of some names: those that could be had, and as failure
// why the others could not.
func (r *run) named(ctx context.Context, all []wanted, namespace string) (list []json.RawMessage, failure, err error) {
	places, failure, err := r.find(ctx, all, namespace)
	if err != nil {
		return nil, nil, err
	}
	for _, f := range places {
		raw, err := f.get(ctx)
		if err != nil {
			failure = errors.Join(failure, err)
			continue
		}
		list = append(list, raw)
	}
	return list, failure, nil
}

// written returns every Object that a person wrote, those that are referred to
// first.
func written(ctx context.Context, call *rpc.Client) (all []json.RawMessage, err error) {
	for _, k := range api.Kinds() {
		if !k.ByHand {
			continue
		}
		list, _, err := client.Objects{API: call, Kind: k}.List(ctx, client.Selection{})
		if err != nil {
			return nil, err
		}
		for _, raw := range list {
			h, err := head(raw)
			if err != nil {
				return nil, err
			}
			if h.Metadata.ActorRef != nil { // what the system makes has no actor
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
		// What documents hold beside spec is that of Kubernetes' Secrets.
		var d struct {
			APIVersion string          `json:"apiVersion"`
			Kind       string          `json:"kind"`
			Metadata   api.Metadata    `json:"metadata"`
			Type       string          `json:"type,omitempty"`
			Immutable  *bool           `json:"immutable,omitempty"`
			Spec       json.RawMessage `json:"spec,omitempty"`
		}
		if err := json.Unmarshal(raw, &d); err != nil {
			return nil, err
		}
		m := d.Metadata
		d.Metadata = api.Metadata{Name: m.Name, Namespace: m.Namespace, DisplayName: m.DisplayName, Description: m.Description, PicURL: m.PicURL,
			Labels: m.Labels, Annotations: m.Annotations, Tags: m.Tags}
		var err error
		if docs[i], err = json.Marshal(d); err != nil {
			return nil, err
		}
	}
	return docs, nil
}
