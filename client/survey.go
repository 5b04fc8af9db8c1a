package client

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"cardea/api"
)

// Survey compares ports that are to be published with what the cluster tells this Session
// of its Services. What cannot be is an error: a port of the wrong protocol. What may come
// to be is a warning, as rights and Services change while ports are published: a Service
// that the Session may not reach now, or that the cluster does not tell it of. Those that
// lead to a Service of UDP become ports of UDP.
func (c *Client) Survey(ctx context.Context, ports []Port) (warnings []string, err error) {
	if !slices.ContainsFunc(ports, func(p Port) bool { return p.Service != "" }) {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, namesTime)
	defer cancel()
	var list api.Reachable
	call, err := c.API(ctx)
	if err == nil {
		err = call.Do(ctx, http.MethodGet, "/api/self/services?denied=true", nil, &list)
	}
	if err != nil { // each connection will tell
		return []string{fmt.Sprintf("whether these Services can be reached is not known: %v", err)}, nil
	}
	for i := range ports {
		if ports[i].Service == "" {
			continue // the proxy
		}
		warning, err := ports[i].compare(&list)
		if err != nil {
			return nil, err
		}
		if warning != "" {
			warnings = append(warnings, warning)
		}
	}
	return warnings, nil
}

// compare is Survey for one port.
func (p *Port) compare(list *api.Reachable) (warning string, err error) {
	if i := slices.IndexFunc(list.Items, func(s api.ReachableService) bool { return s.Name == p.Service }); i >= 0 {
		return "", p.speak(list.Items[i].Mode)
	}
	if i := slices.IndexFunc(list.Denied, func(s api.DeniedService) bool { return s.Name == p.Service }); i >= 0 {
		s := &list.Denied[i]
		why := reasonWords(string(s.Reason))
		if s.Message != "" {
			why = s.Message + " (" + string(s.Reason) + ")"
		}
		return fmt.Sprintf("this Session may not connect to %s now: %s; connections are refused until it may", p.Service, why), p.speak(s.Mode)
	}
	var names []string
	short := func(name string) string { return strings.TrimSuffix(name, "."+api.DefaultNamespace) }
	for _, s := range list.Items {
		names = append(names, short(s.Name))
	}
	for _, s := range list.Denied {
		names = append(names, short(s.Name))
	}
	warning = fmt.Sprintf("the cluster tells this Session of no Service %s; connections are refused until it may reach one", p.Service)
	if near := api.Nearest(short(p.Service), names); near != "" {
		warning += "; did you mean " + near + "?"
	}
	return warning, nil
}

// speak reports why the port cannot lead to a Service of that mode, and makes it one of
// UDP if the Service is.
func (p *Port) speak(m api.Mode) error {
	isUDP := m == api.ModeUDP
	switch {
	case isUDP && p.Network == "unix":
		e := api.Errorf(api.CodeInvalid, "Service %s is of datagrams (UDP), which a Unix socket does not carry", p.Service)
		e.Hint = "-p " + p.Service + ":[HOST:]PORT/udp"
		return e
	case !isUDP && p.Network == "udp":
		e := api.Errorf(api.CodeInvalid, "Service %s is of mode %s, and %s is a port of UDP", p.Service, m, p.Address)
		e.Hint = "leave /udp out: -p " + p.Service + ":" + p.Address
		return e
	case isUDP:
		p.Network = "udp"
	}
	return nil
}
