package stream

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apache/arrow/go/v17/arrow/flight"
	flightrpc "github.com/apache/arrow/go/v17/arrow/flight/gen/flight"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/skein-ml/skein/data"
)

// ServerConfig says how a server serves. Zero means default, but for Security.
type ServerConfig struct {
	Security
	StreamsMax     int           // calls at a time, further ones are refused at once; 256
	ConnectionsMax int           // connections at a time, further ones wait; 1,024
	StreamTTL      time.Duration // life of one call, for readers that do not read; 10 minutes
}

// EnsureDefaults fills in what is zero.
func (c *ServerConfig) EnsureDefaults() {
	for _, v := range []struct {
		p   *int
		def int
	}{{&c.StreamsMax, 256}, {&c.ConnectionsMax, 1024}} {
		if *v.p == 0 {
			*v.p = v.def
		}
	}
	if c.StreamTTL == 0 {
		c.StreamTTL = 10 * time.Minute
	}
}

// Server serves data sets. Its methods may be called concurrently.
type Server struct {
	flight.BaseFlightServer
	c       ServerConfig
	slots   chan struct{} // one for each call under way
	buffers sync.Pool     // *[]byte, for records

	mu     sync.Mutex
	sets   map[string]*served // by content hash
	grpc   *grpc.Server       // Serve's, or nil
	closed bool
}

// served is a data set as it is served. It never changes.
type served struct {
	set    *data.Dataset
	index  *data.Index
	coded  []byte // the index, encoded
	schema []byte // the schema's message, without its frame: what a stream begins with
	framed []byte // the same, framed: what FlightInfo carries
}

// NewServer makes a server that serves nothing yet.
func NewServer(c ServerConfig) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c.EnsureDefaults()
	return &Server{c: c, slots: make(chan struct{}, c.StreamsMax), sets: map[string]*served{}}, nil
}

// Add serves a data set from now on, by its content hash. It stays the caller's, who closes it after Remove or Close.
func (s *Server) Add(set *data.Dataset) error {
	x := set.Manifest().Index()
	v := &served{set: set, index: x, coded: encodeIndex(x)}
	if len(v.coded) > indexBytesMax {
		return fmt.Errorf("data set %s has %d records, too many to serve", short(x.ContentHash), x.Records())
	}
	v.framed = flight.SerializeSchema(x.Schema(), memory.DefaultAllocator)
	var err error
	if v.schema, err = unframe(v.framed); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sets[x.ContentHash] = v
	return nil
}

// Remove serves a data set no longer. Streams of it that are under way go on until the data set is closed.
func (s *Server) Remove(contentHash string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sets, contentHash)
}

// Hashes lists the content hashes of what is served, sorted.
func (s *Server) Hashes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]string, 0, len(s.sets))
	for h := range s.sets {
		list = append(list, h)
	}
	slices.Sort(list)
	return list
}

// Attach serves on a gRPC server that the caller runs, beside other services, with that server's limits and security. Clients
// ping every 10 s while they read; its keepalive enforcement has to allow that.
func (s *Server) Attach(g grpc.ServiceRegistrar) {
	flightrpc.RegisterFlightServiceServer(g, s)
}

// Serve accepts connections from l until Close, and closes it.
func (s *Server) Serve(l net.Listener) error {
	g := grpc.NewServer(s.options()...)
	s.Attach(g)
	s.mu.Lock()
	if s.closed || s.grpc != nil {
		s.mu.Unlock()
		_ = l.Close() // the error that counts is the caller's
		return errors.New("data server: it is closed or serves already")
	}
	s.grpc = g
	s.mu.Unlock()
	err := g.Serve(netutil.LimitListener(l, s.c.ConnectionsMax))
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// Close breaks every connection and waits for the calls to end.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	g := s.grpc
	s.mu.Unlock()
	if g != nil {
		g.Stop()
	}
}

func (s *Server) options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(s.c.credentials()),
		grpc.MaxRecvMsgSize(requestBytesMax),
		grpc.MaxHeaderListSize(headerBytesMax),
		grpc.MaxConcurrentStreams(uint32(s.c.StreamsMax)),
		grpc.ConnectionTimeout(5 * time.Second),
		grpc.WaitForHandlers(true),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveEvery, Timeout: keepaliveWait}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveEvery / 2}),
		// The tap is the one place where a server can give a call a deadline that Send obeys too.
		grpc.InTapHandle(func(ctx context.Context, _ *tap.Info) (context.Context, error) {
			ctx, cancel := context.WithTimeout(ctx, s.c.StreamTTL)
			context.AfterFunc(ctx, cancel)
			return ctx, nil
		}),
	}
}

// find gives a data set, or the refusal.
func (s *Server) find(hash string) (*served, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.sets[hash]; v != nil {
		return v, nil
	}
	return nil, status.Errorf(codes.NotFound, "data set %s is not served here (%d others are)", short(hash), len(s.sets))
}

// enter takes a slot for a call, or refuses it.
func (s *Server) enter() (leave func(), err error) {
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots }, nil
	default:
		return nil, status.Errorf(codes.ResourceExhausted, "data server is busy with %d calls; use another", cap(s.slots))
	}
}

// DoGet streams the records of a ticket, in its order, after the schema.
func (s *Server) DoGet(req *flight.Ticket, out flight.FlightService_DoGetServer) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	t, err := decodeTicket(req.GetTicket())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	v, err := s.find(hex.EncodeToString(t.hash[:]))
	if err != nil {
		return err
	}
	for _, i := range t.records {
		if i >= v.index.Records() {
			return status.Errorf(codes.OutOfRange, "record %d of %d of data set %s", i, v.index.Records(), short(v.index.ContentHash))
		}
	}
	if err := out.Send(&flight.FlightData{DataHeader: v.schema}); err != nil {
		return err
	}
	buf, _ := s.buffers.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	defer s.buffers.Put(buf)
	for _, i := range t.records {
		var meta, body []byte
		if meta, body, *buf, err = v.set.ReadRecord(i, *buf); err != nil {
			return status.Error(codes.DataLoss, err.Error())
		}
		if err := out.Send(&flight.FlightData{DataHeader: meta, DataBody: body}); err != nil {
			return err
		}
	}
	return nil
}

// DoAction answers skein.index.
func (s *Server) DoAction(a *flight.Action, out flight.FlightService_DoActionServer) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	if a.GetType() != indexAction {
		return status.Errorf(codes.Unimplemented, "action %.80q; there is %s", a.GetType(), indexAction)
	}
	hash, err := parseHash(string(a.GetBody()))
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	v, err := s.find(hex.EncodeToString(hash[:]))
	if err != nil {
		return err
	}
	for part := range slices.Chunk(v.coded, indexChunk) {
		if err := out.Send(&flight.Result{Body: part}); err != nil {
			return err
		}
	}
	return nil
}

// ListActions names skein.index.
func (s *Server) ListActions(_ *flight.Empty, out flight.FlightService_ListActionsServer) error {
	return out.Send(&flight.ActionType{Type: indexAction, Description: "body: content hash; results: the index that follows from it"})
}

// ListFlights describes every data set, without tickets.
func (s *Server) ListFlights(c *flight.Criteria, out flight.FlightService_ListFlightsServer) error {
	if len(c.GetExpression()) > 0 {
		return status.Error(codes.InvalidArgument, "flights are listed without criteria")
	}
	for _, hash := range s.Hashes() {
		v, err := s.find(hash)
		if err != nil {
			continue // removed meanwhile
		}
		if err := out.Send(v.info(false)); err != nil {
			return err
		}
	}
	return nil
}

// GetFlightInfo describes the data set of a path of one element, its content hash, with tickets for all of it.
func (s *Server) GetFlightInfo(_ context.Context, d *flight.FlightDescriptor) (*flight.FlightInfo, error) {
	v, err := s.describe(d)
	if err != nil {
		return nil, err
	}
	if n := v.index.Records(); n > endpointsMax*ticketRecordsMax {
		return nil, status.Errorf(codes.ResourceExhausted, "data set of %d records, tickets for %d are listed at most; make your own", n, endpointsMax*ticketRecordsMax)
	}
	return v.info(true), nil
}

// GetSchema gives the schema of the same.
func (s *Server) GetSchema(_ context.Context, d *flight.FlightDescriptor) (*flight.SchemaResult, error) {
	v, err := s.describe(d)
	if err != nil {
		return nil, err
	}
	return &flight.SchemaResult{Schema: v.framed}, nil
}

func (s *Server) describe(d *flight.FlightDescriptor) (*served, error) {
	if len(d.GetPath()) != 1 {
		return nil, status.Error(codes.InvalidArgument, "a data set is described by a path of one element, its content hash")
	}
	hash, err := parseHash(d.GetPath()[0])
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return s.find(hex.EncodeToString(hash[:]))
}

// endpointsMax tickets are listed for a data set, so that the answer stays below the 4 MB that gRPC clients read unasked.
const endpointsMax = 4096

// info is what a Flight client may know about a data set.
func (v *served) info(tickets bool) *flight.FlightInfo {
	m := v.set.Manifest()
	note, _ := json.Marshal(struct {
		ContentHash    string `json:"contentHash"`
		SequenceLength int    `json:"sequenceLength"`
		Packs          int64  `json:"packs"`
		Records        int64  `json:"records"`
		RecordPacks    int    `json:"recordPacks"`
		Split          string `json:"split"`
	}{m.ContentHash, m.SequenceLength, m.Report.Packs, v.index.Records(), m.RecordPacks, m.Split}) // plain fields: no error
	info := &flight.FlightInfo{
		Schema:           v.framed,
		FlightDescriptor: &flight.FlightDescriptor{Type: flight.DescriptorPATH, Path: []string{m.ContentHash}},
		TotalRecords:     m.Report.Packs,
		Ordered:          true,
		AppMetadata:      note,
	}
	for _, f := range m.Files {
		for _, r := range f.Records {
			info.TotalBytes += r.Bytes
		}
	}
	if !tickets {
		return info
	}
	t := ticket{}
	t.hash, _ = parseHash(m.ContentHash) // the manifest was checked
	for i := range v.index.Records() {
		if t.records = append(t.records, i); len(t.records) == ticketRecordsMax || i == v.index.Records()-1 {
			info.Endpoint = append(info.Endpoint, &flight.FlightEndpoint{Ticket: &flight.Ticket{Ticket: t.encode()}})
			t.records = t.records[:0]
		}
	}
	return info
}

// unframe takes the schema's message out of a framed one: 0xFFFFFFFF, its length, the message, perhaps an end mark.
func unframe(b []byte) ([]byte, error) {
	if len(b) >= 8 && strings.HasPrefix(string(b), "\xff\xff\xff\xff") {
		if n := int(b[4]) | int(b[5])<<8 | int(b[6])<<16; n <= len(b)-8 && b[7] == 0 {
			return b[8 : 8+n], nil
		}
	}
	return nil, errors.New("data server: Arrow wrote a schema in a form that is not known")
}
