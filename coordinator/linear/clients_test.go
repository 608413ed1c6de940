package linear

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/jobspec"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

const (
	askWait    = 500 * time.Millisecond  // for a coordinator to say whether it leads
	answerWait = 1500 * time.Millisecond // for a call to be answered, before nobody knows
)

// group are the jobs of one history.
type group struct {
	number  int
	history *history
	asked   atomic.Int64 // calls that were made
}

// name, request and id of a job of the group. The id is known before there is the job.
func (g *group) name(job int) string    { return fmt.Sprintf("g%d-%c", g.number, 'a'+rune(job)) }
func (g *group) request(job int) string { return "request-00000000-" + g.name(job) }

func (g *group) id(job int) string {
	sum := sha256.Sum256([]byte(g.request(job)))
	return g.name(job) + "-" + hex.EncodeToString(sum[:2])
}

// spec is a valid job of that name.
func (g *group) spec(job int) ([]byte, error) {
	j, err := jobspec.Read("job.yaml", strings.NewReader(`
kind: FineTune
name: `+g.name(job)+`
model: {base: /models/tiny}
data: {train: /data/train.jsonl, sequenceLength: 64}
train: {steps: 8, globalBatch: 4, optimizer: {learningRate: 3e-4}}
cluster: {worldSize: 4, workers: {min: 1, max: 4}}
checkpoint: {every: 8 steps, store: /store}
output: {export: /out/`+g.name(job)+`}
`))
	if err != nil {
		return nil, err
	}
	return json.Marshal(j)
}

// row is what a coordinator says of a job, in the model's words.
func rowOf(j *skeinv1.Job) row {
	switch j.GetPhase() {
	case skeinv1.Phase_PHASE_PREPARING, skeinv1.Phase_PHASE_QUEUED, skeinv1.Phase_PHASE_RUNNING, skeinv1.Phase_PHASE_PAUSED:
		return row{"active", j.GetWorkersMax()}
	case skeinv1.Phase_PHASE_DONE:
		return row{"done", j.GetWorkersMax()}
	case skeinv1.Phase_PHASE_CANCELED:
		return row{"canceled", j.GetWorkersMax()}
	default:
		return row{j.GetPhase().String(), j.GetWorkersMax()}
	}
}

// client asks coordinators by itself and once: the product's own client repeats what had
// no answer, which a history must not hide.
type client struct {
	number  int
	cluster *cluster
	rng     *rand.Rand

	mu    sync.Mutex
	conns map[string]*grpc.ClientConn
	next  int // whom to ask whether it leads
}

func (c *cluster) client(number int) *client {
	cl := &client{number: number, cluster: c, rng: rand.New(rand.NewPCG(c.seed, uint64(number))), conns: map[string]*grpc.ClientConn{}, next: number}
	c.Cleanup(func() {
		for _, conn := range cl.conns {
			conn.Close()
		}
	})
	return cl
}

func (c *client) conn(address string) *grpc.ClientConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns[address] == nil {
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableServiceConfig(),
			grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second})) // it tries again at once
		if err != nil {
			c.cluster.Fatal(err)
		}
		c.conns[address] = conn
	}
	return c.conns[address]
}

func outgoing(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, skeinv1.ProtocolKey, skeinv1.Protocol, skeinv1.BuildKey, "test")
}

// leads tells whether the coordinator at an address says that it leads.
func (c *client) leads(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	s, err := skeinv1.NewClusterClient(c.conn(address)).Status(outgoing(ctx), &skeinv1.StatusRequest{})
	return err == nil && s.GetState() == "leader"
}

// once asks whoever believes to lead, once. A refusal of one that does not lead changes
// nothing, and another one is asked.
func (c *client) once(ctx context.Context, ask func(context.Context, *grpc.ClientConn) error) error {
	for ctx.Err() == nil {
		m := c.cluster.members[c.next%len(c.cluster.members)]
		if !c.leads(ctx, m.Address) {
			c.next++
			c.pause(ctx, 20*time.Millisecond)
			continue
		}
		one, cancel := context.WithTimeout(ctx, answerWait)
		err := ask(outgoing(one), c.conn(m.Address))
		cancel()
		if skeinv1.RefusalOf(err).GetKind() == skeinv1.Refusal_KIND_NOT_LEADER {
			c.next++
			continue
		}
		if err != nil && uncertain(err) {
			c.next++
		}
		return err
	}
	return status.FromContextError(ctx.Err()).Err()
}

func (c *client) pause(ctx context.Context, most time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Duration(c.rng.Int64N(int64(most)))):
	}
}

// uncertain tells whether nobody knows what came of a call.
func uncertain(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unknown:
		return true
	}
	return false
}

// outcome is a call's, by its error.
func (c *client) outcome(err error) string {
	switch code := status.Code(err); {
	case err == nil:
		return held
	case uncertain(err):
		return unknown
	case code == codes.NotFound:
		return absent
	case code == codes.FailedPrecondition, code == codes.Aborted:
		return refused
	}
	c.cluster.Errorf("client %d: %v", c.number, err)
	return unknown
}

// do makes one call and notes what came of it.
func (c *client) do(ctx context.Context, g *group, what call) {
	g.asked.Add(1)
	told := g.history.ask(c.number, what)
	id := g.id(what.job)
	var a answer
	err := c.once(ctx, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		api := skeinv1.NewJobsClient(conn)
		switch what.kind {
		case submit:
			var spec []byte
			if spec, err = g.spec(what.job); err == nil {
				var out *skeinv1.SubmitResponse
				if out, err = api.Submit(ctx, &skeinv1.SubmitRequest{RequestId: g.request(what.job), Spec: spec}); err == nil && out.GetJob() != id {
					c.cluster.Errorf("%s became %s, want %s", g.request(what.job), out.GetJob(), id)
				}
			}
		case cancel:
			_, err = api.Cancel(ctx, &skeinv1.CancelRequest{Job: id})
		case scale:
			_, err = api.Scale(ctx, &skeinv1.ScaleRequest{Job: id, Workers: what.workers})
		case get:
			var out *skeinv1.GetResponse
			if out, err = api.Get(ctx, &skeinv1.GetRequest{Job: id}); err == nil {
				a.saw[what.job] = rowOf(out.GetJob())
			} else if status.Code(err) == codes.NotFound {
				err = nil
			}
		case list:
			var out *skeinv1.ListResponse
			if out, err = api.List(ctx, &skeinv1.ListRequest{}); err == nil {
				for _, j := range out.GetJobs() {
					for n := range jobsEach {
						if j.GetId() == g.id(n) {
							a.saw[n] = rowOf(j)
						}
					}
				}
			}
		}
		return err
	})
	a.outcome = c.outcome(err)
	told(a)
}

// work makes calls about the jobs of a group: first it submits them, in an order of its
// own, then whatever chance brings.
func (c *client) work(ctx context.Context, g *group, calls int) {
	order := c.rng.Perm(jobsEach)
	for i := 0; i < calls && ctx.Err() == nil; i++ {
		what := call{job: c.rng.IntN(jobsEach)}
		switch n := c.rng.IntN(20); {
		case i%4 == 0 && i/4 < jobsEach:
			what.kind, what.job, what.workers = submit, order[i/4], 4
		case n < 8:
			what.kind = get
		case n < 12:
			what.kind, what.job = list, 0
		case n < 19:
			what.kind, what.workers = scale, 1+c.rng.Int32N(4)
		default:
			what.kind = cancel
		}
		c.do(ctx, g, what)
		c.pause(ctx, c.cluster.pace)
	}
}
