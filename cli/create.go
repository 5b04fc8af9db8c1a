package cli

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"cardea/api"
	"cardea/client"
	"cardea/manifest"
)

func (r *run) create() *cobra.Command {
	c := &cobra.Command{
		Use:     "create KIND NAME",
		Short:   "Create one resource by flags",
		Long:    "Creates one resource; it must not exist. What flags cannot say, apply can.",
		Example: "  cardea create group ops\n  cardea create user alice --type HUMAN --group ops",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("create needs a kind: namespace, group, user, service, secret, credential, tcpmapping, secret.v1")
			}
			k, err := findKind(args[0])
			if err != nil {
				return err
			}
			u := usagef("a %s is not created by flags", k.Name)
			u.hint = "write it as a document and use cardea apply"
			return u
		},
	}
	c.AddCommand(r.createNamespace(), r.createGroup(), r.createUser(), r.createService(), r.createSecret(), r.createCredential(),
		r.createTCPMapping(), r.createKubernetesSecret())
	return c
}

// creator returns the verb that creates a kind. object makes the Object from the
// flags.
func (r *run) creator(k api.Kind, short, example string, object func(name string) (api.Object, error)) *cobra.Command {
	c := &cobra.Command{
		Use: typed(k, k.Name) + " NAME", Aliases: append([]string{typed(k, k.Plural)}, k.Short...),
		Short: short, Example: "  cardea create " + example, Args: cobra.ExactArgs(1),
	}
	var namespace string
	if k.IsForeign() || k.Name == api.KindService {
		namespaceFlag(c, &namespace)
	}
	out := output(c, formatTable, formatJSON, formatYAML, formatName)
	c.RunE = func(c *cobra.Command, args []string) error {
		name, err := ownName(k, namespace, args[0])
		if err != nil {
			return err
		}
		o, err := object(name)
		if err != nil {
			return err
		}
		h := o.Header()
		h.Kind, h.Metadata.Name = k.Name, name
		if k.IsForeign() {
			h.Metadata.Namespace = namespace
			o.Default() // its apiVersion
		}
		done, err := r.createObject(c, o)
		if err != nil {
			return err
		}
		if out.value == formatTable {
			r.printResult(done.Result, false)
			return nil
		}
		return printObjects(r.Out, out.value, []json.RawMessage{done.Object}, true, false)
	}
	return c
}

func policyFlag(c *cobra.Command, policies *[]string) {
	c.Flags().StringArrayVar(policies, "policy", nil, "a Policy to attach; may be repeated")
}

func (r *run) createNamespace() *cobra.Command {
	var policies []string
	var parent string
	c := r.creator(kindOf(api.KindNamespace), "Create a Namespace for Services", "namespace prod --policy ops-only", func(string) (api.Object, error) {
		return &api.Namespace{Spec: api.NamespaceSpec{Parent: parent, Authorization: api.Authorization{Policies: policies}}}, nil
	})
	policyFlag(c, &policies)
	c.Flags().StringVar(&parent, "parent", "", "the Namespace that it is in")
	return c
}

func (r *run) createGroup() *cobra.Command {
	var policies []string
	c := r.creator(kindOf(api.KindGroup), "Create a Group of Users", "group group-1", func(string) (api.Object, error) {
		return &api.Group{Spec: api.GroupSpec{Authorization: api.Authorization{Policies: policies}}}, nil
	})
	policyFlag(c, &policies)
	return c
}

func (r *run) createUser() *cobra.Command {
	var policies, groups []string
	var email, typ string
	c := r.creator(kindOf(api.KindUser), "Create a User, a person or a program", "user alice --type HUMAN --group group-1", func(string) (api.Object, error) {
		return &api.User{Spec: api.UserSpec{
			Type: api.UserType(strings.ToUpper(typ)), Groups: groups, Email: email, Authorization: api.Authorization{Policies: policies},
		}}, nil
	})
	c.Flags().StringVarP(&typ, "type", "t", string(api.UserHuman), "HUMAN or WORKLOAD")
	c.Flags().StringArrayVar(&groups, "group", nil, "a Group to be in; may be repeated")
	c.Flags().StringVar(&email, "email", "", "the address of the person")
	policyFlag(c, &policies)
	return c
}

func (r *run) createService() *cobra.Command {
	var policies []string
	var mode, upstream string
	var port int
	c := r.creator(kindOf(api.KindService), "Create a Service in front of an upstream", "service nats --upstream tcp://nats-server:4222", func(name string) (api.Object, error) {
		if upstream == "" {
			u := usagef("a Service needs --upstream")
			u.hint = fmt.Sprintf("cardea create service %s --upstream tcp://HOST:PORT", name)
			return nil, u
		}
		return &api.Service{Spec: api.ServiceSpec{
			Mode: api.Mode(strings.ToUpper(mode)), Port: port, Authorization: api.Authorization{Policies: policies},
			Config: &api.ServiceConfig{Upstream: api.Upstream{URL: upstream}},
		}}, nil
	})
	c.Flags().StringVar(&mode, "mode", string(api.ModeTCP), "the protocol that it speaks")
	c.Flags().StringVar(&upstream, "upstream", "", "where its traffic goes: tcp://HOST:PORT")
	c.Flags().IntVar(&port, "port", 0, "its own port; the upstream's if left out")
	policyFlag(c, &policies)
	return c
}

// A secretSource says where the value of a Secret comes from.
type secretSource struct{ value, file, cert, certKey string }

func (s *secretSource) flags(c *cobra.Command) {
	c.Flags().StringVar(&s.value, "value", "", "the value; - reads it from standard input")
	c.Flags().StringVarP(&s.file, "file", "f", "", "the file that holds the value, byte for byte")
	c.Flags().StringVar(&s.cert, "cert", "", "the file of a certificate chain, PEM; needs --cert-key")
	c.Flags().StringVar(&s.certKey, "cert-key", "", "the file of the key of --cert, PEM")
}

// secretData reads the value of a Secret. A certificate and its key are one value,
// the chain first.
func (r *run) secretData(s *secretSource) (*api.SecretData, error) {
	given := 0
	for _, set := range []bool{s.value != "", s.file != "", s.cert != "" || s.certKey != ""} {
		if set {
			given++
		}
	}
	if given != 1 || (s.cert == "") != (s.certKey == "") {
		return nil, usagef("a Secret needs one of --value, --file, and --cert with --cert-key")
	}
	var b []byte
	switch {
	case s.cert != "":
		if _, err := tls.LoadX509KeyPair(s.cert, s.certKey); err != nil {
			return nil, fmt.Errorf("--cert %s and --cert-key %s: %w", s.cert, s.certKey, err)
		}
		for _, file := range []string{s.cert, s.certKey} {
			_, part, err := r.read(file)
			if err != nil {
				return nil, err
			}
			b = append(append(b, bytes.TrimSpace(part)...), '\n')
		}
	case s.file != "" || s.value == "-":
		var err error
		if _, b, err = r.read(cmp.Or(s.file, "-")); err != nil {
			return nil, err
		}
	default:
		b = []byte(s.value)
	}
	if utf8.Valid(b) {
		return &api.SecretData{Value: string(b)}, nil
	}
	return &api.SecretData{ValueBytes: b}, nil
}

func (r *run) createSecret() *cobra.Command {
	var from secretSource
	var services, hosts []string
	c := r.creator(kindOf(api.KindSecret), "Create a Secret, whose value nobody can read back",
		"secret db-password --file password.txt\n  cardea create secret db-cert --cert client.pem --cert-key client.key --bind-service pg", func(string) (api.Object, error) {
			data, err := r.secretData(&from)
			if err != nil {
				return nil, err
			}
			s := &api.Secret{Data: data}
			if len(services)+len(hosts) > 0 {
				s.Spec.Bind = &api.SecretBinding{Services: services, Hosts: hosts}
			}
			return s, nil
		})
	from.flags(c)
	c.Flags().StringArrayVar(&services, "bind-service", nil, "a Service that may use it, and no other; may be repeated")
	c.Flags().StringArrayVar(&hosts, "bind-host", nil, "a host that it may be used for, and no other; may be repeated")
	return c
}

func (r *run) createTCPMapping() *cobra.Command {
	var spec api.TCPMappingSpec
	var port int
	c := r.creator(foreignKind(api.GroupAmbassador, api.KindTCPMapping), "Create a TCPMapping: connections to a port, or to a server name at it, go to a service",
		"tcpmapping ssh --port 2222 --service upstream:22\n  cardea create tcpmapping db --port 5432 --host db.example.com --service db:5432 -n prod", func(name string) (api.Object, error) {
			if port == 0 || spec.Service == "" {
				u := usagef("a TCPMapping needs --port and --service")
				u.hint = fmt.Sprintf("cardea create tcpmapping %s --port PORT --service HOST:PORT", name)
				return nil, u
			}
			spec.Port = &port
			return &api.TCPMapping{Spec: spec}, nil
		})
	c.Flags().IntVar(&port, "port", 0, "the port to listen at")
	c.Flags().StringVar(&spec.Address, "address", "", "the IP address to listen at; every one if it is left out")
	c.Flags().StringVar(&spec.Host, "host", "", "the server name that the client must ask for; TLS ends here")
	c.Flags().StringVar(&spec.Service, "service", "", "where connections go: HOST:PORT")
	c.Flags().StringVar(&spec.TLS.Name, "tls", "", "the TLSContext by which the upstream is spoken to")
	return c
}

func (r *run) createKubernetesSecret() *cobra.Command {
	var cert, certKey string
	var files []string
	c := r.creator(foreignKind(api.GroupKubernetes, api.KindSecret), "Create a Kubernetes Secret, which TLSContexts and Hosts name",
		"secret.v1 supersecret --cert server.pem --cert-key server.key -n default\n  cardea create secret.v1 clients-ca --file tls.crt=ca.pem", func(string) (api.Object, error) {
			if (cert == "") != (certKey == "") || cert == "" && len(files) == 0 {
				return nil, usagef("a Kubernetes Secret needs --cert with --cert-key, or --file KEY=FILE")
			}
			s := &api.KubernetesSecret{Type: "Opaque", Data: map[string][]byte{}}
			if cert != "" {
				if _, err := tls.LoadX509KeyPair(cert, certKey); err != nil {
					return nil, fmt.Errorf("--cert %s and --cert-key %s: %w", cert, certKey, err)
				}
				s.Type = "kubernetes.io/tls"
				files = append(files, "tls.crt="+cert, "tls.key="+certKey)
			}
			for _, f := range files {
				key, file, ok := strings.Cut(f, "=")
				if !ok || key == "" {
					return nil, usagef("--file: %.100q is not KEY=FILE", f)
				}
				var err error
				if _, s.Data[key], err = r.read(file); err != nil {
					return nil, err
				}
			}
			return s, nil
		})
	c.Flags().StringVar(&cert, "cert", "", "the file of a certificate chain, PEM; needs --cert-key")
	c.Flags().StringVar(&certKey, "cert-key", "", "the file of the key of --cert, PEM")
	c.Flags().StringArrayVar(&files, "file", nil, "KEY=FILE: a value, such as ca.crt=ca.pem or crl.pem=crl.pem; may be repeated")
	return c
}

// A tokenAnswer is what create credential -o json prints.
type tokenAnswer struct {
	Token string `json:"token"`
	Name  string `json:"name"`
	User  string `json:"user"`
}

func (r *run) createCredential() *cobra.Command {
	var user, typ, expireIn string
	var policies []string
	var maxAuthn int
	var once, rotate, autoDelete bool
	k := kindOf(api.KindCredential)
	c := &cobra.Command{
		Use: "credential NAME --user USER", Aliases: append([]string{k.Plural}, k.Short...),
		Short: "Create a Credential and print how to log in by it, once",
		Long:  "Creates a Credential of a User and prints the command by which that User logs in.\nThe token in it is not kept anywhere: it is shown this once; -o json prints it alone.",
		Example: "  cardea create credential alice --user alice --type auth-token --expire-in 2h\n" +
			"  cardea create credential alice --user alice --rotate      # a new token, the old one is void",
		Args: cobra.ExactArgs(1),
	}
	c.Flags().StringVar(&user, "user", "", "the User who logs in by it")
	c.Flags().StringVar(&typ, "type", "auth-token", "auth-token")
	c.Flags().StringVar(&expireIn, "expire-in", "", "how long its token can be used: 30m, 2h, 7d; for ever if left out")
	c.Flags().IntVar(&maxAuthn, "max-authn", 0, "how often its token can be used; 0 is any number")
	c.Flags().BoolVar(&once, "one-time", false, "its token can be used once")
	c.Flags().BoolVar(&autoDelete, "auto-delete", false, "delete it when it has been used as often as it can be")
	c.Flags().BoolVar(&rotate, "rotate", false, "make a new token for a Credential that exists")
	policyFlag(c, &policies)
	out := output(c, formatTable, formatJSON, formatYAML)
	c.RunE = func(c *cobra.Command, args []string) error {
		o := &api.Credential{Spec: api.CredentialSpec{
			Type: api.CredentialType(strings.ToUpper(strings.ReplaceAll(typ, "-", "_"))), User: user,
			MaxAuthentications: maxAuthn, AutoDelete: autoDelete, Authorization: api.Authorization{Policies: policies},
		}}
		o.Kind, o.Metadata.Name = k.Name, args[0]
		if user == "" && !rotate {
			return usagef("a Credential needs --user")
		}
		if rotate {
			for _, name := range []string{"type", "expire-in", "max-authn", "one-time", "auto-delete", "policy"} {
				if c.Flags().Changed(name) {
					return usagef("--rotate changes the token and nothing else: --%s has to be applied as a document", name)
				}
			}
		}
		if once {
			if maxAuthn > 1 {
				return usagef("--one-time is --max-authn 1, not %d", maxAuthn)
			}
			o.Spec.MaxAuthentications = 1
		}
		if expireIn != "" {
			d, err := parseDuration(expireIn)
			if err != nil {
				return usagef("--expire-in: %v", err)
			}
			o.Spec.ExpiresAt = time.Now().Add(d).UTC().Truncate(time.Second)
		}
		if !rotate {
			_, err := r.createObject(c, o)
			if api.HasCode(err, api.CodeConflict) {
				return hinted(err, fmt.Sprintf("cardea create credential %s --rotate makes a new token", o.Metadata.Name))
			}
			if err != nil {
				return err
			}
		}
		me, err := r.open(c.Context())
		if err != nil {
			return err
		}
		call, err := me.API(c.Context())
		if err != nil {
			return err
		}
		var token api.TokenResponse
		if err := call.Do(c.Context(), http.MethodPost, k.Path("")+"/"+url.PathEscape(o.Metadata.Name)+"/token", nil, &token); err != nil {
			if !rotate {
				return hinted(fmt.Errorf("the Credential %s was created, but not its token: %w", o.Metadata.Name, err),
					fmt.Sprintf("cardea create credential %s --rotate", o.Metadata.Name))
			}
			if api.HasCode(err, api.CodeNotFound) {
				return hinted(err, "without --rotate it is created")
			}
			return err
		}
		s, err := me.Session(c.Context())
		if err != nil {
			return err
		}
		s.CASHA256 = cmp.Or(token.CASHA256, s.CASHA256) // the home learns of a rotation later
		return r.printToken(out.value, s, tokenAnswer{token.Token, o.Metadata.Name, user})
	}
	return c
}

// printToken prints a token; for a person, as the line to hand over to whom it is
// for. s is a Session of the cluster that it is for.
func (r *run) printToken(format string, s client.Session, t tokenAnswer) error {
	switch format {
	case formatJSON:
		return printJSON(r.Out, t)
	case formatYAML:
		return manifest.Encode(r.Out, t)
	}
	fmt.Fprintln(r.Out, loginLine(s.Address, t.Token, s.CASHA256))
	fmt.Fprintf(r.Err, "credential/%s has a new token, which is not shown again: hand this line over\n", t.Name)
	if isLoopback(s.Address) {
		fmt.Fprintf(r.Err, "%s is of this machine alone: elsewhere, put in its place an address at which the cluster is reached from there\n", s.Address)
	}
	return nil
}

// loginLine returns the command that logs in by a token.
func loginLine(address, token, caSHA256 string) string {
	return fmt.Sprintf("cardea login %s --token %s --ca-sha256 %s", address, token, caSHA256)
}

// parseDuration reads 90s, 30m, 2h, 7d, 2w and the same with the unit as a word:
// 2hours.
func parseDuration(s string) (time.Duration, error) {
	digits := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyz")
	n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 16)
	unit := strings.TrimSuffix(s[len(digits):], "s")
	if s[len(digits):] == "s" {
		unit = "s"
	}
	units := map[string]time.Duration{
		"s": time.Second, "sec": time.Second, "second": time.Second,
		"m": time.Minute, "min": time.Minute, "minute": time.Minute,
		"h": time.Hour, "hour": time.Hour,
		"d": 24 * time.Hour, "day": 24 * time.Hour,
		"w": 7 * 24 * time.Hour, "week": 7 * 24 * time.Hour,
	}
	if d, ok := units[unit]; ok && err == nil && n > 0 {
		return time.Duration(n) * d, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 { // 1h30m
		return d, nil
	}
	return 0, fmt.Errorf("%.40q is not a duration such as 30m, 2h or 7d", s)
}
