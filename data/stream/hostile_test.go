package stream

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/arrow/go/v17/arrow/flight"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/data"
)

// through makes a liar whose streams are the good server's, each message changed by f.
func through(f func(c *changed, m *flight.FlightData) []*flight.FlightData) *liar {
	l := &liar{}
	l.get = func(req *flight.Ticket, out flight.FlightService_DoGetServer) error {
		return l.Server.DoGet(req, &changed{FlightService_DoGetServer: out, f: f})
	}
	return l
}

func one(m *flight.FlightData) []*flight.FlightData { return []*flight.FlightData{m} }

func clone(m *flight.FlightData) *flight.FlightData {
	return &flight.FlightData{DataHeader: slices.Clone(m.DataHeader), DataBody: slices.Clone(m.DataBody)}
}

// lies are what a server may do wrong to a stream, and what it is called.
func lies(other *data.Dataset) map[string]struct {
	liar *liar
	want string
} {
	endless := &liar{}
	endless.get = func(req *flight.Ticket, out flight.FlightService_DoGetServer) error {
		err := endless.Server.DoGet(req, out)
		for err == nil {
			err = out.Send(&flight.FlightData{DataHeader: []byte{1}, DataBody: make([]byte, 1000)})
		}
		return err
	}
	return map[string]struct {
		liar *liar
		want string
	}{
		"one bit of a record": {through(func(c *changed, m *flight.FlightData) []*flight.FlightData {
			if m = clone(m); c.n > 0 {
				m.DataBody[len(m.DataBody)/3] ^= 4
			}
			return one(m)
		}), "record"},
		"garbage metadata": {through(func(c *changed, m *flight.FlightData) []*flight.FlightData {
			if m = clone(m); c.n > 0 {
				for i := range m.DataHeader {
					m.DataHeader[i] = byte(i * 37)
				}
			}
			return one(m)
		}), "damaged"},
		"no body": {through(func(c *changed, m *flight.FlightData) []*flight.FlightData {
			return one(&flight.FlightData{DataHeader: m.DataHeader})
		}), "record"},
		"records out of order": {through(func(c *changed, m *flight.FlightData) []*flight.FlightData {
			if c.n == 1 {
				c.kept = clone(m)
				return nil
			}
			if c.n == 2 {
				return []*flight.FlightData{m, c.kept}
			}
			return one(m)
		}), "content hash"},
		"another data set's records": {&liar{get: func(_ *flight.Ticket, out flight.FlightService_DoGetServer) error {
			srv, _ := NewServer(ServerConfig{Security: plainText})
			if err := srv.Add(other); err != nil {
				return err
			}
			return srv.DoGet(&flight.Ticket{Ticket: ticketFor(other, 0, 1, 2, 3)}, out)
		}}, "content hash"},
		"a truncated stream": {through(func(c *changed, m *flight.FlightData) []*flight.FlightData {
			if c.n >= 2 {
				return nil
			}
			return one(m)
		}), "ended after 1 of"},
		"an empty stream": {through(func(*changed, *flight.FlightData) []*flight.FlightData { return nil }), "ended after no schema"},
		"no schema": {through(func(c *changed, m *flight.FlightData) []*flight.FlightData {
			if c.n == 0 {
				return nil
			}
			return one(m)
		}), "does not begin with a schema"},
		"a huge message": {through(func(c *changed, m *flight.FlightData) []*flight.FlightData {
			if c.n == 1 {
				m = &flight.FlightData{DataHeader: m.DataHeader, DataBody: make([]byte, 8<<20)}
			}
			return one(m)
		}), "larger than max"},
		"messages without end": {&liar{get: func(_ *flight.Ticket, out flight.FlightService_DoGetServer) error {
			for {
				if err := out.Send(&flight.FlightData{DataHeader: []byte{1}}); err != nil {
					return err
				}
			}
		}}, "record"},
		"records without end": {endless, "goes on after"},
	}
}

func ticketFor(d *data.Dataset, records ...int64) []byte {
	t := ticket{records: records}
	t.hash, _ = parseHash(hashOf(d))
	return t.encode()
}

func TestAServerThatLiesIsNamedAndAnotherOneUsed(t *testing.T) {
	d := small()
	for name, test := range lies(large()) {
		t.Run(name, func(t *testing.T) {
			bad := serveLies(t, d, test.liar)
			good, _ := serve(t, plainText, d)
			c := open(t, Config{Servers: []string{bad, good}, ContentHash: hashOf(d), Patience: calm})
			start := time.Now()
			samePacks(t, d, c, []int64{0, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 4000})
			if took := time.Since(start); took > stepDelayMax {
				t.Errorf("the batch took %v", took)
			}
			s := c.Stats().Servers[0]
			if s.Working || s.Address != bad {
				t.Errorf("the liar works, as it seems: %+v", s)
			}
			wantError(t, c.lastReason(0), test.want)
			if !c.Stats().Servers[1].Working {
				t.Errorf("the honest server is blamed: %+v", c.Stats().Servers[1])
			}
		})
	}
}

func (c *Client) lastReason(i int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.health[i].reason
}

func TestAServerThatAlwaysLiesFailsTheBatchByName(t *testing.T) {
	d := small()
	flip := lies(large())["one bit of a record"].liar
	bad := serveLies(t, d, flip)
	c := open(t, Config{Servers: []string{bad}, ContentHash: hashOf(d), WaitMax: time.Minute})
	c.mu.Lock()
	e := c.want(1)
	e.wrong = []int{wrongMax - 1} // it lied before, the pauses of which are not waited for here
	c.changed.Broadcast()
	c.mu.Unlock()
	var b data.Batch
	wantError(t, c.Batch(t.Context(), []int64{300}, &b), "record 1: no server has it", bad)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.wanted) != 0 {
		t.Errorf("%d records are still wanted", len(c.wanted))
	}
}

func TestAServerWhoseRecordIsUnreadableIsLeft(t *testing.T) {
	d := openSet(t, 16, 1_000, 7)
	bad, _ := serve(t, plainText, d)
	must(t, d.Close()) // its files are gone
	again := openSet(t, 16, 1_000, 7)
	if hashOf(again) != hashOf(d) {
		t.Fatal("the same rows give two data sets")
	}
	good, _ := serve(t, plainText, again)
	c := open(t, Config{Servers: []string{bad, good}, ContentHash: hashOf(d)})
	samePacks(t, again, c, []int64{0, 256, 600, 900})
	if s := c.Stats().Servers[0]; s.Working && s.Failures == 0 && c.Stats().Failures > 0 {
		t.Errorf("a server without files works, as it seems: %+v", s)
	}
}

func TestAnIndexThatDoesNotFollowFromTheHashIsRefused(t *testing.T) {
	d, other := small(), large()
	var chunks atomic.Int64
	for name, test := range map[string]struct {
		action func(out flight.FlightService_DoActionServer) error
		want   string
	}{
		"of another data set": {func(out flight.FlightService_DoActionServer) error {
			return out.Send(&flight.Result{Body: encodeIndex(other.Manifest().Index())})
		}, "another data set"},
		"truncated": {func(out flight.FlightService_DoActionServer) error {
			b := encodeIndex(d.Manifest().Index())
			return out.Send(&flight.Result{Body: b[:len(b)-1]})
		}, "bytes of hashes"},
		"empty": {func(flight.FlightService_DoActionServer) error { return nil }, "not an index"},
		"huge": {func(out flight.FlightService_DoActionServer) error {
			return out.Send(&flight.Result{Body: make([]byte, 4<<20)})
		}, "larger than max"},
		"endless": {func(out flight.FlightService_DoActionServer) error {
			err := out.Send(&flight.Result{Body: encodeIndex(d.Manifest().Index())})
			for ; err == nil; chunks.Add(1) {
				err = out.Send(&flight.Result{Body: make([]byte, indexChunk)})
			}
			return err
		}, "no end"},
		"of everything": {func(out flight.FlightService_DoActionServer) error {
			b := encodeIndex(d.Manifest().Index())
			b[20] = 0xff // packs
			return out.Send(&flight.Result{Body: b})
		}, "packs of 16 tokens"},
		"denied": {func(flight.FlightService_DoActionServer) error {
			return status.Error(codes.PermissionDenied, "not\nyou")
		}, "not you"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := serveLies(t, d, &liar{action: test.action})
			_, err := openConfig(t, Config{Servers: []string{bad}, ContentHash: hashOf(d)})
			wantError(t, err, "no server gives it", bad, test.want)
			good, _ := serve(t, plainText, d)
			c := open(t, Config{Servers: []string{bad, good}, ContentHash: hashOf(d)})
			samePacks(t, d, c, []int64{0, 256})
		})
	}
	if n := chunks.Load(); n > 40 { // what fits into the windows, twice
		t.Errorf("%d chunks of an endless index were read", n)
	}
}

func TestADataSetThatNobodyServesIsSaidSo(t *testing.T) {
	d, other := small(), large()
	a, _ := serve(t, plainText, other)
	b, _ := serve(t, plainText)
	_, err := openConfig(t, Config{Servers: []string{a, b}, ContentHash: hashOf(d)})
	wantError(t, err, "no server gives it", a, b, "is not served here (1 others are)", "is not served here (0 others are)")
}

func TestOpenWithoutAnyServerUpEnds(t *testing.T) {
	l := listen(t)
	addr := l.Addr().String()
	must(t, l.Close())
	_, err := openConfig(t, Config{Servers: []string{addr}, ContentHash: hashOf(small()), WaitMax: 300 * time.Millisecond})
	wantError(t, err, "waiting for a server", addr, "refused", "nothing came for 300ms")
}
