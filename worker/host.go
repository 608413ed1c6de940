package worker

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/data/stream"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/model/hf"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/shard"
	"github.com/skein-ml/skein/worker/trainer"
)

// connectMax is how long the workers of a generation may take to find each other. They
// get their orders within a heartbeat of each other.
const connectMax = 30 * time.Second

// hosting is a worker's part in a job. What stands first outlives a generation, see [Keep].
type hosting struct {
	run
	job, specHash string
	samples       *feed
	settled       settled
	served        *data.Dataset // that this worker made the stream server serve
	closers       []func() error
	entered       bool  // the trainer's state is that of a step
	targets       int64 // since step 0
	before        counts
	expects       []int64 // steps of which rank 0's worker has measurements to tell
	slowest       int     // rank that was noted to be slow last, -1: none in this generation
	unsound       string  // what was noted last of ranks here whose numbers are not finite

	HostConfig
	key     allreduce.Key
	self    int // own place among the members
	link    *allreduce.Link
	heeds   sync.WaitGroup  // what heed and lookOut do, of link
	took    atomic.Int64    // nanoseconds of the last step of this generation, 0: there was none
	reached <-chan []string // from whom an answer comes, once somebody has asked
	saving  *saving         // the newest checkpoint on its way, published or not
	ended   error           // why this worker's part in the generation is over
	spent   spent

	refusal                   // of the store, if it has refused something
	told    *skeinv1.Progress // of the newest step
}

// counts is what earlier generations came to.
type counts struct {
	Tokens  int64   `json:"tokens"`  // computed by all ranks
	Seconds float64 `json:"seconds"` // that it took
}

// begin takes the orders of another generation.
func (h *hosting) begin(env Env, c HostConfig) {
	env.Device = h.Device
	h.Env, h.HostConfig, h.clock, h.tokens, h.pace = env, c, time.Now(), 0, pace{}
	h.job, h.specHash = c.Order.GetJob(), c.Order.GetSpecHash()
	h.key, h.self, h.link, h.reached, h.saving, h.ended = allreduce.Key{}, -1, nil, nil, nil, nil
	h.expects, h.slowest, h.unsound = nil, -1, ""
	h.took.Store(0)
	h.refusal, h.told, h.spent = refusal{}, nil, spent{last: time.Now()}
	if h.store != nil {
		h.store.env = env
	}
}

// Host hosts ranks of a job until it is done, broken, failed, or ctx ends. When it
// returns, nothing of it runs any more, and a Keep has what another generation may go on
// with. A [BrokenError] and [ErrFenced] leave the job to a later generation; after any other
// error but the context's it cannot succeed.
func Host(ctx context.Context, env Env, c HostConfig) error {
	h := c.Keep.take(c.Order)
	h.begin(env, c)
	// Whatever ends this worker's part ends its link and its checkpoint too.
	inner, stop := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-c.Seal:
			stop(errSealed)
		case <-inner.Done():
		}
	})
	h.ended = h.host(inner)
	if h.ended != nil && errors.Is(context.Cause(inner), errSealed) {
		h.ended = errSealed
	}
	cause := h.cause(ctx, h.ended)
	stop(nil)
	watch.Wait()
	return h.part(ctx, cause)
}

func (h *hosting) host(ctx context.Context) error {
	select {
	case <-h.Seal:
		return errSealed
	default:
	}
	if h.tr == nil {
		if err := h.admit(); err != nil {
			return err
		}
	}
	if err := h.place(); err != nil {
		return err
	}
	if err := h.openData(ctx); err != nil {
		return err
	}
	if (h.leads() || h.tr.OnDemand()) && h.Language == nil {
		if err := h.openLanguage(); err != nil {
			return err
		}
	}
	if err := h.takePlace(ctx); err != nil {
		return err
	}
	if err := h.follow(); err != nil {
		return err
	}
	return h.toTheEnd(ctx)
}

// takePlace makes the trainer's state that which the generation goes on from.
func (h *hosting) takePlace(ctx context.Context) error {
	if h.Order.GetLive() {
		return h.enter(ctx)
	}
	h.entered = false
	if err := h.connect(ctx); err != nil {
		return err
	}
	if err := h.resume(ctx); err != nil {
		return err
	}
	h.entered = true
	return nil
}

// leave waits for what is under way in this generation and leaves the ring.
func (h *hosting) leave() {
	if h.link != nil {
		_ = h.link.Close() // it says why it broke to those who wait on it
		h.heeds.Wait()
	}
	if h.saving != nil {
		<-h.saving.done
	}
	if h.samples != nil && h.samples.Client != nil {
		_ = h.samples.Close() // nothing that was written depends on it
		h.samples.Client = nil
	}
}

// close gives everything back, the last opened first.
func (h *hosting) close() {
	for _, c := range slices.Backward(h.closers) {
		_ = c() // nothing that was written depends on it
	}
	h.closers = nil
}

// admit opens what the job's folder says of the job, and the trainer.
func (h *hosting) admit() error {
	spec, err := jobspec.ParseResolved(h.Order.GetResolved())
	if err != nil { // a coordinator of another build has written it
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	job := &spec.Job
	h.export, h.dir = job.Path(job.Output.Export), JobFolder(job.Path(job.Checkpoint.Store), h.Order.GetJob())
	done, err := h.open(job.Train.NumericClass)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	h.closers = append(h.closers, done)
	if class := h.Device.Info().Class; class != job.Train.NumericClass {
		return fmt.Errorf("%w: the job's bits are those of %q, and %s computes as %q", errUnreachable, job.Train.NumericClass, h.Worker, class)
	}
	a := &Admitted{Spec: spec, Steps: int64(job.Train.Steps)}
	h.Admitted = a
	if a.Base, err = describedBase(h.FS, filepath.Join(h.dir, descriptionName)); err != nil {
		return err
	}
	c := a.Base.Config()
	if a.Table, err = trainer.NewTable(c, job.Cluster.WorldSize); err != nil {
		return err
	}
	a.Config = trainerConfig(c, spec)
	if h.settled, err = readSettled(h.FS, h.dir); err != nil {
		return err
	}
	if h.served, err = serve(h.FS, h.Streams, filepath.Join(h.dir, h.settled.Train), h.Spec.DataHash); err != nil {
		return err
	}
	if h.served != nil {
		h.closers = append(h.closers, func() error { h.Streams.Remove(h.Spec.DataHash); return h.served.Close() })
	}
	h.samples = &feed{}
	if h.tr, err = trainer.NewIdle(h.Device, a.Config, h.samples); err != nil {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	h.closers = append(h.closers, func() error { h.tr.Close(); return nil })
	if h.store, err = newStore(h.Env, a, a.Table.Fingerprint(), h.dir); err != nil {
		return err
	}
	h.store.tr = h.tr
	return nil
}

// describedBase is the base model without its weights: what a job's folder says of it.
func describedBase(fsys vfs.FS, dir string) (*Base, error) {
	c, side, err := readDescription(fsys, dir)
	if err != nil {
		return nil, fmt.Errorf("%s: the description of the job's model: %w", dir, err)
	}
	b := &Base{Model: described{config: c}, Side: side, path: dir}
	b.Template, err = hf.ChatTemplate(side)
	return b, err
}

// described is a model of which only the configuration is at hand.
type described struct{ config modelConfig }

func (d described) Config() modelConfig  { return d.config }
func (d described) Shape(string) []int64 { return nil }
func (d described) Notices() []string    { return nil }
func (d described) Close() error         { return nil }

func (d described) ReadRange(name string, _ int64, _ []float32) error {
	return fmt.Errorf("%s: the weights of the base model are not at hand", name)
}

// place finds the worker's ranks. Blocks of ranks go round the ring in the order of the
// members, so each link of the ring is one connection.
func (h *hosting) place() error {
	members := h.Order.GetMembers()
	var blocks []int
	next, self := int32(0), -1
	for i, m := range members {
		for _, r := range m.GetRanks() {
			if r != next {
				return fmt.Errorf("%w: the ranks %v of %s do not follow those of the members before; are coordinator and workers of the same version?", errUnreachable, m.GetRanks(), m.GetWorker())
			}
			next++
		}
		blocks = append(blocks, len(m.GetRanks()))
		if m.GetWorker() == h.Worker {
			self = i
		}
	}
	p, err := shard.NewPlacement(blocks)
	if err == nil && p.WorldSize() != h.Config.WorldSize {
		err = fmt.Errorf("%d ranks are placed, of %d", p.WorldSize(), h.Config.WorldSize)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	if self < 0 {
		return fmt.Errorf("%s is not among the workers of generation %d", h.Worker, h.Order.GetGeneration())
	}
	h.Config.Placement, h.Config.Worker, h.self = p, self, self
	h.key = allreduce.Key{Job: h.Order.GetJob(), Generation: h.Order.GetGeneration(), SpecHash: h.Order.GetSpecHash(), Class: h.Spec.Job.Train.NumericClass}
	return nil
}

// leads tells whether rank 0 is here: its worker decides, measures, publishes and exports.
func (h *hosting) leads() bool { return h.self == 0 }

// openData begins to read the training data from the workers that serve it.
func (h *hosting) openData(ctx context.Context) error {
	servers := slices.Clone(h.Order.GetDataServers())
	for _, m := range h.Order.GetMembers() {
		if a := m.GetStreamAddress(); a != "" && !slices.Contains(servers, a) {
			servers = append(servers, a)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, connectMax)
	defer cancel()
	client, err := stream.Open(ctx, stream.Config{
		Security:    stream.Security{TLS: h.TLS, PlainText: h.TLS == nil},
		ContentHash: h.Spec.DataHash, Servers: servers, Vocab: int32(h.Config.Model.Vocab),
	})
	if err != nil {
		return fmt.Errorf("%w: training data: %w", errUnreachable, err)
	}
	h.samples.Client = client
	return nil
}

// feed marks what the stream cannot bring: later, or from other servers, it may.
type feed struct{ *stream.Client }

// Batch implements [trainer.Samples].
func (f *feed) Batch(ctx context.Context, indices []int64, dst *data.Batch) error {
	err := f.Client.Batch(ctx, indices, dst)
	if err != nil && ctx.Err() == nil && !errors.Is(err, stream.ErrRecord) && !errors.Is(err, data.ErrVocab) {
		err = fmt.Errorf("%w: training data: %w", errUnreachable, err)
	}
	return err
}

// openLanguage opens what evaluation needs.
func (h *hosting) openLanguage() error {
	var err error
	if h.Language, err = h.Base.Language(); err != nil {
		return err
	}
	h.dataSpec = DataSpec(&h.Spec.Job, h.CacheDir)
	if h.settled.Validation == "" {
		return nil
	}
	if h.Validation, err = data.Open(h.FS, filepath.Join(h.dir, h.settled.Validation)); err != nil {
		return err
	}
	h.closers = append(h.closers, h.Validation.Close)
	return nil
}

// connect takes the place and joins the ring.
func (h *hosting) connect(ctx context.Context) error {
	members := h.Order.GetMembers()
	if err := h.tr.Place(h.Config.Placement, h.self, h.Order.GetMirror()); err != nil {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	if len(members) == 1 {
		return nil
	}
	mem, err := h.tr.LinkMemory()
	if err != nil {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	ctx, cancel := context.WithTimeout(ctx, connectMax)
	defer cancel()
	names := make([]string, len(members))
	for i, m := range members {
		names[i] = m.GetWorker()
	}
	h.link, err = allreduce.Connect(ctx, h.Ring, allreduce.LinkConfig{
		Key: h.key, Table: h.Table, Placement: h.Config.Placement, Worker: h.self, Names: names,
		Next: members[(h.self+1)%len(members)].GetRingAddress(), Wire: h.Config.Wire, Arithmetic: h.tr.Arithmetic(),
		Memory: mem, Decide: h.tr.Decide, TLS: h.TLS, PeerName: h.PeerName, Mirror: h.tr.Mirrors(), GatherFirst: h.tr.GathersFirst(), OnDemand: h.tr.OnDemand(),
	})
	if err != nil {
		return fmt.Errorf("%w: the other workers of generation %d: %w", errUnreachable, h.Order.GetGeneration(), err)
	}
	link := h.link
	h.heeds.Go(func() { h.heed(link) })
	h.heeds.Go(func() { h.lookOut(link) })
	h.tr.Join(link)
	return nil
}

// resume makes the trainer's state that of the checkpoint that the log names.
func (h *hosting) resume(ctx context.Context) error {
	ck, err := checkpoint.OpenNamed(h.FS, h.dir, h.Order.GetResume().GetManifest())
	if err != nil {
		return h.missing(err)
	}
	defer ck.Close()
	if got, want := ck.Manifest.Weights.String(), h.Order.GetResume().GetWeights(); got != want {
		return fmt.Errorf("%w: step %d has weights %s, the log says %s", checkpoint.ErrDamaged, ck.Manifest.Step, got, want)
	}
	if h.leads() { // a publisher that was killed may not have got as far
		if err := h.commitResumed(); err != nil {
			return err
		}
	}
	if err := h.remember(ctx, ck.Manifest.Step); err != nil {
		return err
	}
	if err := h.store.restore(ck); err != nil {
		return err
	}
	h.store.dropUnpublished()
	h.before = counts{}
	if n, ok := h.store.value(tokensName, true); ok {
		h.before.Tokens = int64(n)
	}
	h.before.Seconds, _ = h.store.value(secondsName, true)
	h.countTargets()
	if ck.Manifest.Step > h.Steps {
		return fmt.Errorf("the job has %d steps, and step %d is published", h.Steps, ck.Manifest.Step)
	}
	return nil
}

func (h *hosting) countTargets() {
	h.targets = 0
	for _, s := range h.store.state.History {
		h.targets += s.Tokens
	}
}

// noteDecision notes a step's decision record, once.
func (h *hosting) noteDecision(d allreduce.Decision) {
	if n := len(h.store.state.History); n > 0 && h.store.state.History[n-1].Step >= d.Step {
		return
	}
	h.store.decided(d)
	h.targets += d.Tokens
}

// follow has the samples of the steps to come fetched ahead.
func (h *hosting) follow() error {
	return h.samples.Follow(stream.Plan{
		Order: h.Config.Order, Places: stream.RankPlaces(h.Config.Placement.Ranks(h.self), h.Config.Batch.Global, h.Config.WorldSize),
	}, h.tr.StepsDone()+1)
}

// missing says what it means that the checkpoint of the log cannot be opened.
func (h *hosting) missing(err error) error {
	steps, _, listed := checkpoint.Published(h.FS, h.dir)
	want := h.Order.GetResume().GetStep()
	if listed != nil || len(steps) == 0 || slices.Contains(steps, want) {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	return fmt.Errorf("the log goes on from step %d, and %s holds those of steps %v: was an old backup of the coordinators restored? `skein export --store` still reads the newest: %w",
		want, h.dir, steps, err)
}

// toTheEnd takes the steps that are left and hands over the result.
func (h *hosting) toTheEnd(ctx context.Context) error {
	from := h.tr.StepsDone()
	h.spent.step = from
	h.spent.lap(&h.spent.entering)
	if h.leads() {
		h.emit(console.Started{
			Steps: h.Steps, From: from, WorldSize: h.Config.WorldSize, Workers: len(h.Order.GetMembers()),
			Threads: h.Device.Info().Threads, SpecHash: h.Spec.Hash(),
		})
	}
	if from == 0 || h.evaluationDue(from) {
		if err := h.measureAndTell(ctx, from == 0); err != nil {
			return err
		}
	}
	// A checkpoint that was due, and that the end of the last generation kept from being
	// published, is made up for.
	if every := int64(h.Spec.Job.Checkpoint.Every); from > h.Order.GetResume().GetStep() && (from == h.Steps || every > 0 && from-from%every > h.Order.GetResume().GetStep()) {
		if err := h.save(ctx); err != nil {
			return err
		}
	}
	for h.tr.StepsDone() < h.Steps {
		if err := h.step(ctx); err != nil {
			return err
		}
	}
	if err := h.mustSave(ctx); err != nil {
		return err
	}
	if h.leads() || h.together() {
		if err := h.measure(ctx, true); err != nil {
			return err
		}
	}
	if h.leads() {
		if err := h.finish(ctx); err != nil {
			return err
		}
	}
	return h.over(ctx)
}

// over keeps what a worker has until the job is over: whoever hosts rank 0 may still die
// before the last checkpoint is published. Once it is over, nobody has to hear of it.
func (h *hosting) over(ctx context.Context) error {
	if h.link == nil {
		return nil
	}
	_, err := h.link.Exchange(ctx, "the job is over", nil)
	if h.leads() {
		return nil
	}
	return err
}

// step takes one step and does what is due after it.
func (h *hosting) step(ctx context.Context) error {
	if h.tr.StepsDone()+1 < h.Steps { // nobody stops at the end
		h.request(h.Yield, allreduce.RequestYield)
	}
	h.request(h.Checkpoint, allreduce.RequestCheckpoint)
	if err := h.saveAgain(); err != nil {
		return err
	}
	res, err := h.tr.Step(ctx)
	if err != nil {
		h.spent.lap(&h.spent.unfinished)
		return err
	}
	d := res.Decision
	h.took.Store(int64(res.Timing.Total()))
	h.spent.decided(d.Step, res.Timing.Data, res.Timing.Hold)
	h.noteDecision(d)
	h.tokens += res.Tokens
	// A worker knows its own ranks' padding; the others' is about the same.
	tokens := res.Tokens * int64(h.Config.WorldSize) / int64(len(h.Config.Placement.Ranks(h.self)))
	h.pace.add(res.Timing.Total(), tokens)
	if h.saving != nil {
		h.saving.blocked.Add(int64(res.Timing.Hold))
	}
	h.progress(res, tokens)
	h.noteNotFinite(res)
	if err := h.hearMeasured(ctx); err != nil {
		return err
	}
	if d.Requests&allreduce.RequestYield != 0 && d.Step < h.Steps {
		return h.yield(ctx, d)
	}
	if h.evaluationDue(d.Step) {
		if err := h.measureAndTell(ctx, false); err != nil {
			return err
		}
	}
	if due(d.Step, int64(h.Spec.Job.Checkpoint.Every)) || d.Step == h.Steps || d.Requests&allreduce.RequestCheckpoint != 0 {
		return h.save(ctx)
	}
	return h.failedSave()
}

// request puts a request into the next votes if someone asks for it.
func (h *hosting) request(asked <-chan struct{}, r allreduce.Requests) {
	select {
	case <-asked:
		h.tr.Request(r)
	default:
	}
}

// yield stops at a step boundary, with the checkpoint of that step if it is wanted too.
func (h *hosting) yield(ctx context.Context, d allreduce.Decision) error {
	if d.Requests&allreduce.RequestCheckpoint != 0 {
		if err := h.save(ctx); err != nil {
			return err
		}
		if err := h.mustSave(ctx); err != nil {
			return err
		}
	}
	if err := h.saved(ctx); err != nil {
		return err
	}
	if h.link != nil { // nobody leaves while another's checkpoint still goes round
		if _, err := h.link.Exchange(ctx, fmt.Sprintf("leave after step %d", d.Step), nil); err != nil {
			return err
		}
	}
	return errYielded
}

// progress tells everyone who wants to know about a step.
func (h *hosting) progress(res trainer.Result, tokens int64) {
	t, ev := res.Timing, h.stepped(res, tokens)
	phases := Phases{Timing: t, Straggler: res.Straggler}
	if h.link != nil {
		phases.RingBytes = sentBytes(h.link.Stats())
	}
	p := &skeinv1.Progress{
		Generation: h.Order.GetGeneration(), Step: ev.Step, Steps: ev.Steps, Loss: ev.Loss, LearningRate: ev.LearningRate, GradientNorm: ev.GradientNorm,
		TokensPerSecond: ev.TokensPerSecond, DataWaitShare: t.Data.Seconds() / t.Total().Seconds(),
		Tokens: h.before.Tokens + h.tokens*tokens/max(1, res.Tokens), Targets: h.targets,
		EtaSeconds: ev.ETASeconds,
	}
	p.Protected, p.Exposed = h.protection()
	p.Straggler, phases.Straggles = h.straggler(res.Straggler)
	p.Spent = h.spent.message()
	p.Unsaved = h.unsaved
	for _, r := range slices.Backward(h.store.lineage.Results) {
		if r.Name == lossName {
			p.ValidationLoss, p.ValidationStep, p.HasValidation = float64(r.Value), r.Step, true
			break
		}
	}
	h.told = p
	h.Report(p, phases)
	if h.leads() {
		h.emit(ev)
	}
}

func sentBytes(s allreduce.LinkStats) int64 {
	return s.Reduce.SentBytes + s.Gather.SentBytes + s.Rows.SentBytes + s.Votes.SentBytes + s.Messages.SentBytes + s.Mirror.SentBytes + s.State.SentBytes
}
