// Package fsm is what the coordinators agree on: the jobs, where each of them is in
// its life, the workers, and which worker hosts which ranks. State is changed by
// Apply alone, one decision of the log at a time. There is no clock, no I/O and no
// chance here: the same entries give the same state on every coordinator, whoever
// leads, and a snapshot restored gives the state that was snapshot.
//
// The log carries decisions and never what led to them: that a worker is given up,
// not its heartbeats; that generation 3 has these ranks on these workers, not the
// report of a broken link. Nothing is logged per step.
package fsm

import (
	"maps"
	"slices"
	"strings"

	"github.com/skein-ml/skein/coordinator/ledger"
	"github.com/skein-ml/skein/shard"
)

// Limits on what the state may hold, so that snapshots stay small.
const (
	jobsActiveMax   = 1000 // submitted and not over
	jobsFinishedMax = 500  // the oldest make way
	workersMax      = 10_000
	eventsMax       = 64        // per job, the newest
	doubtsMax       = 64        // per job, the newest
	publishedMax    = 64        // per job, the newest
	jobsBytesMax    = 256 << 20 // of specs and results together; the oldest finished make way
)

// State is what the log has decided so far. The values that the maps point to are
// never changed, only replaced, so a Clone stays as it was.
type State struct {
	// Index is the log's index of the last entry applied.
	Index uint64 `json:"index"`
	// Epoch is when the state was restored from a backup, in Unix milliseconds; 0: it
	// never was. What workers were ordered in another epoch may be forgotten here.
	Epoch uint64 `json:"epoch,omitempty"`
	// Jobs by id.
	Jobs map[string]*Job `json:"jobs"`
	// Workers by name. Who is in here is believed to be alive; the leader looks.
	Workers map[string]*Worker `json:"workers"`

	// requests maps the id of a submission to its job: always what Jobs says.
	requests map[string]string
	lookup   *lookup // of a state that is frozen; nil: it is not
}

// Job is one job. It is read only.
type Job struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Request   string `json:"request"`  // id of the submission
	Sequence  uint64 `json:"sequence"` // index of its submission: the order of the queue
	Spec      []byte `json:"spec"`     // jobspec.Job as JSON
	Phase     Phase  `json:"phase"`
	Reason    string `json:"reason"`    // of the last change of phase or generation
	Submitted int64  `json:"submitted"` // Unix milliseconds by the leader's clock; for people
	Changed   int64  `json:"changed"`   // of phase or generation

	// From the spec, so that deciders need not read it.
	WorldSize  int    `json:"worldSize"`
	WorkersMin int    `json:"workersMin"`
	WorkersMax int    `json:"workersMax"`
	Class      string `json:"class"`              // numeric class: auto or a kernel's name, exact once resolved
	Store      string `json:"store"`              // of its checkpoints
	Priority   int    `json:"priority,omitempty"` // higher goes first
	Mirror     bool   `json:"mirror,omitempty"`   // each rank's state is kept by two workers
	// Memory is bytes that the fullest worker needs with WorkersMin workers; 0: not known
	// (yet).
	Memory int64 `json:"memory,omitempty"`

	// Preparation is who prepares. Its number rises with each try and is its fence.
	Preparation Preparation `json:"preparation"`

	// Resolved is jobspec.Resolved in canonical JSON.
	// Invariant: empty exactly while the job has not been queued yet.
	Resolved []byte `json:"resolved,omitempty"`
	SpecHash string `json:"specHash,omitempty"`
	DataHash string `json:"dataHash,omitempty"`
	Steps    int64  `json:"steps,omitempty"`
	Nonce    Nonce  `json:"nonce,omitzero"`

	// Generation is the version of the placement; 0: none yet. It never falls, and
	// whoever acts in a lower one is refused.
	Generation uint64 `json:"generation"`
	// Placement is who hosts the ranks, in rank order.
	// Invariant: not empty exactly while the job is running.
	Placement []Place `json:"placement,omitempty"`
	// Resume is the checkpoint that the generation began from; of a live one, the newest
	// when it began.
	Resume Checkpoint `json:"resume,omitzero"`
	// Live is what the generation went on from, if it did not begin from a checkpoint.
	// Invariant: nil unless the job is running.
	Live *Live `json:"live,omitempty"`
	// Parked is the generation whose workers may still hold the state of a job that waits.
	// Invariant: zero unless the job is queued.
	Parked Parked `json:"parked,omitzero"`
	// Setbacks counts generations in a row that began without anything gained since the
	// one before: no checkpoint, no step that the next one went on from.
	Setbacks int `json:"setbacks"`
	// Diverged is the last generation in which copies of a rank's state differed; 0: none.
	// Doubts are the workers that were named then, the newest last.
	Diverged uint64  `json:"diverged,omitempty"`
	Doubts   []Doubt `json:"doubts,omitempty"`
	// Paused keeps the job in the queue, or brings it there at its next step boundary.
	Paused      bool   `json:"paused,omitempty"`
	PausedIndex uint64 `json:"pausedIndex,omitempty"` // of the entry that paused it

	// Published are the newest checkpoints, ascending by step; not empty once resolved.
	Published      []Checkpoint `json:"published,omitempty"`
	PublishedIndex uint64       `json:"publishedIndex,omitempty"` // log index of the newest

	// Ledger is where its time went.
	Ledger ledger.Ledger `json:"ledger,omitzero"`

	Result []byte  `json:"result,omitempty"` // of a done job: JSON for the user
	Events []Event `json:"events"`           // the newest, oldest first
}

// Preparation is one try to import the model and prepare the data.
type Preparation struct {
	Number      uint64 `json:"number"` // 0: nobody has been asked yet
	Worker      string `json:"worker,omitempty"`
	Incarnation string `json:"incarnation,omitempty"`
	// GaveUp is how many tries before this one were given up by their workers, which
	// were not lost meanwhile.
	GaveUp int `json:"gaveUp,omitempty"`
}

// Nonce is what every worker must be able to read through the job's store before it
// gets ranks. An empty object: the store is reached by all by its nature.
type Nonce struct {
	Object string `json:"object"`
	Value  string `json:"value"`
}

// Place is one worker of a placement.
type Place struct {
	Worker      string `json:"worker"`
	Incarnation string `json:"incarnation"` // the process that was placed; another one has none of its state
	Ranks       []int  `json:"ranks"`       // ascending
}

// Live is the state, in the memory of workers, that a generation goes on from.
type Live struct {
	After  uint64 `json:"after"`  // generation that the state was sealed in; what a worker has of another one is not used
	Target int64  `json:"target"` // step that all go on from
	// Decision is D(Target), encoded as the ring does; empty if Target is that of a
	// checkpoint that all of them began from.
	Decision []byte   `json:"decision,omitempty"`
	Sources  []string `json:"sources"` // by rank, the worker of the placement that holds its state
}

// Parked is a generation that has ended and was not followed by another one yet.
type Parked struct {
	Generation uint64  `json:"generation"`
	Placement  []Place `json:"placement"`
	Live       *Live   `json:"live,omitempty"` // what it went on from
	From       int64   `json:"from"`           // step that it began at
}

// Doubt is that a worker had another copy of a rank's state than somebody else.
type Doubt struct {
	Worker     string `json:"worker"`
	Generation uint64 `json:"generation"`
	At         int64  `json:"at"` // Unix milliseconds
}

// Checkpoint is one that exists, because the log says so.
type Checkpoint struct {
	Generation uint64 `json:"generation"` // that wrote it; 0 for step 0
	Step       int64  `json:"step"`
	Manifest   string `json:"manifest"` // object in the job's store
	Weights    string `json:"weights"`  // hash of the master weights, hex
	Bytes      int64  `json:"bytes"`
	At         int64  `json:"at"` // Unix milliseconds
}

// Event is one line of a job's history.
type Event struct {
	Index uint64 `json:"index"` // of the entry
	At    int64  `json:"at"`    // Unix milliseconds
	Kind  string `json:"kind"`
	Text  string `json:"text"`
}

// Worker is a worker process that takes part. It is read only.
type Worker struct {
	Name        string   `json:"name"`
	Incarnation string   `json:"incarnation"`    // drawn when the process started
	Node        string   `json:"node"`           // machine: its failure domain
	Zone        string   `json:"zone,omitempty"` // of the machine: the failure domain around it; empty: not known
	Build       string   `json:"build"`
	Ring        string   `json:"ring"`   // address of its data plane
	Stream      string   `json:"stream"` // address of its record stream server
	Classes     []string `json:"classes"`
	Memory      int64    `json:"memory"` // bytes that a job may use
	Threads     int      `json:"threads"`
	Draining    bool     `json:"draining"`
	DrainIndex  uint64   `json:"drainIndex,omitempty"` // of the entry that drains it
}

// New is the state before the first entry.
func New() *State {
	return &State{Jobs: map[string]*Job{}, Workers: map[string]*Worker{}, requests: map[string]string{}}
}

// Clone returns a state that later entries do not change.
func (s *State) Clone() *State {
	return &State{Index: s.Index, Epoch: s.Epoch, Jobs: maps.Clone(s.Jobs), Workers: maps.Clone(s.Workers), requests: maps.Clone(s.requests)}
}

// Queue lists the jobs in the order in which they get workers: by priority, then by
// submission.
func (s *State) Queue() []*Job {
	queue := s.InOrder()
	slices.SortStableFunc(queue, func(a, b *Job) int { return b.Priority - a.Priority })
	return queue
}

// Is tells whether the worker of that name is the process that incarnation names.
func (s *State) Is(worker, incarnation string) bool {
	w := s.Workers[worker]
	return w != nil && w.Incarnation == incarnation
}

// Uses lists the workers that the job has now, in the order of its placement.
func (j *Job) Uses() []string {
	var names []string
	switch j.Phase {
	case Preparing:
		if j.Preparation.Worker != "" {
			names = []string{j.Preparation.Worker}
		}
	case Running:
		for _, p := range j.Placement {
			names = append(names, p.Worker)
		}
	}
	return names
}

// Newest is the checkpoint that the job would go on from. ok is false before step 0.
func (j *Job) Newest() (c Checkpoint, ok bool) {
	if len(j.Published) == 0 {
		return c, false
	}
	return j.Published[len(j.Published)-1], true
}

// Place finds a worker in the placement; nil if it is not in it.
func (j *Job) Place(worker string) *Place { return placeOf(j.Placement, worker) }

func placeOf(placement []Place, worker string) *Place {
	for i := range placement {
		if placement[i].Worker == worker {
			return &placement[i]
		}
	}
	return nil
}

// Ended is the generation whose sealed reports tell what is left of the job's state: the
// one that runs, or the one that was parked. It is zero if there is none.
func (j *Job) Ended() Parked {
	if j.Phase == Running {
		return Parked{Generation: j.Generation, Placement: j.Placement, Live: j.Live, From: j.Began()}
	}
	return j.Parked
}

// Useful is how many workers the job could use.
func (j *Job) Useful() int { return shard.UsefulWorkers(j.WorldSize, j.WorkersMax) }

// Holder finds a worker in the generation that [Job.Ended] names; nil if it is not in it.
func (j *Job) Holder(worker string) *Place { return placeOf(j.Ended().Placement, worker) }

// Sound tells whether what is left of the generation that [Job.Ended] names may be used.
func (j *Job) Sound() bool { return j.Diverged == 0 || j.Diverged != j.Ended().Generation }

// Doubted is how often copies of a worker differed from those of others since a moment in
// Unix milliseconds, and when they last did.
func (j *Job) Doubted(worker string, since int64) (times int, last int64) {
	for _, d := range j.Doubts {
		if d.Worker == worker && d.At >= since {
			times, last = times+1, max(last, d.At)
		}
	}
	return times, last
}

// Began is the step that the generation of a running job went on from.
func (j *Job) Began() int64 {
	if j.Live != nil {
		return j.Live.Target
	}
	return j.Resume.Step
}

// Has tells whether a worker can compute in the job's numeric class: the exact class
// of a resolved job, or the kernel that the spec names, or any if it names none, or any of
// precision high if it names that.
func (w *Worker) Has(class string) bool {
	if class == "" || class == "auto" {
		return true
	}
	return slices.ContainsFunc(w.Classes, func(c string) bool {
		kernel, _, _ := strings.Cut(c, " ")
		return c == class || kernel == class || class == "high" && strings.HasSuffix(kernel, "-high")
	})
}

// Fits tells whether a worker has the memory that a job needs, as far as both are known.
func (w *Worker) Fits(j *Job) bool { return j.Memory == 0 || w.Memory == 0 || w.Memory >= j.Memory }
