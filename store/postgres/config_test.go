package postgres

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		url, place string
		tls        bool // TLS is asked for, and the name of the server verified
	}{
		{"postgres://u:p@db.example/app", "PostgreSQL at db.example:5432, database app, schema cardea", true},
		{"postgresql://u@10.0.0.1:6000/app?search_path=other", "PostgreSQL at 10.0.0.1:6000, database app, schema other", true},
		{"postgres://u@db1,db2:5433/app", "PostgreSQL at db1:5432, database app, schema cardea", true},
		{"postgres://u@localhost/app?sslmode=disable", "PostgreSQL at localhost:5432, database app, schema cardea", false},
		{"postgres://u@db.example/app?sslmode=disable", "PostgreSQL at db.example:5432, database app, schema cardea", false},
		{"postgres:///app?host=/run/postgresql&user=u", "PostgreSQL at /run/postgresql, database app, schema cardea", false},
		{"postgres://u@[::1]:7/app?sslmode=disable", "PostgreSQL at [::1]:7, database app, schema cardea", false},
	} {
		config, schema, err := parse(c.url)
		if err != nil {
			t.Errorf("%s: %v", c.url, err)
			continue
		}
		if got := place(config.ConnConfig, schema); got != c.place {
			t.Errorf("%s is %s, want %s", c.url, got, c.place)
		}
		if tls := config.ConnConfig.TLSConfig; (tls != nil && tls.ServerName != "" && !tls.InsecureSkipVerify) != c.tls {
			t.Errorf("%s: TLS %+v, want %v", c.url, tls, c.tls)
		}
		for _, f := range config.ConnConfig.Fallbacks {
			if c.tls && (f.TLSConfig == nil || f.TLSConfig.InsecureSkipVerify) {
				t.Errorf("%s goes on without TLS", c.url)
			}
		}
		if app := writer(config).RuntimeParams["application_name"]; app != "cardea" {
			t.Errorf("%s: application_name is %q", c.url, app)
		}
	}
}

// What is wrong with a URL is said without what is secret in it.
func TestParseRefuses(t *testing.T) {
	for url, want := range map[string]string{
		"":                                         "no URL of a PostgreSQL database",
		"mysql://u:hunter2@db/app":                 "no URL of a PostgreSQL database",
		"host=db user=u password=hunter2":          "no URL of a PostgreSQL database",
		"postgres://u:hunter2@db:port/app":         "no URL of a PostgreSQL database",
		"postgres://u:hunter2@[::1/app":            "no URL of a PostgreSQL database",
		"postgres:hunter2@db x=":                   "no URL of a PostgreSQL database",
		"postgres:/hunter2@db x=":                  "no URL of a PostgreSQL database",
		"Postgres://u:hunter2@db/app x=":           "no URL of a PostgreSQL database",
		"postgres://u:0/hunter2@db/app":            "has an @ behind its host",
		"postgres://u:5432/hunter2@db/app":         "has an @ behind its host",
		"postgres://u:5432?hunter2@db/app":         "has an @ behind its host",
		"postgres://u:5432#hunter2@db/app":         "has an @ behind its host",
		"postgres://hunter2:0/app":                 "cannot be used: invalid port",
		"postgres://u:hunter2@db/app?sslmode=some": "sslmode is invalid",
		"postgres://u:hunter2@db/app?sslrootcert=/hunter2&password=hunter2": "cannot be used",
		"postgres://u:hunter2@db/app?search_path=a,b":                       "must name one schema",
		"postgres://u:hunter2@db/app?pool_max_conns=hunter2":                "cannot be used",
		"postgres://u:hunt%65r2@db/app?connect_timeout=hunter2":             "cannot be used",
	} {
		_, _, err := parse(url)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, want %q and no secret", url, err, want)
		}
	}
}

// FuzzParse: no URL makes trouble, and no error has its password.
func FuzzParse(f *testing.F) {
	f.Add("postgres://u:s3cr3t-canary@db:1/app?sslmode=x")
	f.Add("postgres://u:s3cr3t-canary@db,:x/app?search_path=\"")
	f.Add("postgres:s3cr3t-canary@ 0=")
	f.Add("postgres://?password=s3cr3t-canary&connect_timeout=x")
	f.Fuzz(func(t *testing.T, url string) {
		if len(url) > 4096 || strings.Contains(url, "sslrootcert") || strings.Contains(url, "sslcert") || strings.Contains(url, "service") || strings.Contains(url, "passfile") {
			return // they name files
		}
		_, _, err := parse(url)
		if err != nil && strings.Contains(url, ":s3cr3t-canary@") && strings.Contains(err.Error(), "s3cr3t-canary") {
			t.Errorf("%q: %v", url, err)
		}
	})
}
