package leader

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/internal/leak"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

func TestMain(m *testing.M) { leak.Main(m) }

// fake is a coordinator that leads or names who does.
type fake struct {
	skeinv1.UnimplementedClusterServer
	skeinv1.UnimplementedJobsServer
	address string

	mu     sync.Mutex
	leader string // address; its own if it leads
	calls  int
	hang   chan struct{} // nothing is answered while it is open; nil: all is
	asks   int           // with how many more it is closed; 0: never
}

// wait keeps a caller waiting while the process hangs.
func (f *fake) wait(ctx context.Context) {
	f.mu.Lock()
	hang := f.hang
	f.mu.Unlock()
	if hang == nil {
		return
	}
	select {
	case <-hang:
	case <-ctx.Done():
	}
}

func (f *fake) refuse() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.leader == f.address {
		return nil
	}
	return skeinv1.Refuse(codes.Unavailable, &skeinv1.Refusal{Kind: skeinv1.Refusal_KIND_NOT_LEADER, LeaderAddress: f.leader}, "not me")
}

func (f *fake) follow(leader string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leader = leader
}

func (f *fake) Get(ctx context.Context, r *skeinv1.GetRequest) (*skeinv1.GetResponse, error) {
	f.wait(ctx)
	if err := f.refuse(); err != nil {
		return nil, err
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if r.GetJob() == "missing" {
		return nil, status.Error(codes.NotFound, "no such job")
	}
	return &skeinv1.GetResponse{Job: &skeinv1.Job{Id: f.address, Name: strings.Join(md.Get(skeinv1.ProtocolKey), ",")}}, grpc.SetHeader(ctx, metadata.Pairs(skeinv1.BuildKey, "other"))
}

func (f *fake) Status(ctx context.Context, _ *skeinv1.StatusRequest) (*skeinv1.StatusResponse, error) {
	f.asked()
	f.wait(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &skeinv1.StatusResponse{Id: f.address, State: "follower", LeaderId: f.leader, LeaderAddress: f.leader}
	if f.leader == f.address {
		s.State = "leader"
	}
	return s, nil
}

// asked ends the hanging with the last of asks.
func (f *fake) asked() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.asks == 0 {
		return
	}
	if f.asks--; f.asks == 0 {
		close(f.hang)
	}
}

func (f *fake) Watch(r *skeinv1.WatchRequest, s skeinv1.Jobs_WatchServer) error {
	if err := s.Send(&skeinv1.WatchResponse{What: &skeinv1.WatchResponse_Job{Job: &skeinv1.Job{Id: f.address}}}); err != nil {
		return err
	}
	if r.GetJob() == "long" {
		<-s.Context().Done()
	}
	return nil
}

// serve starts fakes that all follow the last one.
func serve(t *testing.T, n int) []*fake {
	t.Helper()
	var fakes []*fake
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		f, s := &fake{address: l.Addr().String()}, grpc.NewServer()
		skeinv1.RegisterClusterServer(s, f)
		skeinv1.RegisterJobsServer(s, f)
		go func() { _ = s.Serve(l) }() // ends with Stop
		t.Cleanup(s.Stop)
		fakes = append(fakes, f)
	}
	for _, f := range fakes {
		f.follow(fakes[n-1].address)
	}
	return fakes
}

func dial(t *testing.T, c Config) (*Conn, skeinv1.JobsClient, context.Context) {
	t.Helper()
	conn, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return conn, skeinv1.NewJobsClient(conn), ctx
}

func TestCallsAndStreamsFollowTheLeader(t *testing.T) {
	f := serve(t, 3)
	warned := 0
	conn, jobs, ctx := dial(t, Config{Addresses: []string{f[0].address, f[1].address}, Build: "ours", OtherBuild: func(string, string) { warned++ }})
	for range 2 {
		got, err := jobs.Get(ctx, &skeinv1.GetRequest{})
		if err != nil || got.GetJob().GetId() != f[2].address || got.GetJob().GetName() != skeinv1.Protocol {
			t.Fatalf("%v, %v", got, err)
		}
	}
	if warned != 1 || conn.Address() != f[2].address {
		t.Errorf("%d warnings of another build, leader at %s", warned, conn.Address())
	}
	for _, x := range f {
		x.follow(f[0].address)
	}
	stream, err := jobs.Watch(ctx, &skeinv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || m.GetJob().GetId() != f[0].address {
		t.Fatalf("watched %v, %v", m, err)
	}
}

func TestDeadAddressesAreSteppedOver(t *testing.T) {
	f := serve(t, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	_, jobs, ctx := dial(t, Config{Addresses: []string{l.Addr().String(), f[0].address}})
	if got, err := jobs.Get(ctx, &skeinv1.GetRequest{}); err != nil || got.GetJob().GetId() != f[0].address {
		t.Fatalf("%v, %v", got, err)
	}
}

func TestAnswersOfTheLeaderAreFinal(t *testing.T) {
	f := serve(t, 1)
	_, jobs, ctx := dial(t, Config{Addresses: []string{f[0].address}})
	if _, err := jobs.Get(ctx, &skeinv1.GetRequest{Job: "missing"}); status.Code(err) != codes.NotFound || f[0].calls != 1 {
		t.Fatalf("%v after %d calls", err, f[0].calls)
	}
}

func TestWithoutALeaderTheErrorNamesWhoWasAsked(t *testing.T) {
	f := serve(t, 1)
	f[0].follow("")
	_, jobs, _ := dial(t, Config{Addresses: []string{f[0].address}})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := jobs.Get(ctx, &skeinv1.GetRequest{})
	if err == nil || !strings.Contains(err.Error(), f[0].address) || !strings.Contains(err.Error(), "not me") {
		t.Fatalf("%v", err)
	}
	if _, err := New(Config{}); err == nil {
		t.Fatal("a client of nobody")
	}
}

func TestALeaderThatHangsIsLeftForTheNext(t *testing.T) {
	fakes := serve(t, 2)
	last := fakes[1]
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	_, jobs, ctx := dial(t, Config{Addresses: []string{last.address, fakes[0].address}})
	watch, err := jobs.Watch(ctx, &skeinv1.WatchRequest{Job: "long"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	last.mu.Lock()
	last.hang = hang
	last.mu.Unlock()
	fakes[0].follow(fakes[0].address)
	began := time.Now()
	got, err := jobs.Get(ctx, &skeinv1.GetRequest{Job: "a"})
	if err != nil || got.GetJob().GetId() != fakes[0].address {
		t.Fatalf("%v, %v", got, err)
	}
	if _, err := watch.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the watch ended with %v", err)
	}
	if took := time.Since(began); took < guardEvery {
		t.Errorf("it took %s", took)
	}
}

func TestALeaderThatIsLateOnceIsKept(t *testing.T) {
	fakes := serve(t, 1)
	_, jobs, ctx := dial(t, Config{Addresses: []string{fakes[0].address}})
	watch, err := jobs.Watch(ctx, &skeinv1.WatchRequest{Job: "long"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	fakes[0].mu.Lock()
	// The call and the stream ask once each, in vain, and one of them again.
	fakes[0].hang, fakes[0].asks = make(chan struct{}), 3
	fakes[0].mu.Unlock()
	if got, err := jobs.Get(ctx, &skeinv1.GetRequest{Job: "a"}); err != nil || got.GetJob().GetId() != fakes[0].address {
		t.Fatalf("%v, %v", got, err)
	}
	select {
	case <-watch.Context().Done():
		t.Error("the watch has ended")
	case <-time.After(100 * time.Millisecond):
	}
}
