package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"cardea/api"
	"cardea/relay"
	relaycopy "cardea/relay/copy"
	"cardea/relay/datagram"
	"cardea/tunnel"
)

const (
	// serveDialTimeout is how long the connection to what is served may take.
	serveDialTimeout = 10 * time.Second
	// maxServedDials is how many of these connections may be under way at once.
	maxServedDials = 1024
	// servedIdle bounds a flow of datagrams on which nothing passes, if the cluster, which
	// knows how long it may last, does not end it.
	servedIdle = 24 * time.Hour
)

// A Server serves Services from this device: it connects the streams that the cluster
// sends it to the URLs of these Services, as this device sees them.
//
// The cluster may change what it asks for, and whoever may write a Service there could so
// reach anything that this device reaches. So the first list of Services is pinned, each
// with its URL: nothing else is connected to, and a Service whose URL has changed is
// refused until a person agrees, by Agree or by starting anew.
//
// The fields are all that it needs; set them before the first use.
type Server struct {
	// AnyURL agrees to whatever the cluster says, for devices that nobody attends.
	AnyURL bool
	// Dial connects to HOST:PORT; nil is net.Dialer's. The connection is one of TCP, or
	// a stream as package relay wants it; of network "udp" it keeps datagrams apart.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Log  *slog.Logger

	once  sync.Once
	bytes *relaycopy.Engine
	flows *datagram.Engine
	all   sync.WaitGroup // of dials

	mu      sync.Mutex
	ctx     context.Context // of Run; nil while it does not run
	dialing int
	known   bool // Set was called
	list    []*served
	lives   map[*relaying]bool
	told    string // the refusal that was logged last
	telling window // of refusals
}

// maxTold is how many refusals are logged in a minute: who asks chooses their words.
const maxTold = 20

// A window counts what happens within a minute.
type window struct {
	from  time.Time
	count int
}

// next counts one more, and tells which of the minute it is.
func (w *window) next(now time.Time) int {
	if now.Sub(w.from) >= time.Minute {
		w.from, w.count = now, 0
	}
	w.count++
	return w.count
}

// A served is a Service as it is, and was agreed to.
type served struct {
	now         api.ServedService
	pinned      string // the URL that was agreed to; "" if none was
	listed      bool   // it is one of the last Set
	connections int
	trouble     string
	told        string // the problem that was logged last
}

// A relaying is a stream that is being relayed.
type relaying struct{ live relay.Live }

// An errand is what is to be done for a target that was asked for.
type errand struct {
	ctx     context.Context
	of      *served
	service string
	network string // "tcp" or "udp"
	address string // HOST:PORT
}

// ServeStatus is how it stands with a Service that this device serves.
type ServeStatus struct {
	Service string `json:"service"`
	Config  string `json:"config,omitempty"`
	URL     string `json:"url"` // the one that was agreed to; the cluster's if none was
	// Problem says why it is not served now; "" if it is.
	Problem     string `json:"problem,omitempty"`
	Connections int    `json:"connections,omitempty"` // live
	// Trouble is the last failure to connect to it, "" if the last attempt succeeded.
	Trouble string `json:"trouble,omitempty"`
}

func (s *Server) init() {
	s.once.Do(func() { s.bytes, s.flows, s.lives = relaycopy.New(), datagram.New(), map[*relaying]bool{} })
}

// Run lets streams in until ctx is done; then it cuts them, and returns when nothing that
// was begun goes on.
func (s *Server) Run(ctx context.Context) error {
	s.init()
	s.mu.Lock()
	s.ctx = ctx
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.ctx = nil
	var lives []relay.Live
	for x := range s.lives {
		lives = append(lives, x.live)
	}
	s.mu.Unlock()
	for _, l := range lives {
		l.Cut(relay.Drained)
	}
	s.all.Wait()
	s.bytes.Wait()
	s.flows.Wait()
	return nil
}

// Set says what the cluster has this device serve: the complete list each time. The first
// one is agreed to. Connections to what is not there any more go on: the cluster ends
// those that have lost their right.
func (s *Server) Set(list []api.ServedService) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.list {
		x.listed = false
	}
	for _, now := range list {
		x := s.find(api.ServeTarget(now.Service, now.Config))
		if x == nil {
			x = new(served)
			s.list = append(s.list, x)
		}
		x.now, x.listed = now, true
		if !s.known || s.AnyURL {
			s.agree(x)
		}
	}
	s.known = true
	s.list = slices.DeleteFunc(s.list, func(x *served) bool {
		return !x.listed && x.connections == 0 && (x.pinned == "" || s.AnyURL)
	})
	for _, x := range s.list {
		if words := x.problem(); words != x.told {
			if x.told = words; words != "" && x.listed {
				s.Log.Warn("not served: "+words, "service", x.now.Service, "config", x.now.Config)
			}
		}
	}
}

// Agree agrees to what the last Set says: each Service, and its URL.
func (s *Server) Agree() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.list {
		if x.listed {
			s.agree(x)
		}
	}
}

// agree pins the URL that a Service has now. mu must be held.
func (s *Server) agree(x *served) {
	if x.now.URL == "" || x.pinned == x.now.URL {
		return
	}
	if x.pinned != "" {
		s.Log.Info("serving another URL", "service", x.now.Service, "config", x.now.Config, "url", x.now.URL, "before", x.pinned)
	}
	x.pinned, x.told, x.trouble = x.now.URL, "", ""
}

// find returns what has a target, nil if nothing does. mu must be held.
func (s *Server) find(target string) *served {
	i := slices.IndexFunc(s.list, func(x *served) bool { return api.ServeTarget(x.now.Service, x.now.Config) == target })
	if i < 0 {
		return nil
	}
	return s.list[i]
}

// problem says why a Service is not served now, "" if it is.
func (x *served) problem() string {
	_, _, unusable := dialable(x.now.URL)
	switch {
	case !x.listed:
		return "the cluster does not have this device serve it any more"
	case x.now.Problem != "":
		return x.now.Problem
	case unusable != "":
		return unusable
	case x.pinned == "":
		return fmt.Sprintf("it was not there when this device began to serve, and nobody has agreed to its URL, %s: connect anew, or with --serve-any-url", x.now.URL)
	case x.pinned != x.now.URL:
		return fmt.Sprintf("its URL has changed from %s to %s, and nobody has agreed to that: connect anew, or with --serve-any-url", x.pinned, x.now.URL)
	}
	return ""
}

// Status returns how it stands with all Services that were ever to be served, in the order
// of their names.
func (s *Server) Status() []ServeStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []ServeStatus
	for _, x := range s.list {
		url := x.pinned
		if url == "" {
			url = x.now.URL
		}
		list = append(list, ServeStatus{x.now.Service, x.now.Config, url, x.problem(), x.connections, x.trouble})
	}
	slices.SortFunc(list, func(a, b ServeStatus) int {
		return strings.Compare(api.ServeTarget(a.Service, a.Config), api.ServeTarget(b.Service, b.Config))
	})
	return list
}

// Handle takes a stream that is to go to a target (see [api.ServeTarget]), and returns at
// once. The stream, which is told a Verdict if it is a [tunnel.Teller], is the Server's
// from then on.
func (s *Server) Handle(target string, conn net.Conn) {
	s.init()
	e, words := s.admit(target)
	if words != "" {
		refuse(conn, words)
		return
	}
	go func() { // admit has counted it
		defer s.left()
		s.connect(e, conn)
	}()
}

// admit says what is to be done for a target, or why it is refused. Who is let in calls
// left when that is done.
func (s *Server) admit(target string) (e errand, words string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, words = s.errand(target); words == "" {
		s.dialing++
		s.all.Add(1)
	} else if line := fmt.Sprintf("%.300q: %s", target, words); line != s.told { // not once for each that asks
		s.told = line
		switch n := s.telling.next(time.Now()); {
		case n <= maxTold:
			s.Log.Warn("refused to serve " + line)
		case n == maxTold+1:
			s.Log.Warn("the cluster asks again and again for what this device does not serve; no more is said of that for a minute")
		}
	}
	return e, words
}

// errand does the work of admit. mu must be held.
func (s *Server) errand(target string) (e errand, words string) {
	x := s.find(target)
	switch {
	case s.ctx == nil || s.ctx.Err() != nil:
		return e, "this device does not serve now"
	case x == nil:
		return e, "this device does not serve it"
	case x.problem() != "":
		return e, x.problem()
	case s.dialing >= maxServedDials:
		return e, "this device is making too many connections"
	}
	network, address, _ := dialable(x.pinned) // or there were a problem
	return errand{s.ctx, x, x.now.Service, network, address}, ""
}

// left ends what admit has begun.
func (s *Server) left() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dialing--
	s.all.Done()
}

// dialable returns how a URL is reached, or why it cannot be. TLS, if the URL says that, is
// spoken by the cluster, which verifies whom it reaches: here its bytes go through.
func dialable(url string) (network, address, words string) {
	ends, err := (&api.Upstream{URL: url}).Endpoints()
	switch {
	case err != nil:
		return "", "", fmt.Sprintf("the URL %.300q %v", url, err)
	case ends[0].Port == 0:
		return "", "", fmt.Sprintf("the URL %.300q must say a port", url)
	case ends[0].UDP:
		return "udp", ends[0].Address(), ""
	}
	return "tcp", ends[0].Address(), ""
}

// connect connects a stream to what it is to go to, and gives both to the relay.
func (s *Server) connect(e errand, conn net.Conn) {
	dial := s.Dial
	if dial == nil {
		plain := new(net.Dialer)
		plain.SetMultipathTCP(false) // the relay splices plain TCP
		dial = plain.DialContext
	}
	within, cancel := context.WithTimeout(e.ctx, serveDialTimeout)
	up, err := dial(within, e.network, e.address)
	cancel()
	words := ""
	if err != nil {
		words = explainServed(e.address, err)
	}
	s.mu.Lock()
	before := e.of.trouble
	e.of.trouble = words
	s.mu.Unlock()
	if err != nil {
		if before != words && e.ctx.Err() == nil {
			s.Log.Warn("what is served does not answer: "+words, "service", e.service)
		}
		refuse(conn, words)
		return
	}
	if err := verdict(conn, api.Verdict{Code: api.VerdictOK}); err != nil {
		relay.Reset(up, relay.ClientReset) // who asked has gone
		relay.Reset(conn, relay.ClientReset)
		return
	}
	s.relay(e, conn, up)
}

// relay gives a pair to the engine.
func (s *Server) relay(e errand, conn, up net.Conn) {
	x, one := e.of, new(relaying)
	var engine relay.Engine = s.bytes
	pair := relay.Pair{Client: conn, Upstream: up}
	if e.network == "udp" {
		engine, pair.Client, pair.Limits.Idle = s.flows, relay.Messages(conn), servedIdle
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx == nil || s.ctx.Err() != nil {
		relay.Reset(up, relay.Drained)
		relay.Reset(conn, relay.Drained)
		return
	}
	x.connections++
	s.lives[one] = true
	one.live = engine.Start(pair, func(relay.Result) {
		s.mu.Lock()
		defer s.mu.Unlock()
		x.connections--
		delete(s.lives, one)
	})
}

// refuse tells a stream that nothing comes of it.
func refuse(conn net.Conn, words string) {
	if verdict(conn, api.Verdict{Code: api.VerdictUnavailable, Words: words}) == nil {
		conn.Close()
		return
	}
	relay.Reset(conn, relay.DialFailed)
}

// verdict tells a stream a Verdict, if it takes one. What takes none can only be reset.
func verdict(conn net.Conn, v api.Verdict) error {
	if t, ok := conn.(tunnel.Teller); ok {
		return t.Verdict(v)
	}
	if v.Code != api.VerdictOK {
		return errors.New("the stream takes no verdict")
	}
	return nil
}

// explainServed says why an address could not be connected to, and the way out.
func explainServed(address string, err error) string {
	_, isDNS := errors.AsType[*net.DNSError](err)
	switch {
	case isDNS:
		return fmt.Sprintf("%s: this device cannot resolve the name", address)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("%s: nothing listens there, as this device sees it", address)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Sprintf("%s: no answer to this device within %v", address, serveDialTimeout)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return fmt.Sprintf("%s: this device has no route to it", address)
	}
	return fmt.Sprintf("%s: %v", address, err)
}
