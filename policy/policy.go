// Package policy is the policy decision point (PDP): it answers one question,
// whether a request may pass, and tells when an answer may no longer hold.
//
// Its implementation lives beside it: local, a compiled snapshot in this process.
// Package policytest holds the contract that every implementation passes.
package policy

import (
	"context"
	"errors"
	"iter"

	"cardea/api"
)

// A Decider answers requests.
//
// # The caller's duty
//
// An error is not an answer. For a first decision it counts as a DENY, also
// beside an ALLOW. For the renewal of a decision that is held it changes
// nothing: the lease runs on, the question is asked again, and the end of the
// lease cuts. A DENY cuts at once.
//
// The first decision about a unit of work turns evidence into a Session, and every
// later one names that Session's uid. Where nobody asked who the caller is there
// is no Session, and every decision gets the same anonymous evidence; only who
// made that in this process may pass it on. A request with a Route is about nobody
// in any case, whatever its evidence; the answer then has no config and no limits,
// which the caller knows.
//
// Whoever holds decisions follows Changes from the revision of the first one,
// and on a Change asks again for exactly the held decisions whose DependsOn
// names one of its Keys, with AtLeast set to its Revision.
//
// # The callee's duty
//
// Decide never answers from data older than Request.AtLeast: it waits or
// returns ErrBehind. DependsOn is complete: no write to anything that it does
// not name changes the answer. A decision that is in process takes no lock and
// does not block.
type Decider interface {
	Decide(ctx context.Context, r api.Request) (api.Decision, error)

	// Changes yields every Change after from, in order, and a Change without Keys
	// at least once a second, until ctx is done or it yields an error, which is
	// the last. A Change is yielded after Decide answers from its Revision.
	Changes(ctx context.Context, from api.Revision) iter.Seq2[api.Change, error]
}

// An Explainer decides and shows what it considered. If user is not "" it stands
// for a User who may have no Session: then the decision is the one that a new
// Session would get, and the evidence and Session of the request do not count.
type Explainer interface {
	Explain(ctx context.Context, r api.Request, user string) (api.Explanation, error)
}

// ErrBehind says that a Decider has not reached the revision that was asked for.
var ErrBehind = errors.New("policy: not yet at the revision that was asked for")
