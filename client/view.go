package client

import (
	"encoding/json"
	"path/filepath"
	"time"

	"github.com/skein-ml/skein/jobspec"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Job is a job as lists and machines show it.
type Job struct {
	ID           string          `json:"id"`
	Name         string          `json:"name"`
	Phase        string          `json:"phase"`
	Reason       string          `json:"reason,omitempty"`     // of the last change
	WaitingFor   string          `json:"waitingFor,omitempty"` // of a preparing or queued job
	Submitted    time.Time       `json:"submitted"`
	Changed      time.Time       `json:"changed"` // phase or generation
	Generation   uint64          `json:"generation"`
	Workers      []Placed        `json:"workers,omitempty"`
	Preparer     string          `json:"preparer,omitempty"`
	WorldSize    int32           `json:"worldSize"`
	WorkersMin   int32           `json:"workersMin"`
	WorkersMax   int32           `json:"workersMax"`
	Priority     int32           `json:"priority,omitempty"`
	Pausing      bool            `json:"pausing,omitempty"` // it is to pause, and runs still
	Live         bool            `json:"live,omitempty"`    // its generation went on from the memory of its workers
	Mirror       bool            `json:"mirror,omitempty"`  // its state is mirrored, once the mirrors are filled
	Step         int64           `json:"step"`
	Steps        int64           `json:"steps"` // 0 until resolved
	Progress     *Progress       `json:"progress,omitempty"`
	Domains      string          `json:"domains,omitempty"` // failure domains that its mirrors share with what they mirror
	Goodput      *Goodput        `json:"goodput,omitempty"`
	Published    *Published      `json:"published,omitempty"`
	SpecHash     string          `json:"specHash,omitempty"`
	NumericClass string          `json:"numericClass,omitempty"`
	Result       json.RawMessage `json:"result,omitempty"` // of a done job

	Store  string          `json:"store,omitempty"` // folder of its checkpoints
	Spec   json.RawMessage `json:"spec,omitempty"`  // as submitted
	Events []Said          `json:"events,omitempty"`
}

// Placed is a worker of a job and the ranks that it hosts.
type Placed struct {
	Worker string  `json:"worker"`
	Ranks  []int32 `json:"ranks"`
}

// Progress is how a running job gets on.
type Progress struct {
	Loss            float64  `json:"loss"`
	LearningRate    float64  `json:"learningRate"`
	GradientNorm    float64  `json:"gradientNorm"`
	TokensPerSecond float64  `json:"tokensPerSecond"`
	DataWaitShare   float64  `json:"dataWaitShare"`
	Tokens          int64    `json:"tokens"`
	Targets         int64    `json:"targets"`
	Validation      *float64 `json:"validationLoss,omitempty"`
	ValidationStep  int64    `json:"validationStep,omitempty"`
	ETASeconds      float64  `json:"etaSeconds"`
	Protected       bool     `json:"protected"`           // the loss of a worker costs no step
	Exposed         string   `json:"exposed,omitempty"`   // which ranks are not, why and until when
	Straggler       string   `json:"straggler,omitempty"` // the rank that all others wait for, and by how much
	Unsaved         string   `json:"unsaved,omitempty"`   // why the checkpoint that was due is not published
}

// Goodput is where a job's time went, in seconds that add up to its wall time.
type Goodput struct {
	Share      float64 `json:"share"`    // productive, of the wall time but for Preparing
	Capacity   float64 `json:"capacity"` // workers for each that it could use, in the mean while it trained
	Wall       float64 `json:"wallSeconds"`
	Preparing  float64 `json:"preparingSeconds"`
	Productive float64 `json:"productiveSeconds"`
	Recovery   float64 `json:"recoverySeconds"`
	Rework     float64 `json:"reworkSeconds"`
	Checkpoint float64 `json:"checkpointSeconds"`
	DataWait   float64 `json:"dataWaitSeconds"`
	Evaluation float64 `json:"evaluationSeconds"`
	Paused     float64 `json:"pausedSeconds"`
}

// goodputOf is nil for a job that was not trained yet.
func goodputOf(l *skeinv1.Ledger) *Goodput {
	if l.GetCapacity() == 0 {
		return nil
	}
	s := func(ms int64) float64 { return float64(ms) / 1000 }
	g := &Goodput{
		Capacity: l.GetCapacity(), Preparing: s(l.GetPreparingMs()), Productive: s(l.GetProductiveMs()), Recovery: s(l.GetRecoveryMs()), Rework: s(l.GetReworkMs()),
		Checkpoint: s(l.GetCheckpointMs()), DataWait: s(l.GetDataWaitMs()), Evaluation: s(l.GetEvaluationMs()), Paused: s(l.GetPausedMs()),
	}
	since := g.Productive + g.Recovery + g.Rework + g.Checkpoint + g.DataWait + g.Evaluation + g.Paused
	if g.Wall = since + g.Preparing; since > 0 {
		g.Share = g.Productive / since
	}
	return g
}

// Published is a job's newest checkpoint.
type Published struct {
	Step       int64     `json:"step"`
	Generation uint64    `json:"generation"`
	Manifest   string    `json:"manifest"`
	Weights    string    `json:"weights"`
	Bytes      int64     `json:"bytes"`
	At         time.Time `json:"at"`
}

func moments(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// View is a job as people see it.
func View(j *skeinv1.Job) Job {
	v := Job{
		ID: j.GetId(), Name: j.GetName(), Phase: Word(j.GetPhase()), Reason: j.GetReason(), WaitingFor: j.GetWaitingFor(),
		Submitted: moments(j.GetSubmittedUnixMs()), Changed: moments(j.GetChangedUnixMs()), Generation: j.GetGeneration(),
		Preparer: j.GetPreparer(), WorldSize: j.GetWorldSize(), WorkersMin: j.GetWorkersMin(), WorkersMax: j.GetWorkersMax(),
		Steps: j.GetSteps(), Priority: j.GetPriority(), Live: j.GetLive(), Mirror: j.GetMirror(),
		Pausing:  j.GetPaused() && j.GetPhase() == skeinv1.Phase_PHASE_RUNNING,
		SpecHash: j.GetSpecHash(), NumericClass: j.GetNumericClass(), Result: j.GetResult(),
	}
	v.Goodput, v.Domains = goodputOf(j.GetLedger()), j.GetDomains()
	for _, m := range j.GetMembers() {
		v.Workers = append(v.Workers, Placed{m.GetWorker(), m.GetRanks()})
	}
	if p := j.GetPublished(); p != nil {
		v.Step = p.GetStep()
		v.Published = &Published{p.GetStep(), p.GetGeneration(), p.GetManifest(), p.GetWeights(), p.GetBytes(), moments(p.GetAtUnixMs())}
	}
	if p := j.GetProgress(); p != nil && p.GetGeneration() == j.GetGeneration() {
		v.Step = max(v.Step, p.GetStep())
		v.Progress = &Progress{
			Loss: p.GetLoss(), LearningRate: p.GetLearningRate(), GradientNorm: p.GetGradientNorm(), TokensPerSecond: p.GetTokensPerSecond(),
			DataWaitShare: p.GetDataWaitShare(), Tokens: p.GetTokens(), Targets: p.GetTargets(), ETASeconds: p.GetEtaSeconds(),
			Protected: p.GetProtected(), Exposed: p.GetExposed(), Straggler: p.GetStraggler(), Unsaved: p.GetUnsaved(),
		}
		if p.GetHasValidation() {
			loss := p.GetValidationLoss()
			v.Progress.Validation, v.Progress.ValidationStep = &loss, p.GetValidationStep()
		}
	}
	return v
}

// Describe is all that is known of a job.
func Describe(g *skeinv1.GetResponse) Job {
	v := View(g.GetJob())
	v.Spec = g.GetSpec()
	v.Store = Store(g)
	for _, e := range g.GetEvents() {
		v.Events = append(v.Events, Said{Kind: e.GetKind(), At: moments(e.GetAtUnixMs()), Text: e.GetText(), Job: v.ID})
	}
	return v
}

// Store is the folder of a job's checkpoints; empty if its spec cannot be read.
func Store(g *skeinv1.GetResponse) string {
	var spec jobspec.Job
	if err := json.Unmarshal(g.GetSpec(), &spec); err != nil || spec.Checkpoint.Store == "" {
		return ""
	}
	return filepath.Join(spec.Checkpoint.Store, g.GetJob().GetId())
}

// Nodes are the processes of a cluster.
type Nodes struct {
	Coordinators []Coordinator `json:"coordinators"`
	Workers      []Worker      `json:"workers"`
}

// Coordinator is one of them.
type Coordinator struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	Leader  bool   `json:"leader"`
	Fault   string `json:"fault,omitempty"` // why it cannot be reached from here
}

// Worker is one of them.
type Worker struct {
	Name           string   `json:"name"`
	State          string   `json:"state"` // free, busy, draining or lost
	Node           string   `json:"node"`
	Zone           string   `json:"zone,omitempty"`
	Build          string   `json:"build"`
	NumericClasses []string `json:"numericClasses"`
	MemoryBytes    int64    `json:"memoryBytes"`
	Threads        int32    `json:"threads"`
	Ring           string   `json:"ring"`
	Stream         string   `json:"stream"`
	Job            string   `json:"job,omitempty"`
	Ranks          []int32  `json:"ranks,omitempty"`
	SilentMS       int64    `json:"silentMs"` // −1: the leader has not heard it
}

// ViewNodes is the answer of Nodes as people see it.
func ViewNodes(n *skeinv1.NodesResponse) Nodes {
	v := Nodes{Coordinators: []Coordinator{}, Workers: []Worker{}}
	for _, c := range n.GetCoordinators() {
		v.Coordinators = append(v.Coordinators, Coordinator{ID: c.GetId(), Address: c.GetAddress(), Leader: c.GetLeader()})
	}
	for _, w := range n.GetWorkers() {
		v.Workers = append(v.Workers, Worker{
			Name: w.GetWorker(), State: stateOf(w), Node: w.GetNode(), Zone: w.GetZone(), Build: w.GetBuild(), NumericClasses: w.GetNumericClasses(),
			MemoryBytes: w.GetMemoryBytes(), Threads: w.GetThreads(), Ring: w.GetRingAddress(), Stream: w.GetStreamAddress(),
			Job: w.GetJob(), Ranks: w.GetRanks(), SilentMS: w.GetSilentMs(),
		})
	}
	return v
}

func stateOf(w *skeinv1.WorkerNode) string {
	switch {
	case !w.GetConnected():
		return "lost"
	case w.GetDraining():
		return "draining"
	case w.GetJob() != "":
		return "busy"
	}
	return "free"
}
