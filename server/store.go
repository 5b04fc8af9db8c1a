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
	// claim takes the right to write to it of all processes alone, and keep keeps that;
	// nil if the lock of the data directory is enough.
	claim func(context.Context) (keep func(context.Context) error, err error)
	held  func(context.Context) error // what claim has returned; nil before
}

// openStore opens the store of a cluster, which this process is to have for itself if
// it is alone.
func openStore(ctx context.Context, cfg Config, alone bool) (*runningStore, error) {
	if cfg.Store == "" {
		st, err := sqlite.Open(ctx, filepath.Join(cfg.DataDir, storeFile), sqlite.Options{Program: cfg.Version, Log: cfg.Log})
		if err != nil {
			return nil, err
		}
		return &runningStore{Store: st, run: []func(context.Context) error{keep(st.Run)}}, nil // the directory is locked
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
	r := &runningStore{Store: st, run: []func(context.Context) error{keep(st.Run)}}
	r.claim = func(ctx context.Context) (func(context.Context) error, error) {
		c, err := st.Claim(ctx)
		if err != nil {
			return nil, err
		}
		return c.Run, nil
	}
	if alone {
		if r.held, err = r.claim(ctx); err != nil {
			return nil, errors.Join(err, st.Close())
		}
	}
	return r, nil
}

// keep returns what never fails as what may.
func keep(run func(context.Context)) func(context.Context) error {
	return func(ctx context.Context) error {
		run(ctx)
		return nil
	}
}
