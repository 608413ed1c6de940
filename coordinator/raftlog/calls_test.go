package raftlog

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// lateAnswer is a future that is answered when its channel is closed.
type lateAnswer chan struct{}

func (a lateAnswer) Error() error { <-a; return nil }

func TestSettlingWaitsForTheAnswersOfRaft(t *testing.T) {
	c, open := newCalls(), make(lateAnswer)
	got := make(chan error, 1)
	called := make(chan struct{})
	go func() {
		got <- c.wait(t.Context(), func() raft.Future { close(called); return open })
	}()
	<-called
	time.AfterFunc(10*time.Millisecond, func() { close(open) })
	c.settle()
	if c.open != 0 {
		t.Fatalf("%d calls were open after the node had settled", c.open)
	}
	if err := <-got; err != nil {
		t.Fatalf("a call that raft answered while the node settled: %v", err)
	}
	if err := c.wait(t.Context(), func() raft.Future { t.Error("raft was asked"); return open }); !errors.Is(err, raft.ErrRaftShutdown) {
		t.Fatalf("a call after the node had settled: %v, want %v", err, raft.ErrRaftShutdown)
	}
}

func TestACallThatRaftForgetsEndsWithTheNode(t *testing.T) {
	c, open := newCalls(), make(lateAnswer)
	defer close(open)
	got := make(chan error, 1)
	called := make(chan struct{})
	go func() {
		got <- c.wait(t.Context(), func() raft.Future { close(called); return open })
	}()
	<-called
	c.settle()
	c.abandon()
	if err := <-got; !errors.Is(err, raft.ErrRaftShutdown) {
		t.Fatalf("%v, want %v", err, raft.ErrRaftShutdown)
	}
}
