package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cardea/api"
	"cardea/manifest"
)

func (r *run) describe() *cobra.Command {
	var namespace string
	c := &cobra.Command{
		Use:   "describe KIND NAME… | KIND/NAME…",
		Short: "Show all of a resource, for a person",
		Long: "Shows who made a resource and when, how it stands, and all that it says.\n" +
			"For programs there is get -o json.",
		Example:           "  cardea describe service nats\n  cardea describe tcpmapping/default/ssh",
		ValidArgsFunction: completeKinds,
	}
	namespaceFlag(c, &namespace)
	c.RunE = func(c *cobra.Command, args []string) error {
		all, err := wantedOf(args)
		if err != nil {
			return err
		}
		list, failure, err := r.named(c.Context(), all, namespace)
		if err != nil {
			return err
		}
		for i, raw := range list {
			if i > 0 {
				fmt.Fprint(r.Out, "\n\n")
			}
			if err := describeObject(r.Out, raw, time.Now()); err != nil {
				return err
			}
		}
		return failure
	}
	return c
}

// describeObject shows an Object to a person.
func describeObject(w io.Writer, raw json.RawMessage, now time.Time) error {
	o, err := decode(raw)
	if err != nil {
		return err
	}
	h := o.Header()
	m := h.Metadata
	t := new(table)
	t.add(h.Kind, m.Name)
	if m.Namespace != "" {
		t.add("Namespace", m.Namespace)
	}
	if m.DisplayName != "" {
		t.add("Called", m.DisplayName)
	}
	if m.Description != "" {
		t.add("For", m.Description)
	}
	if tm, ok := o.(*api.TCPMapping); ok && tm.Spec.Port != nil {
		t.add("Listens at", api.Bind{Address: tm.Spec.Address, Port: *tm.Spec.Port}.String())
	}
	by := "the system"
	if m.ActorRef != nil {
		by = m.ActorRef.Kind + " " + m.ActorRef.Name
	}
	t.add("Created", stamp(m.CreatedAt))
	t.add("Last written", stamp(m.UpdatedAt)+" by "+by)
	t.add("UID", m.UID)
	if err := t.print(w); err != nil {
		return err
	}
	// What people write of an Object, and how it stands.
	var parts struct {
		Annotations map[string]string `json:"annotations,omitempty"`
		Type        string            `json:"type,omitempty"`
		Spec        json.RawMessage   `json:"spec,omitempty"`
		Status      json.RawMessage   `json:"status,omitempty"`
	}
	parts.Annotations = m.Annotations
	if err := json.Unmarshal(raw, &parts); err != nil {
		return err
	}
	switch o := o.(type) {
	case api.Routable:
		err = describeStatus(w, o.RouteStatus(), now)
		parts.Status = nil
	case *api.Service:
		err = describeStatus(w, &api.RouteStatus{Conditions: o.Status.Conditions, Endpoints: o.Status.Endpoints}, now)
		o.Status.Conditions, o.Status.Endpoints = nil, nil
		parts.Status = nil
		if o.Status.Port != 0 || o.Status.NoEffect != nil {
			parts.Status, _ = json.Marshal(o.Status)
		}
	}
	if err != nil {
		return err
	}
	var text strings.Builder
	if err := manifest.Encode(&text, parts); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n%s", text.String())
	return nil
}

// describeStatus shows how it stands with an Object of the routing table.
func describeStatus(w io.Writer, s *api.RouteStatus, now time.Time) error {
	if len(s.Conditions) > 0 {
		fmt.Fprint(w, "\nHow it stands:\n")
		t := new(table)
		for _, c := range s.Conditions {
			since := ""
			if !c.Since.IsZero() {
				since = "for " + age(now.Sub(c.Since))
			}
			words := c.Message
			if c.Status == "False" {
				words = cmp.Or(words, c.Reason)
			}
			t.add("  "+c.Type, c.Status, since, words)
		}
		if err := t.print(w); err != nil {
			return err
		}
	}
	if err := printEndpoints(w, s.Endpoints, now); err != nil {
		return err
	}
	if len(s.Notes) > 0 {
		fmt.Fprint(w, "\nNotes:\n")
	}
	for _, n := range s.Notes {
		fmt.Fprintf(w, "  - %s\n", plain(n))
	}
	return nil
}

// printEndpoints shows how it stands with the endpoints of an upstream.
func printEndpoints(w io.Writer, list []api.EndpointStatus, now time.Time) error {
	if len(list) == 0 {
		return nil
	}
	fmt.Fprint(w, "\nEndpoints, as this process sees them:\n")
	t := &table{headings: []string{"  ENDPOINT", "ADDRESS", "STATE", "FOR", "CONNECTIONS", "SHARE", "WHY"}}
	for _, e := range list {
		since, share := "", strconv.Itoa(e.Weight)
		if !e.Since.IsZero() {
			since = age(now.Sub(e.Since))
		}
		if e.Backup {
			share = "backup"
		}
		name := e.Endpoint
		if e.Config != "" && e.Config != api.DefaultConfig {
			name = e.Config + ": " + name
		}
		t.add("  "+name, e.Address, string(e.State), since, strconv.Itoa(e.Connections), share, e.Words)
	}
	return t.print(w)
}

// age returns how long something has lasted, in the largest units that matter.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return d.Truncate(time.Second).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}
