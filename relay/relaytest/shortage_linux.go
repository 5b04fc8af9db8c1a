package relaytest

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"cardea/relay"
)

// shortage makes every call that wants a descriptor fail with EMFILE until it is over.
func shortage(t *testing.T) (over func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	var pair [2]int
	if err := unix.Pipe2(pair[:], 0); err != unix.EMFILE {
		t.Fatalf("pipe2: %v, want EMFILE", err)
	}
	return func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
	}
}

// testNoDescriptors carries bulk while no descriptor is to be had, and so no pipe. That
// is no reason to lose a connection.
func testNoDescriptors(t *testing.T, open Open) {
	bulk := func(r *rig) {
		t.Helper()
		r.takes(r.begin, r.up(0, 8<<20), r.down(0, 8<<20))
	}
	t.Run("from the start", func(t *testing.T) {
		resting(t, open, func(engine relay.Engine) {
			r := &rig{t: t, results: make(chan relay.Result, 2)}
			var client, upstream net.Conn
			r.client, client = tcp4.open(t)
			r.upstream, upstream = tcp4.open(t)
			over := shortage(t)
			defer over()
			r.start(engine, relay.Pair{Client: client, Upstream: upstream})
			bulk(r)
			r.finishes(8<<20, 8<<20)
			engine.Wait()
			over()
			r.leave()
		})
	})
	t.Run("before bulk", func(t *testing.T) {
		run(t, open, joint{tcp4, tcp4}, func(r *rig) {
			r.passes(r.client, r.upstream, question)
			defer shortage(t)()
			bulk(r)
			r.finishes(8<<20+len(question), 8<<20)
		})
	})
	t.Run("after bulk", func(t *testing.T) {
		run(t, open, joint{tcp4, tcp4}, func(r *rig) {
			bulk(r)
			defer shortage(t)()
			bulk(r)
			r.finishes(16<<20, 16<<20)
		})
	})
	t.Run("amid bulk", func(t *testing.T) {
		resting(t, open, func(engine relay.Engine) {
			rigs := crowd(t, engine, joint{tcp4, tcp4}, 8)
			var floods []*flooding
			for _, r := range rigs {
				floods = append(floods, flood(r.client), flood(r.upstream))
			}
			zeros := make(stream, 1<<20)
			reads := func() {
				for _, r := range rigs {
					for _, c := range []net.Conn{r.client, r.upstream} {
						if err := zeros.checkFrom(c, 4<<20); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			reads()
			over := shortage(t)
			defer over()
			reads()
			for _, r := range rigs {
				r.live.Cut(relay.Revoked)
				r.ends(relay.Revoked)
			}
			for _, f := range floods {
				f.isReset(t)
			}
			engine.Wait()
			over()
			for _, r := range rigs {
				r.leave()
			}
		})
	})
}
