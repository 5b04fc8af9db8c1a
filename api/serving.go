package api

import (
	"fmt"
	"iter"
	"strconv"
)

// ServeTarget names what a Session that serves is asked for: the upstream of a config of
// a Service, SERVICE.NAMESPACE/CONFIG.
func ServeTarget(service, config string) string { return service + "/" + config }

// ServedAt is what stands for an address where an upstream is a Session of that name.
func ServedAt(session string) string { return "session " + session }

// ServedBy returns the URL of what the Sessions of a User serve as the upstream of the
// config. ok is false if they serve nothing of it. The config must have what it takes from
// its parents: see [Service.EffectiveConfig].
func (c *ServiceConfig) ServedBy(user string) (url string, ok bool) {
	for name, at := range c.Upstream.servers() {
		if name == user && user != "" {
			return at.url, true
		}
	}
	return "", false
}

// IsServed reports whether Sessions of Users serve the config, or a part of it.
func (c *ServiceConfig) IsServed() bool {
	for range c.Servers() {
		return true
	}
	return false
}

// Servers yields the Users whose Sessions serve the config, as it is written, and the
// pointer within it of the field that names each.
func (c *ServiceConfig) Servers() iter.Seq2[string, string] {
	return func(yield func(user, pointer string) bool) {
		seen := map[string]bool{"": true}
		for user, at := range c.Upstream.servers() {
			if !seen[user] && !yield(user, at.pointer) {
				return
			}
			seen[user] = true
		}
		if u := c.Upstream.User; !seen[u] {
			yield(u, "/upstream/user")
		}
	}
}

// A servedURL is a URL of an upstream, and where stands who serves it and what it is.
type servedURL struct{ url, pointer, place string }

// servers yields for each URL of the upstream the User whose Sessions serve it, "" where
// the cluster connects to it itself.
func (u *Upstream) servers() iter.Seq2[string, servedURL] {
	return func(yield func(string, servedURL) bool) {
		if u.URL != "" {
			yield(u.User, servedURL{u.URL, "/upstream/user", "/upstream/url"})
			return
		}
		if u.Loadbalance == nil {
			return
		}
		for i, e := range u.Loadbalance.Endpoints {
			user, pointer := e.User, fmt.Sprintf("/upstream/loadbalance/endpoints/%d/user", i)
			if user == "" {
				user, pointer = u.User, "/upstream/user"
			}
			if !yield(user, servedURL{e.URL, pointer, fmt.Sprintf("/upstream/loadbalance/endpoints/%d/url", i)}) {
				return
			}
		}
	}
}

// validateServing checks what a config says of Users whose Sessions are its upstream, as
// it is with what it takes from its parents; at is the pointer of c.
func (s *Service) validateServing(p *Problems, at string, c *ServiceConfig) {
	for user, pointer := range c.Servers() {
		if !validLabel(user) {
			p.Add(at+pointer, "must name a User: "+labelRule, user)
		}
	}
	if u := &c.Upstream; u.URL == "" && u.Loadbalance == nil && u.User == "" && u.Families == nil && u.Health == nil {
		return // what it takes from its parents is checked there
	}
	whole := s.EffectiveConfig(c.Name)
	if whole == nil { // the name is wrong, which is reported there
		whole = c
	}
	seen := map[string]bool{}
	served, alone := false, true
	for user, x := range whole.Upstream.servers() {
		if user == "" {
			alone = false
			continue
		}
		served = true
		if seen[user] {
			p.Add(at+x.pointer, "must not be there for two endpoints: a User's Sessions serve one URL of a config", user)
		}
		seen[user] = true
		if e, err := parseEndpoint(x.url); err == nil && e.Port == 0 {
			p.Add(at+x.place, "must be HOST:PORT: a name of SRV records cannot be served by a Session", x.url)
		}
	}
	if !served {
		return
	}
	if alone && len(whole.Upstream.Families) > 0 {
		p.Add(at+"/upstream/families", "must be left out with user: the device that serves resolves the name", strconv.Itoa(len(whole.Upstream.Families)))
	}
	if h := whole.Upstream.Health; h != nil {
		if h.Check != nil && h.Check.Port != 0 {
			p.Add(at+"/upstream/health/check/port", "must be left out with user: a Session can be asked for its URL only", strconv.Itoa(h.Check.Port))
		}
	}
}
