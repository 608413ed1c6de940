package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow/go/v17/arrow/flight"
	flightrpc "github.com/apache/arrow/go/v17/arrow/flight/gen/flight"
	"google.golang.org/grpc"

	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/internal/leak"
	"github.com/skein-ml/skein/internal/vfs"
)

func TestMain(m *testing.M) { leak.Main(m) }

var plainText = Security{PlainText: true}

// byteEncoder is a tokenizer of bytes.
type byteEncoder struct{}

func (byteEncoder) Info() data.EncoderInfo {
	return data.EncoderInfo{TokenizerHash: "bytes", Vocab: 257, BOS: -1, End: []int32{256}}
}

func (byteEncoder) Text(text string, trained int) (ids []int32, target []bool, err error) {
	for i := range len(text) {
		ids, target = append(ids, int32(text[i])), append(target, i >= trained)
	}
	return ids, target, nil
}

func (byteEncoder) Chat([]data.Message, json.RawMessage) ([]int32, []bool, error) {
	return nil, nil, errors.New("no template")
}

// openSet prepares and opens a data set of about so many packs of seqLen tokens, made from a seed.
func openSet(t testing.TB, seqLen, packs int, seed uint64) *data.Dataset {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	var b strings.Builder
	for n := 0; n < seqLen*packs; {
		length := 1 + rng.IntN(2*seqLen)
		n += length
		fmt.Fprintf(&b, `{"text":"%0*x"}`+"\n", length, rng.Uint64())
	}
	fsys := vfs.NewMem()
	must(t, fsys.MkdirAll("/in"))
	must(t, vfs.WriteFile(fsys, "/in/rows.jsonl", []byte(b.String())))
	spec := data.Spec{Train: []string{"/in/rows.jsonl"}, SequenceLength: seqLen, Packing: true, CacheDir: "/out"}
	p, err := data.Prepare(t.Context(), fsys, spec, byteEncoder{})
	must(t, err)
	d, err := data.Open(fsys, p.Train)
	must(t, err)
	return d
}

// sets that several tests read, made once.
var (
	small = sync.OnceValue(func() *data.Dataset { return openSet(quiet{}, 16, 2_500, 1) })  // 20 records
	large = sync.OnceValue(func() *data.Dataset { return openSet(quiet{}, 16, 20_000, 2) }) // 160 records
)

// quiet is a testing.TB for what is made outside of a test.
type quiet struct{ testing.TB }

func (quiet) Helper()                  {}
func (quiet) Context() context.Context { return context.Background() }
func (quiet) Fatal(a ...any)           { panic(fmt.Sprint(a...)) }

func hashOf(d *data.Dataset) string { return d.Manifest().ContentHash }

// serve runs a server of these sets and gives its address.
func serve(t testing.TB, s Security, sets ...*data.Dataset) (string, *Server) {
	t.Helper()
	srv, err := NewServer(ServerConfig{Security: s})
	must(t, err)
	for _, d := range sets {
		must(t, srv.Add(d))
	}
	l := listen(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Serve(l); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() { srv.Close(); wg.Wait() })
	return l.Addr().String(), srv
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	return l
}

// open opens a client with short waits, which ends with the test.
func open(t testing.TB, c Config) *Client {
	t.Helper()
	cl, err := openConfig(t, c)
	must(t, err)
	t.Cleanup(func() { must(t, cl.Close()) })
	return cl
}

func openConfig(t testing.TB, c Config) (*Client, error) {
	t.Helper()
	if c.TLS == nil {
		c.PlainText = true
	}
	if c.WaitMax == 0 {
		c.WaitMax = 20 * time.Second
	}
	return Open(t.Context(), c)
}

// liar is a server with an answer of its own to DoGet or to the index, and the good server's to all else.
type liar struct {
	*Server
	get    func(req *flight.Ticket, out flight.FlightService_DoGetServer) error
	action func(out flight.FlightService_DoActionServer) error
}

func (l *liar) DoGet(req *flight.Ticket, out flight.FlightService_DoGetServer) error {
	if l.get == nil {
		return l.Server.DoGet(req, out)
	}
	return l.get(req, out)
}

func (l *liar) DoAction(a *flight.Action, out flight.FlightService_DoActionServer) error {
	if l.action == nil {
		return l.Server.DoAction(a, out)
	}
	return l.action(out)
}

// serveLies runs a liar and gives its address.
func serveLies(t testing.TB, d *data.Dataset, l *liar) string {
	t.Helper()
	var err error
	l.Server, err = NewServer(ServerConfig{Security: plainText})
	must(t, err)
	must(t, l.Server.Add(d))
	g := grpc.NewServer()
	flightrpc.RegisterFlightServiceServer(g, l)
	lis := listen(t)
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(lis) }) // until Stop
	t.Cleanup(func() { g.Stop(); wg.Wait() })
	return lis.Addr().String()
}

// changed passes on what the good server sends, each message through f: what it returns is sent.
type changed struct {
	flight.FlightService_DoGetServer
	n    int                // of the message, from 0, the schema
	kept *flight.FlightData // by f
	f    func(c *changed, m *flight.FlightData) []*flight.FlightData
}

func (c *changed) Send(m *flight.FlightData) error {
	list := c.f(c, m)
	c.n++
	for _, m := range list {
		if err := c.FlightService_DoGetServer.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// samePacks fails unless client and data set give the same batch.
func samePacks(t testing.TB, want *data.Dataset, got *Client, indices []int64) {
	t.Helper()
	var a, b data.Batch
	must(t, want.Batch(t.Context(), indices, &a))
	must(t, got.Batch(t.Context(), indices, &b))
	if !reflect.DeepEqual(a, b) {
		t.Fatalf("batch of %d packs from %v differs", len(indices), indices[:min(len(indices), 8)])
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantError fails unless err is one line that holds all of parts.
func wantError(t testing.TB, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error of several lines: %v", err)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q lacks %q", err, p)
		}
	}
}
