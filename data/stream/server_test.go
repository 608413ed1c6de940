package stream

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/flight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/data"
)

// stock is the Flight client that comes with Arrow: what other programs use.
func stock(t testing.TB, addr string) flight.Client {
	t.Helper()
	c, err := flight.NewClientWithMiddleware(addr, nil, nil, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	return c
}

func TestAnyFlightClientReadsTheDataSet(t *testing.T) {
	d := small()
	addr, _ := serve(t, plainText, d, large())
	c := stock(t, addr)
	list, err := c.ListFlights(t.Context(), &flight.Criteria{})
	must(t, err)
	found := map[string]int64{}
	for {
		info, err := list.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		found[info.FlightDescriptor.Path[0]] = info.TotalRecords
	}
	if len(found) != 2 || found[hashOf(d)] != d.Len() {
		t.Errorf("flights %v", found)
	}
	info, err := c.GetFlightInfo(t.Context(), &flight.FlightDescriptor{Type: flight.DescriptorPATH, Path: []string{hashOf(d)}})
	must(t, err)
	var note struct{ Packs, Records int64 }
	must(t, json.Unmarshal(info.AppMetadata, &note))
	if note.Packs != d.Len() || note.Records != d.Manifest().Index().Records() || info.TotalBytes < d.Len()*16*8 {
		t.Errorf("info %s, %d bytes", info.AppMetadata, info.TotalBytes)
	}
	var tokens []int32
	for _, e := range info.Endpoint {
		s, err := c.DoGet(t.Context(), e.Ticket)
		must(t, err)
		r, err := flight.NewRecordReader(s)
		must(t, err)
		for r.Next() {
			column := r.Record().Column(0).(*array.FixedSizeList)
			tokens = append(tokens, column.ListValues().(*array.Int32).Int32Values()...)
		}
		must(t, r.Err())
		r.Release()
	}
	var b data.Batch
	all := make([]int64, d.Len())
	for i := range all {
		all[i] = int64(i)
	}
	must(t, d.Batch(t.Context(), all, &b))
	if !slices.Equal(tokens, b.Tokens) {
		t.Errorf("%d tokens, want %d, or others", len(tokens), len(b.Tokens))
	}
}

func TestTheServerRefusesByNameWhatItDoesNotServe(t *testing.T) {
	d, other := small(), large()
	addr, srv := serve(t, plainText, d)
	c := stock(t, addr)
	get := func(b []byte) error {
		s, err := c.DoGet(t.Context(), &flight.Ticket{Ticket: b})
		must(t, err)
		for {
			if _, err := s.Recv(); err != nil {
				return err
			}
		}
	}
	act := func(kind, body string) error {
		s, err := c.DoAction(t.Context(), &flight.Action{Type: kind, Body: []byte(body)})
		must(t, err)
		_, err = s.Recv()
		return err
	}
	info := func(path ...string) error {
		_, err := c.GetFlightInfo(t.Context(), &flight.FlightDescriptor{Type: flight.DescriptorPATH, Path: path})
		return err
	}
	good := ticketFor(d, 0)
	damaged := slices.Clone(good)
	damaged[20] ^= 1
	many := make([]int64, ticketRecordsMax+1)
	refused := func(err error, code codes.Code, part string) {
		t.Helper()
		if status.Code(err) != code || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v, want %v with %q", err, code, part)
		}
	}
	refused(get(good), codes.Unknown, "EOF") // the end, without an error
	refused(get(nil), codes.InvalidArgument, "not a Skein ticket")
	refused(get(make([]byte, 10_000)), codes.InvalidArgument, "ticket of 10000 bytes")
	refused(get(make([]byte, requestBytesMax+1)), codes.ResourceExhausted, "larger than max")
	refused(get(damaged), codes.InvalidArgument, "checksum")
	refused(get(ticketFor(d, many...)), codes.InvalidArgument, "bytes")
	refused(get(ticketFor(d)), codes.InvalidArgument, "0 records")
	refused(get(ticketFor(d, 1<<39)), codes.OutOfRange, "record 549755813888 of")
	refused(get(ticketFor(other, 0)), codes.NotFound, "is not served here")
	refused(act("skein.index", "beef"), codes.InvalidArgument, "not a content hash")
	refused(act("skein.index", hashOf(other)), codes.NotFound, "is not served here")
	refused(act("drop", ""), codes.Unimplemented, "skein.index")
	refused(info("a", "b"), codes.InvalidArgument, "one element")
	refused(info("a"), codes.InvalidArgument, "not a content hash")
	refused(info(hashOf(other)), codes.NotFound, "is not served here")
	srv.Remove(hashOf(d))
	refused(get(good), codes.NotFound, "is not served here (0 others are)")
}

func TestABusyServerRefusesAtOnce(t *testing.T) {
	d := small()
	srv, err := NewServer(ServerConfig{Security: plainText, StreamsMax: 1})
	must(t, err)
	must(t, srv.Add(d))
	leave, err := srv.enter()
	must(t, err)
	wantError(t, srv.DoGet(&flight.Ticket{Ticket: ticketFor(d, 0)}, nil), "busy with 1 calls")
	leave()
	if _, err := srv.enter(); err != nil {
		t.Errorf("the slot is not free again: %v", err)
	}
}

func TestAReaderThatDoesNotReadIsDropped(t *testing.T) {
	d := openSet(t, 1024, 600, 3) // 7 MB in a ticket: more than the windows take
	srv, err := NewServer(ServerConfig{Security: plainText, StreamTTL: 200 * time.Millisecond})
	must(t, err)
	must(t, srv.Add(d))
	l := listen(t)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) }) // until Close
	defer wg.Wait()
	defer srv.Close()
	var records []int64
	for i := range min(d.Manifest().Index().Records(), ticketRecordsMax) {
		records = append(records, i)
	}
	s, err := stock(t, l.Addr().String()).DoGet(t.Context(), &flight.Ticket{Ticket: ticketFor(d, records...)})
	must(t, err)
	_, err = s.Recv()
	must(t, err)
	waitFor(t, "the call to begin", func() bool { return len(srv.slots) == 1 })
	waitFor(t, "the call to be dropped", func() bool { return len(srv.slots) == 0 })
}

func TestAServerLivesBesideOtherServicesOfAProcess(t *testing.T) {
	d := small()
	srv, err := NewServer(ServerConfig{Security: plainText})
	must(t, err)
	must(t, srv.Add(d))
	g := grpc.NewServer()
	srv.Attach(g)
	l := listen(t)
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(l) }) // until Stop
	defer wg.Wait()
	defer g.Stop()
	c := open(t, Config{Servers: []string{l.Addr().String()}, ContentHash: hashOf(d)})
	samePacks(t, d, c, []int64{1, 2, 3000})
	must(t, c.Close())
}

func TestAClosedServerServesNoMore(t *testing.T) {
	srv, err := NewServer(ServerConfig{Security: plainText})
	must(t, err)
	srv.Close()
	l := listen(t)
	wantError(t, srv.Serve(l), "closed")
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is left open: %v", err)
	}
}

// Throughput over loopback from a data set that is larger than the memory, so that every batch comes over the wire.
func BenchmarkStream(b *testing.B) {
	d := openSet(b, 512, 16*128, 5) // some 30 records of half a megabyte
	addr, _ := serve(b, plainText, d)
	for _, bench := range []struct {
		name   string
		memory int64
	}{{"wire", 1}, {"memory", 1 << 30}} {
		b.Run(bench.name, func(b *testing.B) {
			c := open(b, Config{Servers: []string{addr}, ContentHash: hashOf(d), MemoryBytes: bench.memory})
			var batch data.Batch
			indices := make([]int64, 64)
			n := int64(0)
			for b.Loop() {
				for i := range indices { // in the order of the file
					indices[i] = n % d.Len()
					n++
				}
				must(b, c.Batch(context.Background(), indices, &batch))
			}
			s := c.Stats()
			b.ReportMetric(float64(s.Batches)/b.Elapsed().Seconds(), "batches/s")
			b.ReportMetric(float64(s.Bytes)/1e6/b.Elapsed().Seconds(), "wireMB/s")
		})
	}
}
