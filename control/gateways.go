package control

import (
	"context"

	"cardea/api"
	"cardea/store"
)

// PutGateway stores what a Gateway says of itself. Nobody else writes Gateways, and what
// is as it was is no write.
func (s *Server) PutGateway(ctx context.Context, g *api.Gateway) error {
	g.Default()
	_, err := s.Store.Update(ctx, actorSystem, func(tx store.Tx) error { return s.ensure(tx, api.Clone(g)) })
	return err
}
