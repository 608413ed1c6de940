package raftlog

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// settling is how long Close waits for raft's answers. Without a quorum there are none
// before raft ends, which then answers by itself.
const settling = time.Second

// calls are the futures that raft has yet to answer. When raft ends it forgets those whose
// entry it has committed and not yet applied, and who waits for one waits for ever: so a
// node lets raft answer before it ends it, and asks nothing of it from then on.
type calls struct {
	mu     sync.Mutex
	open   int
	closed bool
	idle   chan struct{} // closed when closed and open is 0
	over   chan struct{} // closed when raft has ended
}

func newCalls() *calls { return &calls{idle: make(chan struct{}), over: make(chan struct{})} }

// wait makes a call and waits for its answer, but not longer than ctx. It is an error of
// raft's, or ErrUncertain.
func (c *calls) wait(ctx context.Context, call func() raft.Future) error {
	if !c.begin() {
		return raft.ErrRaftShutdown
	}
	future := call()
	done := make(chan error, 1) // room for the answer after ctx has ended
	go func() {
		defer c.end()
		done <- future.Error()
	}()
	select {
	case err := <-done:
		return err
	case <-c.over:
		return raft.ErrRaftShutdown
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUncertain, ctx.Err())
	}
}

func (c *calls) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.open++
	return true
}

func (c *calls) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if c.closed && c.open == 0 {
		close(c.idle)
	}
}

// settle refuses further calls and waits, for a moment, until the open ones are answered.
func (c *calls) settle() {
	c.mu.Lock()
	c.closed = true
	if c.open == 0 {
		close(c.idle)
	}
	c.mu.Unlock()
	select {
	case <-c.idle:
	case <-time.After(settling):
	}
}

// abandon lets those go who still wait; raft has ended.
func (c *calls) abandon() { close(c.over) }
