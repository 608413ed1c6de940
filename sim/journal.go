package sim

import (
	"bytes"
	"errors"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
)

// journal is the log that coordinators agree on: what is in it stays, in this order. It
// grows only at the leader's word, and only while most coordinators live.
type journal struct {
	entries [][]byte // encoded
	leader  int      // who may write; −1: nobody
	term    int
}

var errNoLeader = errors.New("not the leader")

// propose puts an entry into the log and tells what became of it. At times a leader dies
// in the middle: then the entry is in the log, or it is not.
func (w *world) propose(c *coordinator, e fsm.Entry) (fsm.Result, error) {
	if w.log.leader != c.id || !c.up || !w.majority() {
		return fsm.Result{}, errNoLeader
	}
	e.At = c.wall().UnixMilli()
	if w.faults.dieWriting && w.one(3) {
		w.faults.dieWriting = false
		written := w.one(2)
		w.say("coordinator %d dies as it writes %s, which is in the log: %t", c.id, e.Decision.Kind(), written)
		if written {
			w.write(e)
		}
		w.killCoordinator(c)
		return fsm.Result{}, errNoLeader
	}
	before := c.state.Jobs[w.job.id]
	w.write(e)
	r := c.follow()
	w.say("log %d: %s %s: %s %v", len(w.log.entries), e.Decision.Kind(), r.Job, e.Reason, r.Err)
	if r.Err == nil {
		w.logged(c, before, e)
	}
	return r, nil
}

func (w *world) write(e fsm.Entry) {
	b, err := e.Encode()
	if err != nil {
		panic(err)
	}
	w.log.entries = append(w.log.entries, b)
}

func (w *world) majority() bool { return 2*w.upCoordinators() > len(w.coordinators) }

// follow applies what is in the log and not in the state, and returns what became of the
// last entry.
func (c *coordinator) follow() (last fsm.Result) {
	for int(c.state.Index) < len(c.w.log.entries) {
		e, err := fsm.Decode(c.w.log.entries[c.state.Index])
		if err != nil {
			panic(err)
		}
		last = c.state.Apply(c.state.Index+1, e)
	}
	return last
}

// elect finds a leader some time after the last one is gone.
func (w *world) elect() {
	if w.log.leader >= 0 {
		return
	}
	w.after(w.between(150*time.Millisecond, 700*time.Millisecond), func() {
		if w.log.leader >= 0 || !w.majority() {
			return
		}
		at := w.rng.IntN(len(w.coordinators))
		for !w.coordinators[at].up {
			at = (at + 1) % len(w.coordinators)
		}
		w.log.leader = at
		w.log.term++
		w.coordinators[at].crown()
	})
}

func (w *world) killCoordinator(c *coordinator) {
	if !c.up {
		return
	}
	c.up = false
	w.say("coordinator %d dies", c.id)
	w.depose(c)
	w.after(w.between(500*time.Millisecond, 3*time.Second), func() { w.startCoordinator(c, w.one(4)) })
}

// depose takes the lead from a coordinator. Its sessions end a little later.
func (w *world) depose(c *coordinator) {
	if w.log.leader == c.id {
		w.log.leader = -1
		w.count("leader lost")
	}
	if r := c.reign; r != nil {
		c.reign = nil
		for _, p := range w.workers {
			if s := p.session; s != nil && s.reign == r {
				p.later(w.between(time.Millisecond, 60*time.Millisecond), func() { p.loseSession(s, false) })
			}
		}
	}
	w.elect()
}

// startCoordinator starts one from its disk, or, if that is empty or spoilt, from a
// snapshot of another one.
func (w *world) startCoordinator(c *coordinator, spoilt bool) {
	c.up, c.state = true, fsm.New()
	if spoilt {
		for _, other := range w.coordinators {
			if other != c && other.up {
				other.follow()
				var b bytes.Buffer
				if err := other.state.Snapshot(&b); err != nil {
					panic(err)
				}
				s, err := fsm.Restore(&b)
				if err != nil {
					panic(err)
				}
				c.state = s
				w.count("coordinator rejoined from a snapshot")
				break
			}
		}
	}
	c.follow()
	w.say("coordinator %d is back at %d", c.id, c.state.Index)
	w.elect()
}

// agree checks that all coordinators make the same of the log.
func (w *world) agree() {
	var first []byte
	for _, c := range w.coordinators {
		if !c.up {
			continue
		}
		c.follow()
		var b bytes.Buffer
		if err := c.state.Snapshot(&b); err != nil {
			panic(err)
		}
		if first == nil {
			first = b.Bytes()
		} else if !bytes.Equal(first, b.Bytes()) {
			_ = w.wrong("coordinator %d makes something else of the same log", c.id)
		}
	}
}
