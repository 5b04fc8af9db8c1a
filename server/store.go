package server

import (
	"context"
	"errors"
	"net/url"
	"path/filepath"
	"strings"

	"cardea/api"
	"cardea/store"
	"cardea/store/postgres"
	"cardea/store/sqlite"
)

// A runningStore is a store that is this process's alone, and keeps itself in
// order while run runs.
type runningStore struct {
	store.Store
	run []func(context.Context) error
}

// openStore opens the store of a cluster.
func openStore(ctx context.Context, cfg Config) (*runningStore, error) {
	if cfg.Store == "" {
		st, err := sqlite.Open(ctx, filepath.Join(cfg.DataDir, storeFile), sqlite.Options{Program: cfg.Version, Log: cfg.Log})
		if err != nil {
			return nil, err
		}
		return &runningStore{st, []func(context.Context) error{keep(st.Run)}}, nil // the directory is locked
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
	claim, err := st.Claim(ctx)
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return &runningStore{st, []func(context.Context) error{keep(st.Run), claim.Run}}, nil
}

// keep returns what never fails as what may.
func keep(run func(context.Context)) func(context.Context) error {
	return func(ctx context.Context) error {
		run(ctx)
		return nil
	}
}
