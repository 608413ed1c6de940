package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/hearing"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// workers is the service of workers.
type workers struct {
	skeinv1.UnimplementedWorkersServer
	*Coordinator
}

const (
	nameBytesMax = 64
	classesMax   = 16
	dataSetsMax  = 1024
)

// Session implements skeinv1.WorkersServer.
func (s workers) Session(stream skeinv1.Workers_SessionServer) error {
	reign := s.leading()
	if reign == nil {
		return s.notLeader()
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if err := s.checkHello(hello); err != nil {
		return err
	}
	if err := s.checkWorker(stream.Context(), hello.GetWorker()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	// The session comes before the name in the log, so that no decision finds the name
	// of a worker that nobody has heard.
	session, err := reign.connect(time.Now(), s.config.Membership.Lease, hello.GetWorker(), hello.GetIncarnation(), cancel)
	if err != nil {
		return status.Error(codes.AlreadyExists, err.Error())
	}
	defer func() { reign.disconnect(time.Now(), hello.GetWorker(), session) }()
	if err := s.register(ctx, hello); err != nil {
		return err
	}
	err = stream.Send(&skeinv1.LeaderMessage{What: &skeinv1.LeaderMessage_Welcome{Welcome: &skeinv1.Welcome{
		Coordinator: s.config.ID, Build: s.config.Build, HeartbeatMs: s.config.Heartbeat.Milliseconds(), LeaseMs: s.config.Membership.Lease.Milliseconds(),
		Epoch: s.node.State().Epoch,
	}}})
	if err != nil {
		return err
	}
	heard := make(chan error, 1) // room for the end of the listener, which nobody may wait for
	go func() {
		heard <- s.listen(stream, reign, hello, session)
		cancel()
	}()
	// The listener ends with the stream, which ends when this function returns.
	if err := s.command(ctx, stream, reign, hello, session); err != nil {
		return err
	}
	select {
	case err := <-heard:
		return err
	default:
		return status.Error(codes.Aborted, "another session of this worker has taken its place")
	}
}

func (s workers) checkHello(h *skeinv1.Hello) error {
	switch {
	case h == nil:
		return status.Error(codes.InvalidArgument, "a session begins with hello")
	case h.GetCluster() != s.config.Cluster:
		return skeinv1.Refuse(codes.FailedPrecondition, &skeinv1.Refusal{Kind: skeinv1.Refusal_KIND_CLUSTER},
			fmt.Sprintf("worker %s is of cluster %q, and coordinator %s of %q", h.GetWorker(), h.GetCluster(), s.config.ID, s.config.Cluster))
	case !name(h.GetWorker()) || !name(h.GetIncarnation()) || tooLong(h.GetNode(), h.GetZone()):
		return status.Errorf(codes.InvalidArgument, "worker %q, process %q: names of 1 to %d letters, digits, dashes, dots and underscores are needed", h.GetWorker(), h.GetIncarnation(), nameBytesMax)
	case h.GetRingAddress() == "" || h.GetStreamAddress() == "" || tooLong(h.GetRingAddress(), h.GetStreamAddress()):
		return status.Errorf(codes.InvalidArgument, "worker %s: the addresses of its ring and its stream server are needed", h.GetWorker())
	case len(h.GetNumericClasses()) == 0 || len(h.GetNumericClasses()) > classesMax || tooLong(h.GetNumericClasses()...):
		return status.Errorf(codes.InvalidArgument, "worker %s: 1 to %d numeric classes are needed", h.GetWorker(), classesMax)
	case tooLong(h.GetBuild()) || h.GetMemoryBytes() < 0 || h.GetThreads() < 0:
		return status.Errorf(codes.InvalidArgument, "worker %s: build %.100q, %d bytes of memory, %d threads", h.GetWorker(), h.GetBuild(), h.GetMemoryBytes(), h.GetThreads())
	}
	return nil
}

// tooLong tells whether a text is longer than what the state keeps of its kind.
func tooLong(texts ...string) bool {
	return slices.ContainsFunc(texts, func(s string) bool { return len(s) > 4*nameBytesMax })
}

// name tells whether a text can be a name in logs and on screens.
func name(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_' {
			return false
		}
	}
	return s != "" && len(s) <= nameBytesMax
}

// register sees to it that the log has this process, with these addresses.
func (s workers) register(ctx context.Context, h *skeinv1.Hello) error {
	w := fsm.Worker{
		Name: h.GetWorker(), Incarnation: h.GetIncarnation(), Node: h.GetNode(), Zone: h.GetZone(), Build: h.GetBuild(), Ring: h.GetRingAddress(),
		Stream: h.GetStreamAddress(), Classes: h.GetNumericClasses(), Memory: h.GetMemoryBytes(), Threads: int(h.GetThreads()),
	}
	if known := s.node.State().Workers[w.Name]; known != nil {
		same := *known
		same.Draining, same.DrainIndex = false, 0
		if slices.Equal(same.Classes, w.Classes) {
			same.Classes, w.Classes = nil, nil
			if fmt.Sprint(same) == fmt.Sprint(w) {
				return nil // it comes back to a new leader: nothing to decide
			}
			w.Classes = h.GetNumericClasses()
		}
	}
	_, err := s.decided(ctx, w.Name+" takes part", &fsm.Register{Worker: w})
	return err
}

// listen takes in what a worker says, until its stream ends.
func (s workers) listen(stream skeinv1.Workers_SessionServer, r *reign, h *skeinv1.Hello, session uint64) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil // it said all it had to say
		}
		if err != nil {
			return err
		}
		switch what := m.GetWhat().(type) {
		case *skeinv1.WorkerMessage_Heartbeat:
			if len(what.Heartbeat.GetDataSets()) > dataSetsMax || tooLong(what.Heartbeat.GetDataSets()...) || tooLong(what.Heartbeat.GetJob(), what.Heartbeat.GetKeeps()) {
				return status.Errorf(codes.InvalidArgument, "%d data sets in a heartbeat", len(what.Heartbeat.GetDataSets()))
			}
			r.heartbeat(time.Now(), h.GetWorker(), session, what.Heartbeat)
		case *skeinv1.WorkerMessage_Progress:
			p := what.Progress
			if j := s.node.State().Jobs[p.GetJob()]; j != nil && j.Phase == fsm.Running && p.GetProgress().GetGeneration() == j.Generation && len(j.Placement) > 0 && j.Placement[0].Worker == h.GetWorker() {
				r.spends(time.Now(), j.ID, j.Generation, p.GetProgress().GetSpent())
				r.tell(j.ID, p.GetProgress()) // rank 0's word counts
			}
		case *skeinv1.WorkerMessage_Pong:
			r.pong(time.Now(), h.GetWorker(), session)
		case *skeinv1.WorkerMessage_StoreRead:
			if j := s.node.State().Jobs[what.StoreRead.GetJob()]; j != nil {
				r.read(time.Now(), h.GetWorker(), j, what.StoreRead.GetNonce(), line(what.StoreRead.GetError()))
			}
		case *skeinv1.WorkerMessage_Lines:
			if s.node.State().Jobs[what.Lines.GetJob()] != nil {
				r.say(what.Lines.GetJob(), h.GetIncarnation(), s.sound(h.GetWorker(), what.Lines.GetLines()))
			}
		default:
			return status.Error(codes.InvalidArgument, "hello comes once, at the beginning")
		}
	}
}

// sound are the lines that can be kept and shown: of this worker, and of a sane size.
func (s workers) sound(worker string, said []*skeinv1.Line) []*skeinv1.Line {
	return slices.DeleteFunc(said, func(l *skeinv1.Line) bool {
		bad := l.GetWorker() != worker || !name(l.GetName()) || len(l.GetJson()) > skeinv1.LineBytesMax || !json.Valid(l.GetJson())
		if bad {
			s.config.Logger.Warn("a line is dropped", "worker", worker, "of", line(l.GetWorker()), "name", line(l.GetName()), "bytes", len(l.GetJson()))
		}
		return bad
	})
}

// command sends a worker its orders whenever they change. It returns nil when the
// worker's side of the session has ended.
func (s workers) command(ctx context.Context, stream skeinv1.Workers_SessionServer, r *reign, h *skeinv1.Hello, session uint64) error {
	again := time.NewTicker(hearing.ReadAgain) // failed probes are repeated
	defer again.Stop()
	var last *skeinv1.Orders
	revision, pinged := uint64(0), uint64(0)
	for {
		changed, heard := s.node.Changed(), r.changed()
		state := s.node.State()
		if !state.Is(h.GetWorker(), h.GetIncarnation()) {
			return skeinv1.Refuse(codes.Aborted, &skeinv1.Refusal{Kind: skeinv1.Refusal_KIND_FENCED},
				fmt.Sprintf("worker %s was given up; stop what you do, and begin a new session", h.GetWorker()))
		}
		if ping := r.pings(h.GetWorker(), session); ping > pinged {
			pinged = ping
			if err := stream.Send(&skeinv1.LeaderMessage{What: &skeinv1.LeaderMessage_Ping{Ping: &skeinv1.Ping{Number: ping}}}); err != nil {
				return err
			}
		}
		next := r.orders(time.Now(), state, state.Workers[h.GetWorker()])
		next.Revision = revision
		if last == nil || !proto.Equal(last, next) {
			revision++
			next.Revision = revision
			if err := stream.Send(&skeinv1.LeaderMessage{What: &skeinv1.LeaderMessage_Orders{Orders: next}}); err != nil {
				return err
			}
			last = next
		}
		looked := time.Now()
		select {
		case <-changed:
		case <-heard:
		case <-again.C:
		case <-ctx.Done():
			return nil
		case <-r.ctx.Done():
			return s.notLeader()
		}
		r.rest(ctx, looked)
	}
}

// sender finds the worker process that reports, which must be the worker that its
// certificate names. A process that was given up or replaced is fenced off.
func (s workers) sender(ctx context.Context, from *skeinv1.Sender) (*fsm.State, *fsm.Worker, error) {
	if err := s.checkWorker(ctx, from.GetWorker()); err != nil {
		return nil, nil, err
	}
	state, err := s.node.Read(ctx)
	if err != nil {
		return nil, nil, err
	}
	if !state.Is(from.GetWorker(), from.GetIncarnation()) {
		return nil, nil, fmt.Errorf("%w: this process of worker %s has been given up", fsm.ErrFenced, from.GetWorker())
	}
	return state, state.Workers[from.GetWorker()], nil
}

// placed finds a job that the sender has ranks of, or prepares.
func (s workers) placed(ctx context.Context, from *skeinv1.Sender, job string) (*fsm.State, *fsm.Job, *fsm.Worker, error) {
	state, w, err := s.sender(ctx, from)
	if err != nil {
		return nil, nil, nil, err
	}
	j := state.Jobs[job]
	if j == nil {
		return nil, nil, nil, fmt.Errorf("%w: there is no job %q", fsm.ErrUnknown, job)
	}
	if err := hearing.Placed(j, w); err != nil {
		return nil, nil, nil, err
	}
	return state, j, w, nil
}

// Prepared implements skeinv1.WorkersServer.
func (s workers) Prepared(ctx context.Context, r *skeinv1.PreparedRequest) (*skeinv1.PreparedResponse, error) {
	_, w, err := s.sender(ctx, r.GetSender())
	if err != nil {
		return nil, err
	}
	j := s.node.State().Jobs[r.GetJob()]
	if j == nil {
		return nil, fmt.Errorf("%w: there is no job %q", fsm.ErrUnknown, r.GetJob())
	}
	if j.Preparation.Number != r.GetNumber() || j.Preparation.Worker != w.Name || j.Preparation.Incarnation != w.Incarnation {
		return nil, fmt.Errorf("%w: preparation %d of %s by %s is over", fsm.ErrFenced, r.GetNumber(), j.ID, w.Name)
	}
	d, err := resolution(j, w, r)
	if err != nil {
		return nil, err
	}
	if _, err := s.decided(ctx, resolvedLine(d), d); err != nil {
		return nil, err
	}
	return &skeinv1.PreparedResponse{}, nil
}

// Publish implements skeinv1.WorkersServer.
func (s workers) Publish(ctx context.Context, r *skeinv1.PublishRequest) (*skeinv1.PublishResponse, error) {
	_, j, w, err := s.placed(ctx, r.GetSender(), r.GetJob())
	if err != nil {
		return nil, err
	}
	c := r.GetCheckpoint()
	if err := checkCheckpoint(c); err != nil {
		return nil, err
	}
	d := &fsm.Publish{Job: j.ID, Checkpoint: fsm.Checkpoint{
		Generation: c.GetGeneration(), Step: c.GetStep(), Manifest: c.GetManifest(), Weights: c.GetWeights(), Bytes: c.GetBytes(), At: time.Now().UnixMilli(),
	}}
	if _, err := s.decided(ctx, fmt.Sprintf("step %d by generation %d, sealed by %s · sha256 weights %.12s", c.GetStep(), c.GetGeneration(), w.Name, c.GetWeights()), d); err != nil {
		return nil, err
	}
	return &skeinv1.PublishResponse{}, nil
}

// Complete implements skeinv1.WorkersServer.
func (s workers) Complete(ctx context.Context, r *skeinv1.CompleteRequest) (*skeinv1.CompleteResponse, error) {
	_, j, _, err := s.placed(ctx, r.GetSender(), r.GetJob())
	if err != nil {
		return nil, err
	}
	if len(r.GetResult()) > specBytesMax || len(r.GetResult()) > 0 && !json.Valid(r.GetResult()) {
		return nil, status.Errorf(codes.InvalidArgument, "the result of %d bytes is not JSON of at most %d", len(r.GetResult()), specBytesMax)
	}
	if reign := s.leading(); reign != nil && r.GetGeneration() == j.Generation {
		reign.spends(time.Now(), j.ID, j.Generation, r.GetSpent())
	}
	reason := fmt.Sprintf("%d steps", j.Steps)
	if _, err := s.decided(ctx, reason, &fsm.Complete{Job: j.ID, Generation: r.GetGeneration(), Result: r.GetResult()}); err != nil {
		return nil, err
	}
	return &skeinv1.CompleteResponse{}, nil
}

// Fail implements skeinv1.WorkersServer.
func (s workers) Fail(ctx context.Context, r *skeinv1.FailRequest) (*skeinv1.FailResponse, error) {
	_, j, w, err := s.placed(ctx, r.GetSender(), r.GetJob())
	if err != nil {
		return nil, err
	}
	if (r.GetGeneration() == 0) == (r.GetPreparation() == 0) {
		return nil, status.Error(codes.InvalidArgument, "a failure is either a generation's or a preparation's")
	}
	d := &fsm.Fail{Job: j.ID, Generation: r.GetGeneration(), Preparation: r.GetPreparation()}
	if _, err := s.decided(ctx, w.Name+": "+r.GetReason(), d); err != nil {
		return nil, err
	}
	return &skeinv1.FailResponse{}, nil
}

// Broken implements skeinv1.WorkersServer.
func (s workers) Broken(ctx context.Context, r *skeinv1.BrokenRequest) (*skeinv1.BrokenResponse, error) {
	state, j, w, err := s.placed(ctx, r.GetSender(), r.GetJob())
	if err != nil {
		return nil, err
	}
	reign := s.leading()
	if reign == nil {
		return nil, s.notLeader()
	}
	if err := hearing.Current(j, w, r); err != nil {
		return nil, err
	}
	if r.GetDiverged() != nil && r.GetPreparation() == 0 {
		if err := s.diverged(ctx, j, w, r); err != nil {
			return nil, err
		}
	}
	if r.GetPreparation() == 0 && !r.GetSealing() && j.Phase == fsm.Running {
		reign.spent(j.ID, j.Generation, w.Name, r.GetSealed())
	}
	r.Reason = line(r.GetReason())
	told := reign.broken(time.Now(), state, j, w, r)
	if sealed := told.Sealed; sealed != nil {
		if !told.Sound {
			s.config.Logger.Warn("a report of what a worker holds cannot be true; it counts as nothing", "job", j.ID, "worker", w.Name)
		}
		s.config.Logger.Info("sealed", "job", j.ID, "generation", r.GetGeneration(), "worker", w.Name, "step", sealed.Step, "held", sealed.Held, "summed", sealed.Summed, "yielded", sealed.Yielded)
	}
	if told.Blames {
		s.config.Logger.Warn("broken", "job", j.ID, "generation", r.GetGeneration(), "by", w.Name, "accused", told.Accused, "reason", r.GetReason())
	}
	return &skeinv1.BrokenResponse{}, nil
}

// diverged puts into the log that copies of a rank differ.
func (s workers) diverged(ctx context.Context, j *fsm.Job, w *fsm.Worker, r *skeinv1.BrokenRequest) error {
	d := r.GetDiverged()
	if w.Name != d.GetOwner() && w.Name != d.GetMirror() {
		return status.Errorf(codes.PermissionDenied, "worker %s says that copies of %s and %s differ, and has neither", w.Name, d.GetOwner(), d.GetMirror())
	}
	if tooLong(d.GetBucket()) {
		return status.Errorf(codes.InvalidArgument, "a bucket with a name of %d bytes", len(d.GetBucket()))
	}
	newest, _ := j.Newest()
	_, err := s.decided(ctx, fmt.Sprintf("rank %d, %s: the copies of %s and of its mirror on %s differ after step %d; going on from the checkpoint of step %d",
		d.GetRank(), d.GetBucket(), d.GetOwner(), d.GetMirror(), d.GetStep(), newest.Step),
		&fsm.Diverge{Job: j.ID, Generation: r.GetGeneration(), Owner: d.GetOwner(), Mirror: d.GetMirror()})
	return err
}

// Drain implements skeinv1.WorkersServer.
func (s workers) Drain(ctx context.Context, r *skeinv1.DrainRequest) (*skeinv1.DrainResponse, error) {
	_, w, err := s.sender(ctx, r.GetSender())
	if err != nil {
		return nil, err
	}
	if _, err := s.decided(ctx, w.Name+" wants to leave", &fsm.Drain{Worker: w.Name, Incarnation: w.Incarnation}); err != nil {
		return nil, err
	}
	return &skeinv1.DrainResponse{}, nil
}
