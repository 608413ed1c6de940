package fsm

import "github.com/skein-ml/skein/coordinator/ledger"

// Entry is one entry of the log: a decision, when the leader proposed it, and why.
type Entry struct {
	At       int64    // Unix milliseconds by the leader's clock; for people
	Reason   string   // one line; it becomes the job's reason and event
	Decision Decision // one of the types below
	// Spent is what is known of the job's running generation: where its time went. No
	// decision depends on it.
	Spent ledger.Spent
}

// Decision is something that the log may decide.
type Decision interface {
	// Kind is the decision's name on disk.
	Kind() string
	// apply checks the decision against the state and carries it out. It changes
	// nothing if it returns an error.
	apply(s *State, index uint64, e Entry) (job string, err error)
}

// Submit admits a job as preparing.
type Submit struct {
	Request    string `json:"request"` // id that the client chose
	Name       string `json:"name"`
	Spec       []byte `json:"spec"`
	WorldSize  int    `json:"worldSize"`
	WorkersMin int    `json:"workersMin"`
	WorkersMax int    `json:"workersMax"`
	Class      string `json:"class"`
	Store      string `json:"store"`
	Priority   int    `json:"priority,omitempty"`
	Mirror     bool   `json:"mirror,omitempty"`
}

// Prepare has a worker import the model and prepare the data.
type Prepare struct {
	Job         string `json:"job"`
	Number      uint64 `json:"number"` // one more than the job's last try
	Worker      string `json:"worker"`
	Incarnation string `json:"incarnation"`
	GaveUp      bool   `json:"gaveUp,omitempty"` // the worker of the last try gave it up
}

// Resolve ends a preparation: step 0 is published and nothing is open any more.
type Resolve struct {
	Job      string     `json:"job"`
	Number   uint64     `json:"number"` // of the preparation
	Resolved []byte     `json:"resolved"`
	SpecHash string     `json:"specHash"`
	DataHash string     `json:"dataHash"`
	Class    string     `json:"class"`
	Steps    int64      `json:"steps"`
	Nonce    Nonce      `json:"nonce"`
	Step0    Checkpoint `json:"step0"`
	Memory   int64      `json:"memory,omitempty"` // bytes on the fullest worker; 0: unknown
}

// Generate places all ranks anew. The generation begins from checkpoint From, or goes on
// from what its workers hold in memory if Live is set.
type Generate struct {
	Job        string  `json:"job"`
	Generation uint64  `json:"generation"` // one more than the job's
	From       int64   `json:"from"`       // step of the newest published checkpoint
	Placement  []Place `json:"placement"`
	Live       *Live   `json:"live,omitempty"`
}

// Suspend sends a running job back to the queue: too few workers are left, others need
// them more, or it is paused. The generation that ended is parked.
type Suspend struct {
	Job        string `json:"job"`
	Generation uint64 `json:"generation"` // one more than the job's, to fence the last one off
}

// Publish makes a checkpoint exist.
type Publish struct {
	Job        string     `json:"job"`
	Checkpoint Checkpoint `json:"checkpoint"` // its generation is the job's
}

// Complete ends a job whose last step is published.
type Complete struct {
	Job        string `json:"job"`
	Generation uint64 `json:"generation"`
	Result     []byte `json:"result"`
}

// Fail ends a job that cannot succeed. Who acts for a generation or a preparation
// names it; the leader itself names neither.
type Fail struct {
	Job         string `json:"job"`
	Generation  uint64 `json:"generation"`
	Preparation uint64 `json:"preparation"`
}

// Scale changes the most workers that a job uses.
type Scale struct {
	Job     string `json:"job"`
	Workers int    `json:"workers"`
}

// Pause keeps a job from running until it is resumed.
type Pause struct {
	Job string `json:"job"`
}

// Resume lets a paused job go on.
type Resume struct {
	Job string `json:"job"`
}

// Diverge says that two copies of a rank's state differ. One of the two machines is
// wrong, and nobody knows which: what the generation's workers have in memory is not used
// any more, and the next one begins from the newest checkpoint.
type Diverge struct {
	Job        string `json:"job"`
	Generation uint64 `json:"generation"`
	Owner      string `json:"owner"`  // worker that hosted the rank
	Mirror     string `json:"mirror"` // worker that mirrored it
}

// Cancel ends a job because someone asked.
type Cancel struct {
	Job string `json:"job"`
}

// Register lets a worker process take part, in the place of any of its name.
type Register struct {
	Worker Worker `json:"worker"`
}

// Drain keeps new work from a worker that wants to leave.
type Drain struct {
	Worker      string `json:"worker"`
	Incarnation string `json:"incarnation"`
}

// Remove takes out a worker that has left or is given up.
type Remove struct {
	Worker      string `json:"worker"`
	Incarnation string `json:"incarnation"`
}

// kinds makes an empty decision of each kind, for reading.
var kinds = map[string]func() Decision{
	"submit":   func() Decision { return new(Submit) },
	"prepare":  func() Decision { return new(Prepare) },
	"resolve":  func() Decision { return new(Resolve) },
	"generate": func() Decision { return new(Generate) },
	"suspend":  func() Decision { return new(Suspend) },
	"publish":  func() Decision { return new(Publish) },
	"complete": func() Decision { return new(Complete) },
	"fail":     func() Decision { return new(Fail) },
	"scale":    func() Decision { return new(Scale) },
	"pause":    func() Decision { return new(Pause) },
	"resume":   func() Decision { return new(Resume) },
	"diverge":  func() Decision { return new(Diverge) },
	"cancel":   func() Decision { return new(Cancel) },
	"register": func() Decision { return new(Register) },
	"drain":    func() Decision { return new(Drain) },
	"remove":   func() Decision { return new(Remove) },
}

// Kind implements Decision.
func (*Submit) Kind() string { return "submit" }

// Kind implements Decision.
func (*Prepare) Kind() string { return "prepare" }

// Kind implements Decision.
func (*Resolve) Kind() string { return "resolve" }

// Kind implements Decision.
func (*Generate) Kind() string { return "generate" }

// Kind implements Decision.
func (*Suspend) Kind() string { return "suspend" }

// Kind implements Decision.
func (*Publish) Kind() string { return "publish" }

// Kind implements Decision.
func (*Complete) Kind() string { return "complete" }

// Kind implements Decision.
func (*Fail) Kind() string { return "fail" }

// Kind implements Decision.
func (*Scale) Kind() string { return "scale" }

// Kind implements Decision.
func (*Pause) Kind() string { return "pause" }

// Kind implements Decision.
func (*Resume) Kind() string { return "resume" }

// Kind implements Decision.
func (*Diverge) Kind() string { return "diverge" }

// Kind implements Decision.
func (*Cancel) Kind() string { return "cancel" }

// Kind implements Decision.
func (*Register) Kind() string { return "register" }

// Kind implements Decision.
func (*Drain) Kind() string { return "drain" }

// Kind implements Decision.
func (*Remove) Kind() string { return "remove" }
