package leader

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// guardEvery is how long a call or a stream goes on before its coordinator is asked
// whether it still leads, and how long until it is asked again; guardPatience is how
// long the answer may take. One late answer may be due to a busy machine, and is asked
// for again at once.
const (
	guardEvery    = 2 * time.Second
	guardPatience = 2 * time.Second
	guardMisses   = 2 // late answers in a row that a coordinator is given up for
)

// guard watches the coordinator that a call or a stream waits for. A process that hangs,
// or was stopped, keeps its connections open and says nothing: without a question one
// would wait for ever.
type guard struct {
	cancel context.CancelFunc
	timer  *time.Timer
	lost   atomic.Pointer[status.Status] // why the coordinator was given up
}

// guard begins to watch. What is done with ctx ends when the coordinator is given up.
// Whoever calls it ends the guard.
func (c *Conn) guard(ctx context.Context, conn *grpc.ClientConn, address string) (context.Context, *guard) {
	ctx, cancel := context.WithCancel(ctx)
	g := &guard{cancel: cancel}
	g.timer = time.AfterFunc(guardEvery, func() {
		again := time.NewTicker(guardEvery)
		defer again.Stop()
		misses := 0
		for ctx.Err() == nil {
			asked := time.Now()
			err := c.leads(ctx, conn, address, guardPatience)
			if err != nil && time.Since(asked) >= guardPatience {
				if misses++; misses < guardMisses {
					continue
				}
			}
			if err != nil && ctx.Err() == nil {
				g.giveUp(address, err)
				return
			}
			misses = 0
			select {
			case <-again.C:
			case <-ctx.Done():
			}
		}
	})
	return ctx, g
}

func (g *guard) giveUp(address string, err error) {
	s := status.Convert(err)
	if s.Code() != codes.Unavailable {
		s = status.Newf(codes.Unavailable, "%s does not say whether it leads: %s", address, s.Message())
	}
	g.lost.Store(s)
	g.cancel()
}

// end ends the watch.
func (g *guard) end() {
	g.timer.Stop()
	g.cancel()
}

// why is the error of what was watched: that the coordinator was given up, if that ended
// it.
func (g *guard) why(err error) error {
	if s := g.lost.Load(); s != nil && err != nil {
		return s.Err()
	}
	return err
}

// guarded is a stream that is watched.
type guarded struct {
	grpc.ClientStream
	guard *guard
}

// RecvMsg implements grpc.ClientStream.
func (s guarded) RecvMsg(m any) error { return s.guard.why(s.ClientStream.RecvMsg(m)) }

// SendMsg implements grpc.ClientStream.
func (s guarded) SendMsg(m any) error { return s.guard.why(s.ClientStream.SendMsg(m)) }
