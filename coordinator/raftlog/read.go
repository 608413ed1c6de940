package raftlog

import (
	"context"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/skein-ml/skein/coordinator/fsm"
)

// Read returns a state that has everything that was acknowledged, by any node, before
// Read was called. The state must not be changed.
//
// It puts an empty entry into the log and waits until a majority has it: a node that has
// been replaced as leader, and does not know it yet, cannot get that. Asking the others
// for a sign of life would be cheaper, but a process that was stopped for a while finds
// answers from before in its buffers, and takes them for new ones.
func (n *Node) Read(ctx context.Context) (*fsm.State, error) {
	t := n.reads.join(n.barrier)
	select {
	case <-t.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUncertain, ctx.Err())
	}
	if t.err != nil {
		return nil, translate(t.err)
	}
	return n.machine.view(), n.Err()
}

// barrier puts an empty entry into the log; it has an answer when the leadership ends, at
// the latest.
func (n *Node) barrier() error {
	return n.calls.wait(context.Background(), func() raft.Future { return n.raft.Barrier(changeTimeout) })
}

// reads gathers those who read at the same time behind one entry. Who comes while an
// entry is on its way waits for the next one: that one may have been passed before.
type reads struct {
	mu      sync.Mutex
	next    *turn // of those who wait for an entry that is not proposed yet; nil: nobody
	running bool  // a goroutine proposes entries
	closed  bool
	done    sync.WaitGroup
}

// turn is one entry and those who wait for it.
type turn struct {
	done chan struct{}
	err  error // once done is closed
}

func (r *reads) join(barrier func() error) *turn {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		t := &turn{done: make(chan struct{}), err: raft.ErrRaftShutdown}
		close(t.done)
		return t
	}
	if r.next == nil {
		r.next = &turn{done: make(chan struct{})}
	}
	if !r.running {
		r.running = true
		r.done.Go(func() { r.run(barrier) })
	}
	return r.next
}

// run proposes entries until nobody waits for one.
func (r *reads) run(barrier func() error) {
	for {
		r.mu.Lock()
		t := r.next
		if r.next = nil; t == nil {
			r.running = false
		}
		r.mu.Unlock()
		if t == nil {
			return
		}
		t.err = barrier()
		close(t.done)
	}
}

// close ends the reads; the log must be shut down before.
func (r *reads) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.done.Wait()
}
