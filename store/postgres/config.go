package postgres

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Limits that the server enforces, so that a process that hangs does not hold up
// the others.
const (
	connectTimeout   = 5 * time.Second
	statementTimeout = time.Minute
	lockTimeout      = 15 * time.Second // how long a transaction of another process may take
	idleWriter       = 10 * time.Second // between two statements of a transaction that writes
	idleReader       = 5 * time.Minute  // between two statements of a View

	// answerTimeout bounds what the server cannot: that it does not answer.
	answerTimeout = statementTimeout + 10*time.Second

	poolSize = 8 // connections that read, unless the URL has pool_max_conns
)

// defaultSchema is where the tables are, unless the URL has a search_path.
const defaultSchema = "cardea"

// parse returns how to connect: the pool of readers, with the settings that all
// connections have, and the schema. Its errors, as all of this package, never
// have a password.
func parse(raw string) (*pgxpool.Config, string, error) {
	u, err := url.Parse(raw)
	// The driver takes what begins otherwise for a list of settings, and quotes them.
	if err != nil || !strings.HasPrefix(raw, "postgres://") && !strings.HasPrefix(raw, "postgresql://") {
		// The cause would quote what may be a password.
		return nil, "", errors.New("store: it is no URL of a PostgreSQL database, such as postgres://USER@HOST/DATABASE?sslmode=verify-full")
	}
	q := u.Query()
	if u.User == nil && misplaced(u, q) {
		return nil, "", errors.New("store: the URL of the PostgreSQL database has an @ behind its host: in a password / is written %2F, ? %3F, # %23 and @ %40")
	}
	c, err := pgxpool.ParseConfig(raw)
	if err == nil && !q.Has("sslmode") && remote(c.ConnConfig) {
		// What the driver does otherwise is to go on without TLS if the server has none.
		q.Set("sslmode", "verify-full")
		u.RawQuery = q.Encode()
		c, err = pgxpool.ParseConfig(u.String())
	}
	if err != nil {
		return nil, "", fmt.Errorf("store: the URL of the PostgreSQL database cannot be used: %s", redact(cause(err), secrets(u, q)...))
	}
	schema := defaultSchema
	if path, ok := c.ConnConfig.RuntimeParams["search_path"]; ok {
		if schema = strings.Trim(path, `" `); schema == "" || strings.ContainsAny(schema, `,"$`) {
			return nil, "", fmt.Errorf("store: the search_path of the URL is %q: it must name one schema", path)
		}
	}
	params := c.ConnConfig.RuntimeParams
	params["search_path"] = pgx.Identifier{schema}.Sanitize()
	params["client_encoding"] = "UTF8"
	if params["application_name"] == "" {
		params["application_name"] = "cardea"
	}
	params["statement_timeout"] = milliseconds(statementTimeout)
	params["lock_timeout"] = milliseconds(lockTimeout)
	params["idle_in_transaction_session_timeout"] = milliseconds(idleReader)
	if c.ConnConfig.ConnectTimeout == 0 {
		c.ConnConfig.ConnectTimeout = connectTimeout
	}
	// A standby would show what is old, and might be promoted under us.
	c.ConnConfig.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsPrimary
	c.PingTimeout = connectTimeout
	if !q.Has("pool_max_conns") {
		c.MaxConns = poolSize
	}
	return c, schema, nil
}

// writer returns the config of a connection that is not in the pool.
func writer(c *pgxpool.Config) *pgx.ConnConfig {
	w := c.ConnConfig.Copy()
	w.RuntimeParams["idle_in_transaction_session_timeout"] = milliseconds(idleWriter)
	return w
}

func milliseconds(d time.Duration) string { return fmt.Sprint(d.Milliseconds()) }

// remote reports whether any of the servers is reached over a network.
func remote(c *pgx.ConnConfig) bool {
	hosts := []string{c.Host}
	for _, f := range c.Fallbacks {
		hosts = append(hosts, f.Host)
	}
	for _, h := range hosts {
		if network, _ := pgconn.NetworkAddress(h, 0); network == "unix" || h == "localhost" {
			continue
		}
		if a, err := netip.ParseAddr(h); err != nil || !a.Unmap().IsLoopback() {
			return true
		}
	}
	return false
}

// place returns where the database is, for people.
func place(c *pgx.ConnConfig, schema string) string {
	address := net.JoinHostPort(c.Host, fmt.Sprint(c.Port))
	if network, _ := pgconn.NetworkAddress(c.Host, c.Port); network == "unix" {
		address = c.Host
	}
	return fmt.Sprintf("PostgreSQL at %s, database %s, schema %s", address, c.Database, schema)
}

// misplaced reports whether a URL without a user has an @ where a password puts it that has
// a / or the like: part of it would be the name of a database, which is no secret.
func misplaced(u *url.URL, q url.Values) bool {
	for key := range q {
		if strings.Contains(key, "@") {
			return true
		}
	}
	return strings.Contains(u.EscapedPath()+u.EscapedFragment(), "@")
}

// cause is what the driver says of a URL, without the URL, which it quotes first.
func cause(err error) string {
	if e, ok := errors.AsType[*pgconn.ParseConfigError](err); ok && e.Unwrap() != nil {
		return e.Unwrap().Error()
	}
	text := err.Error()
	return strings.TrimPrefix(text[strings.LastIndex(text, "`")+1:], ": ")
}

// secrets returns what of a URL nobody may see, as it is and as it is written.
func secrets(u *url.URL, q url.Values) []string {
	password, _ := u.User.Password()
	all := []string{password, q.Get("password"), q.Get("sslpassword")}
	for _, s := range all {
		all = append(all, url.QueryEscape(s), url.PathEscape(s))
	}
	return all
}

// redact returns text without secrets.
func redact(text string, secrets ...string) string {
	for _, s := range secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, "xxxxx")
		}
	}
	return text
}
