package proxy_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/proxy"
	"cardea/proxy/proxytest"
)

// line is a mode that looks into its traffic: each line is a unit of work.
func line() proxy.Mode {
	return proxy.Mode{Name: "LINE", New: func(*api.Service) (proxy.Handler, error) { return handler{}, nil }}
}

type handler struct{}

func (handler) Serve(ctx context.Context, c *proxy.Conn) error {
	conn, err := c.Authorize(ctx, proxy.Ask{})
	if err != nil {
		return err
	}
	up, err := conn.Dial(ctx)
	if err != nil {
		return err
	}
	defer up.Close()
	in, out := bufio.NewReader(c), bufio.NewReader(up)
	for {
		s, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		unit, err := c.Authorize(ctx, proxy.Ask{Facts: &api.Facts{IP: "192.0.2.1", API: &api.APIFacts{Verb: s}}})
		if err != nil {
			return err
		}
		if _, err := io.WriteString(up, s); err != nil {
			return err
		}
		if s, err = out.ReadString('\n'); err != nil {
			return err
		}
		unit.End(api.AccessLogInfo{})
		if _, err := io.WriteString(c, s); err != nil {
			return err
		}
	}
}

func service() *api.Service {
	return &api.Service{Head: api.Head{Metadata: api.Metadata{Name: "svc.default"}}, Spec: api.ServiceSpec{Mode: "LINE"}}
}

// A mode that looks into its traffic keeps the same promises as one that does not.
func TestLine(t *testing.T) {
	proxytest.Run(t, proxytest.Subject{Mode: line(), Service: service(), Say: proxytest.Lines})
}

func TestUnitsAreDecidedAndRecordedOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := proxytest.Start(t, line(), service(), 0)
		c := w.Connect("ann")
		r := bufio.NewReader(c)
		before := w.Decider.Asked()
		for range 3 {
			if got, err := proxytest.Lines(c, r, "hello"); err != nil || got != "hello" {
				t.Fatalf("read %q, %v", got, err)
			}
		}
		if n := w.Decider.Asked() - before; n < 3 {
			t.Errorf("three units were decided %d times", n)
		}
		c.Reset("done")
		synctest.Wait()
		var units []int64
		recs := w.Journal.Records()
		for _, rec := range recs {
			if rec.Entry.Info.TCP == nil {
				units = append(units, rec.Entry.Common.Sequence)
			}
			if rec.Entry.Common.ConnectionID != recs[0].Entry.Common.ConnectionID {
				t.Errorf("a record of another connection: %+v", rec)
			}
		}
		if !slices.IsSorted(units) || len(units) != 3 {
			t.Errorf("sequence of the units = %v", units)
		}
	})
}

// Units of work that the log cannot take are refused before they are many: what is
// owed to the log takes no more memory than that.
func TestUnitsAreRefusedWhenTooMuchIsOwed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := proxytest.Start(t, line(), service(), 0)
		c := w.Connect("ann")
		r := bufio.NewReader(c)
		proxytest.Lines(c, r, "hello")
		w.Journal.Fail(errors.New("disk full"))
		served := 0
		for served < 10000 {
			if _, err := proxytest.Lines(c, r, "hello"); err != nil {
				break
			}
			served++
		}
		synctest.Wait()
		if n := w.Gate.Stats().Owed; served != 1000 || n != served+1 { // and END
			t.Errorf("%d units were served, and %d records are owed", served, n)
		}
		w.Journal.Fail(nil)
		time.Sleep(2 * time.Second)
		if n := w.Gate.Stats().Owed; n != 0 {
			t.Errorf("%d records are still owed", n)
		}
		c = w.Connect("ann")
		if _, err := proxytest.Lines(c, bufio.NewReader(c), "hello"); err != nil {
			t.Errorf("after that: %v", err)
		}
	})
}

// A Service that was removed while a Handler waited is not carried blindly.
func TestRemovedServiceIsNotCarriedBlindly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := proxytest.Start(t, line(), service(), 0)
		w.Gate.Remove("svc.default")
		c := w.Connect("ann")
		if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("the client saw %v", err)
		}
		if w.Dials() != 0 {
			t.Errorf("dialled %d times", w.Dials())
		}
	})
}
