package raftlog

import (
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/skein-ml/skein/coordinator/fsm"
)

// machine is the state behind the log, as raft wants it.
type machine struct {
	mu     sync.Mutex
	state  *fsm.State
	shown  *fsm.State    // state as it is, for all who ask; nil since the last change
	wakeup chan struct{} // closed at the next change
	grown  int64         // bytes of entries that were applied since the last snapshot
	bound  int64         // of grown
	large  chan struct{} // one token: grown is over its bound
	err    error         // why nothing is applied any more
	failed chan struct{} // closed once err is set
}

func newMachine(bound int64) *machine {
	return &machine{state: fsm.New(), wakeup: make(chan struct{}), failed: make(chan struct{}), bound: bound, large: make(chan struct{}, 1)}
}

// view is the state as it is. All who ask before the next change get the same one: with
// many workers each change is looked at by as many.
func (m *machine) view() *fsm.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.shown == nil {
		m.shown = m.state.Freeze()
	}
	return m.shown
}

func (m *machine) changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wakeup
}

func (m *machine) failure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Apply implements raft.FSM. An entry that cannot be read stops the machine for good:
// to skip it would be to disagree with those who can read it.
func (m *machine) Apply(l *raft.Log) any {
	e, err := fsm.Decode(l.Data)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	if err != nil {
		m.err = fmt.Errorf("entry %d of the log: %w", l.Index, err)
		close(m.failed)
		return m.err
	}
	m.shown = nil
	result := m.state.Apply(l.Index, e)
	if m.grown += int64(len(l.Data)); m.grown > m.bound {
		m.grown = 0
		select {
		case m.large <- struct{}{}:
		default: // one is being made
		}
	}
	m.wake()
	return result
}

// wake tells who waits for a change. m.mu is held.
func (m *machine) wake() {
	close(m.wakeup)
	m.wakeup = make(chan struct{})
}

// Snapshot implements raft.FSM.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	if err := m.failure(); err != nil {
		return nil, err
	}
	return snapshot{m.view()}, nil
}

// Restore implements raft.FSM.
func (m *machine) Restore(r io.ReadCloser) error {
	defer r.Close()
	s, err := fsm.Restore(r)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state, m.shown = s, nil
	m.wake()
	return nil
}

// snapshot is a state on its way to disk.
type snapshot struct{ state *fsm.State }

// Persist implements raft.FSMSnapshot.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.state.Snapshot(sink); err != nil {
		_ = sink.Cancel() // the first error counts
		return err
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (s snapshot) Release() {}
