package raftlog

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestTheSameComplaintIsMadeOnceInAWhile(t *testing.T) {
	var out bytes.Buffer
	l := hcLogger(slog.New(slog.NewTextHandler(&out, nil)), func() bool { return false })
	for range 5 {
		l.Error("failed to heartbeat to", "peer", "c2", "error", "refused")
		l.Error("failed to heartbeat to", "peer", "c3", "error", "refused")
		l.Warn("heartbeat timeout reached")
		l.Error(connectionEnded, "error", "EOF")
		l.Warn(noPeers)
		l.Info("entering follower state")
	}
	got := out.String()
	for text, want := range map[string]int{"level=ERROR": 2, "level=WARN": 1, "peer=c2": 1, "peer=c3": 1, connectionEnded: 0, noPeers: 0, "entering": 0} {
		if n := strings.Count(got, text); n != want {
			t.Errorf("%q is said %d times, want %d:\n%s", text, n, want, got)
		}
	}
}

func TestNothingIsSaidWhileItIsHushed(t *testing.T) {
	var out bytes.Buffer
	hushed := true
	l := hcLogger(slog.New(slog.NewTextHandler(&out, nil)), func() bool { return hushed })
	l.Error("failed to make requestVote RPC", "target", "c2")
	if out.Len() > 0 {
		t.Errorf("it says:\n%s", &out)
	}
	hushed = false
	l.Error("failed to make requestVote RPC", "target", "c2")
	if !strings.Contains(out.String(), "level=ERROR") {
		t.Error("an error is kept quiet")
	}
}
