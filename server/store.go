package server

import (
	"context"
	"net/url"
	"path/filepath"
	"strings"

	"cardea/api"
	"cardea/store"
	"cardea/store/postgres"
	"cardea/store/sqlite"
)

// A runningStore is a store that keeps itself in order while Run runs.
type runningStore interface {
	store.Store
	Run(context.Context)
}

// openStore opens the store of a cluster.
func openStore(ctx context.Context, cfg Config) (runningStore, error) {
	if cfg.Store == "" {
		st, err := sqlite.Open(ctx, filepath.Join(cfg.DataDir, storeFile), sqlite.Options{Program: cfg.Version, Log: cfg.Log})
		if err != nil {
			return nil, err // and no store, not even one of a type
		}
		return st, nil
	}
	u, err := url.Parse(cfg.Store)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		scheme, _, _ := strings.Cut(cfg.Store, ":") // and nothing else: a URL can hold a password
		e := api.Errorf(api.CodeInvalid, "--store: %.20q is no store that is known", scheme)
		e.Hint = "use postgres://USER@HOST/DATABASE, or leave it out to keep resources in the data directory"
		return nil, e
	}
	st, err := postgres.Open(ctx, cfg.Store, postgres.Options{Program: cfg.Version, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	return st, nil
}
