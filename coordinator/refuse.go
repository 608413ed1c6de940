package coordinator

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/raftlog"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// unary stands before every call.
func (c *Coordinator) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := c.admit(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	if err := grpc.SetHeader(ctx, metadata.Pairs(skeinv1.BuildKey, c.config.Build)); err != nil {
		return nil, err
	}
	answer, err := handler(ctx, request)
	return answer, c.refusal(err)
}

// stream stands before every stream.
func (c *Coordinator) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := c.admit(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	if err := stream.SetHeader(metadata.Pairs(skeinv1.BuildKey, c.config.Build)); err != nil {
		return err
	}
	return c.refusal(handler(srv, stream))
}

// admit lets a caller through to a method, or says why not.
func (c *Coordinator) admit(ctx context.Context, method string) error {
	if err := c.checkProtocol(ctx); err != nil {
		return err
	}
	return c.checkRole(ctx, method)
}

// checkProtocol refuses another protocol. Another build of the same protocol is only
// remarked on.
func (c *Coordinator) checkProtocol(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	first := func(key string) string {
		if v := md.Get(key); len(v) > 0 {
			return v[0]
		}
		return ""
	}
	protocol, build := first(skeinv1.ProtocolKey), first(skeinv1.BuildKey)
	if protocol != skeinv1.Protocol {
		return skeinv1.Refuse(codes.FailedPrecondition, &skeinv1.Refusal{Kind: skeinv1.Refusal_KIND_PROTOCOL},
			fmt.Sprintf("the caller (build %q) speaks protocol %q, coordinator %s (build %q) speaks %q; install the same version on both",
				build, protocol, c.config.ID, c.config.Build, skeinv1.Protocol))
	}
	c.greet(build)
	return nil
}

// buildsMax bounds how many builds are remembered. Nobody runs so many at once.
const buildsMax = 64

// greet remarks, once, on callers of another build.
func (c *Coordinator) greet(build string) {
	if build == c.config.Build {
		return
	}
	c.mu.Lock()
	first := !c.builds[build] && len(c.builds) < buildsMax
	if first {
		c.builds[build] = true
	}
	c.mu.Unlock()
	if first {
		c.config.Logger.Warn("a caller is of another build; install the same version everywhere", "build", line(build), "here", c.config.Build)
	}
}

// notLeader is the refusal of who does not lead.
func (c *Coordinator) notLeader() error {
	l := c.node.Leader()
	text := fmt.Sprintf("%s is not the leader; %s at %s is", c.config.ID, l.ID, l.Address)
	if l.ID == "" || l.ID == c.config.ID {
		l, text = raftlog.Server{}, fmt.Sprintf("%s is not the leader, and knows none at the moment", c.config.ID)
	}
	return skeinv1.Refuse(codes.Unavailable, &skeinv1.Refusal{Kind: skeinv1.Refusal_KIND_NOT_LEADER, LeaderId: l.ID, LeaderAddress: l.Address}, text)
}

// refusal says errors of our own in gRPC's words.
func (c *Coordinator) refusal(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	switch {
	case errors.Is(err, raftlog.ErrNotLeader):
		return c.notLeader()
	case errors.Is(err, raftlog.ErrUncertain):
		return status.Error(codes.Unavailable, err.Error())
	case errors.Is(err, fsm.ErrFenced):
		return skeinv1.Refuse(codes.Aborted, &skeinv1.Refusal{Kind: skeinv1.Refusal_KIND_FENCED}, err.Error())
	case errors.Is(err, fsm.ErrUnknown):
		return status.Error(codes.NotFound, err.Error())
	case errors.Is(err, fsm.ErrIllegal), errors.Is(err, fsm.ErrConflict):
		return status.Error(codes.FailedPrecondition, err.Error())
	case errors.Is(err, fsm.ErrFull):
		return status.Error(codes.ResourceExhausted, err.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Internal, err.Error())
}

// decided proposes what a caller asks for, and returns the job that it is about.
func (c *Coordinator) decided(ctx context.Context, reason string, d fsm.Decision) (string, error) {
	result, err := c.propose(ctx, fsm.Entry{Reason: line(reason), Decision: d})
	if err != nil {
		return "", err
	}
	return result.Job, result.Err
}

// lineBytesMax bounds a reason: it stands in the log, in events and on a screen.
const lineBytesMax = 1000

// line makes one bounded line of a caller's text.
func line(text string) string {
	b := make([]rune, 0, len(text))
	for _, r := range text {
		if r < ' ' {
			r = ' '
		}
		if b = append(b, r); len(b) >= lineBytesMax {
			return string(b) + "…"
		}
	}
	return string(b)
}
