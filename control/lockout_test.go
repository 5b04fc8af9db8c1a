package control

import (
	"context"
	"testing"

	"cardea/api"
	"cardea/policy/local"
	"cardea/store"
	"cardea/store/memory"
)

// proposed decides on the state of a transaction by copying it into another store.
func proposed(t *testing.T, w *world) func(context.Context, store.Reader, api.Request) (api.Decision, error) {
	return func(_ context.Context, tx store.Reader, r api.Request) (api.Decision, error) {
		st := memory.New()
		defer st.Close()
		_, err := st.Update(t.Context(), "test", func(to store.Tx) error {
			for rec, err := range tx.List(api.GroupCore, "") {
				if err != nil {
					return err
				}
				if err := to.Put(rec); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return api.Decision{}, err
		}
		d := &local.Decider{Store: st, Identity: w.Verifier, Log: quiet(), Now: w.Now}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			d.Run(ctx)
		}()
		defer func() { stop(); <-ended }()
		if err := d.Ready(ctx); err != nil {
			return api.Decision{}, err
		}
		return d.Decide(ctx, r)
	}
}
