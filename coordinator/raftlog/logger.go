package raftlog

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// hcLogger hands what raft logs to slog. Raft tells of each vote at level info, which
// is our debug, as is everything while hush holds.
func hcLogger(to *slog.Logger, hush func() bool) hclog.Logger {
	level := hclog.Warn
	if to.Enabled(context.Background(), slog.LevelDebug) {
		level = hclog.Info
	}
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Output: io.Discard, Level: level})
	l.RegisterSink(&slogSink{to: to, level: level, hush: hush, said: map[string]time.Time{}})
	return l
}

// What raft says and nobody needs to read: of every connection whose other end has gone,
// which is nobody's fault, and of a node that waits to be added.
const (
	connectionEnded = "failed to decode incoming command"
	noPeers         = "no known peers, aborting election"
)

// sayAgain is how long the same complaint about the same server is kept quiet: of one
// that is down, raft complains several times a second.
const sayAgain = 10 * time.Second

type slogSink struct {
	to    *slog.Logger
	level hclog.Level
	hush  func() bool

	mu   sync.Mutex
	said map[string]time.Time // by message and server
}

// again tells whether a complaint was made a moment ago.
func (s *slogSink) again(msg string, args []any) bool {
	about := []any{msg}
	for i := 0; i+1 < len(args); i += 2 {
		if args[i] == "peer" || args[i] == "server-id" {
			about = append(about, args[i+1])
		}
	}
	key := fmt.Sprint(about...)
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.said[key]) < sayAgain {
		return true
	}
	s.said[key] = time.Now()
	return false
}

// Accept implements hclog.SinkAdapter.
func (s *slogSink) Accept(name string, level hclog.Level, msg string, args ...any) {
	if level < s.level {
		return
	}
	as := slog.LevelDebug
	switch {
	case level < hclog.Warn || s.hush() || msg == connectionEnded || msg == noPeers || s.again(msg, args):
	case level == hclog.Warn:
		as = slog.LevelWarn
	default:
		as = slog.LevelError
	}
	for i, a := range args { // its own formatting types mean nothing to slog
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			if format, ok := f[0].(string); ok {
				args[i] = fmt.Sprintf(format, f[1:]...)
			}
		}
	}
	s.to.Log(context.Background(), as, name+": "+msg, args...)
}
