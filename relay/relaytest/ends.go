package relaytest

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"cardea/relay"
)

// endTests are those in which much happens at the end of a relay, over every joint.
func endTests() []rigTest {
	return []rigTest{
		{"client half-closes amid bulk", testClientHalfClosesAmidBulk},
		{"upstream half-closes amid bulk", testUpstreamHalfClosesAmidBulk},
		{"client resets amid bulk", testClientResetsAmidBulk},
		{"upstream resets amid bulk", testUpstreamResetsAmidBulk},
		{"upstream closes amid bulk", testUpstreamClosesAmidBulk},
		{"byte by byte", testByteByByte},
	}
}

// testClientHalfClosesAmidBulk ends one direction while megabytes wait in the other.
func testClientHalfClosesAmidBulk(r *rig) {
	testHalfCloseAmidBulk(r, r.client, r.upstream)
	r.carried(r.ends(relay.ClientClosed), 0, inFlight)
}

func testUpstreamHalfClosesAmidBulk(r *rig) {
	testHalfCloseAmidBulk(r, r.upstream, r.client)
	r.carried(r.ends(relay.UpstreamClosed), inFlight, 0)
}

const inFlight = 8 << 20

func testHalfCloseAmidBulk(r *rig, one, other net.Conn) {
	content, sent := newStream(31), make(chan error, 1)
	go func() {
		_, err := content.sendTo(other, inFlight)
		sent <- err
	}()
	check := &checker{stream: content}
	if _, err := io.CopyN(check, one, 1); err != nil {
		r.t.Fatal(err)
	}
	closeWrite(r.t, one)
	r.readsEnd(other)
	if _, err := io.CopyN(check, one, inFlight-1); err != nil {
		r.t.Fatal(err)
	}
	if err := <-sent; err != nil {
		r.t.Fatal(err)
	}
	closeWrite(r.t, other)
	r.readsEnd(one)
}

func testClientResetsAmidBulk(r *rig) {
	testResetAmidBulk(r, r.client, r.upstream)
	r.ends(relay.ClientReset)
}

func testUpstreamResetsAmidBulk(r *rig) {
	testResetAmidBulk(r, r.upstream, r.client)
	r.ends(relay.UpstreamReset)
}

// testResetAmidBulk resets a sender. What arrives are its first bytes and a reset.
func testResetAmidBulk(r *rig, sender, receiver net.Conn) {
	content := newStream(32)
	go func() {
		content.sendTo(sender, 1<<40)
	}()
	check := &checker{stream: content}
	if _, err := io.CopyN(check, receiver, 4<<20); err != nil {
		r.t.Fatal(err)
	}
	relay.Reset(sender, relay.ClientReset)
	if _, err := io.Copy(check, receiver); !relay.IsReset(err) {
		r.t.Errorf("receiver sees %v, want a reset", err)
	}
}

// testUpstreamClosesAmidBulk has a receiver go before it has read all.
func testUpstreamClosesAmidBulk(r *rig) {
	content, sent := newStream(33), make(chan error, 1)
	go func() {
		_, err := content.sendTo(r.client, 1<<40)
		sent <- err
	}()
	if err := content.checkFrom(r.upstream, 4<<20); err != nil {
		r.t.Fatal(err)
	}
	r.upstream.Close()
	if err := <-sent; !relay.IsReset(err) {
		r.t.Errorf("sender sees %v, want a reset", err)
	}
	r.ends(relay.UpstreamReset)
}

// testByteByByte sends both ways in the smallest pieces.
func testByteByByte(r *rig) {
	const n = 1000
	content := newStream(34)
	var tasks sync.WaitGroup
	for _, way := range [][2]net.Conn{{r.client, r.upstream}, {r.upstream, r.client}} {
		tasks.Go(func() {
			for i := range n {
				if _, err := way[0].Write(content[i : i+1]); err != nil {
					r.t.Error(err)
					return
				}
			}
		})
		tasks.Go(func() {
			if err := content.checkFrom(way[1], n); err != nil {
				r.t.Error(err)
			}
		})
	}
	tasks.Wait()
	r.finishes(n, n)
}

// testLastBytes sends and finishes at once, at both ends.
func testLastBytes(t *testing.T, open Open) {
	for _, j := range joints {
		for _, size := range []int{1, 1000, 16 << 10, 16<<10 + 1, 1 << 20} {
			t.Run(fmt.Sprintf("%s/%d", j, size), func(t *testing.T) {
				run(t, open, j, func(r *rig) {
					content := newStream(35)
					var tasks sync.WaitGroup
					for _, c := range []net.Conn{r.client, r.upstream} {
						tasks.Go(func() {
							content.sendTo(c, size)
							closeWrite(t, c)
						})
						tasks.Go(func() {
							if err := content.checkAll(c, size); err != nil {
								t.Error(err)
							}
						})
					}
					tasks.Wait()
					r.carried(r.ends(relay.ClientClosed, relay.UpstreamClosed), size, size)
				})
			})
		}
	}
}

// testLastBytesBeforeReset sends and resets at once: what arrives, if anything, are
// the first bytes, and then a reset.
func testLastBytesBeforeReset(t *testing.T, open Open) {
	for _, j := range joints {
		for _, size := range []int{1, 1000, 16 << 10, 16<<10 + 1, 1 << 20} {
			t.Run(fmt.Sprintf("%s/%d", j, size), func(t *testing.T) {
				run(t, open, j, func(r *rig) {
					content := newStream(36)
					go func() {
						content.sendTo(r.client, size)
						relay.Reset(r.client, relay.ClientReset)
					}()
					if n, err := io.Copy(&checker{stream: content}, r.upstream); n > int64(size) || !relay.IsReset(err) {
						t.Errorf("upstream sees %v after %d bytes, want a reset", err, n)
					}
					r.ends(relay.ClientReset)
				})
			})
		}
	}
}

// testSimultaneousClose has both peers go at the same moment.
func testSimultaneousClose(t *testing.T, open Open) {
	for _, j := range []joint{{tcp4, tcp4}, {tcp6, tcp6}, {pipe, tcp4}} {
		t.Run(j.String(), func(t *testing.T) {
			for range 20 {
				run(t, open, j, func(r *rig) {
					r.passes(r.client, r.upstream, question)
					r.passes(r.upstream, r.client, answer)
					var tasks sync.WaitGroup
					tasks.Go(func() { r.client.Close() })
					tasks.Go(func() { r.upstream.Close() })
					tasks.Wait()
					r.carried(r.ends(relay.ClientClosed, relay.UpstreamClosed), len(question), len(answer))
				})
			}
		})
	}
}

// testStartedLate starts relays of streams whose end has come already.
func testStartedLate(t *testing.T, open Open) {
	tests := []struct {
		name string
		end  func(t *testing.T, peer, given net.Conn)
	}{
		{"reset", func(_ *testing.T, peer, _ net.Conn) { relay.Reset(peer, relay.ClientReset) }},
		{"reset after bytes", func(t *testing.T, peer, _ net.Conn) {
			io.WriteString(peer, question)
			relay.Reset(peer, relay.ClientReset)
		}},
		{"closed by whoever gave it", func(_ *testing.T, _, given net.Conn) { given.Close() }},
		{"reset by whoever gave it", func(_ *testing.T, _, given net.Conn) { relay.Reset(given, relay.ClientReset) }},
	}
	for _, tt := range tests {
		ended := func(l link) link {
			return link{l.name, func(t *testing.T) (net.Conn, net.Conn) {
				peer, given := l.open(t)
				tt.end(t, peer, given)
				return peer, given
			}}
		}
		for _, l := range []link{tcp4, tls13, pipe} {
			t.Run(tt.name+"/"+l.name, func(t *testing.T) {
				run(t, open, joint{ended(l), tcp4}, func(r *rig) {
					r.seesReset(r.upstream)
					r.ends(relay.ClientReset)
				})
				run(t, open, joint{tcp4, ended(l)}, func(r *rig) {
					r.seesReset(r.client)
					r.ends(relay.UpstreamReset)
				})
				run(t, open, joint{ended(l), ended(l)}, func(r *rig) {
					r.ends(relay.ClientReset, relay.UpstreamReset)
				})
			})
		}
	}
	finished := link{"finished", func(t *testing.T) (net.Conn, net.Conn) {
		peer, given := tcp4.open(t)
		io.WriteString(peer, question)
		closeWrite(t, peer)
		return peer, given
	}}
	t.Run("finished", func(t *testing.T) {
		run(t, open, joint{finished, finished}, func(r *rig) {
			for _, c := range []net.Conn{r.client, r.upstream} {
				r.reads(c, question)
				r.readsEnd(c)
			}
			r.carried(r.ends(relay.ClientClosed, relay.UpstreamClosed), len(question), len(question))
		})
	})
}
