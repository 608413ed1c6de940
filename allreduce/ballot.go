package allreduce

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/skein-ml/skein/shard"
)

// The encoding of a vote is part of docs/formats/ring.md.
const voteFixed = 48

func appendVote(b []byte, v Vote) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, uint64(v.Step))
	b = le.AppendUint64(b, math.Float64bits(v.Loss))
	b = le.AppendUint64(b, uint64(v.Tokens))
	b = le.AppendUint16(b, uint16(v.Rank))
	var ok byte
	if v.Finite {
		ok = 1
	}
	b = append(b, ok, byte(v.Requests))
	b = le.AppendUint32(b, uint32(len(v.SqNorms)))
	b = le.AppendUint64(b, uint64(v.Data))
	b = le.AppendUint64(b, uint64(v.Compute))
	for _, x := range v.SqNorms {
		b = le.AppendUint64(b, math.Float64bits(x))
	}
	return b
}

// errVote is returned for bytes that are not a vote.
var errVote = errors.New("not a vote")

// decodeVote reads a vote; the norms go to the memory of norms.
func decodeVote(b []byte, norms []float64) (Vote, error) {
	le := binary.LittleEndian
	if len(b) < voteFixed || b[26] > 1 || Requests(b[27])&^requestsAll != 0 ||
		uint64(len(b)-voteFixed) != 8*uint64(le.Uint32(b[28:])) || int64(le.Uint64(b[32:])) < 0 || int64(le.Uint64(b[40:])) < 0 {
		return Vote{}, fmt.Errorf("%w: %d bytes", errVote, len(b))
	}
	v := Vote{
		Step: int64(le.Uint64(b)), Loss: math.Float64frombits(le.Uint64(b[8:])), Tokens: int64(le.Uint64(b[16:])),
		Rank: shard.Rank(le.Uint16(b[24:])), Finite: b[26] == 1, Requests: Requests(b[27]), SqNorms: norms[:0],
		Data: time.Duration(le.Uint64(b[32:])), Compute: time.Duration(le.Uint64(b[40:])),
	}
	for p := b[voteFixed:]; len(p) > 0; p = p[8:] {
		v.SqNorms = append(v.SqNorms, math.Float64frombits(le.Uint64(p)))
	}
	return v, nil
}

// Vote sends the votes of all hosted ranks and waits for the decision of their step. On
// rank 0's worker it waits for all votes, decides, and sends the decision round. A vote
// before everything is here that it vouches for is refused. Vote may be called again
// when its context has ended; and it returns a decision that is known, or that all votes
// allow, although the link has broken since.
func (l *Link) Vote(ctx context.Context, votes []Vote) (Decision, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.reducing || len(votes) != len(l.engine.hosted) {
		return Decision{}, fmt.Errorf("ring: %d votes of %d ranks, in step %d", len(votes), len(l.engine.hosted), l.step)
	}
	for _, v := range votes {
		if int(v.Rank) >= len(l.hosted) || v.Rank < 0 || !l.hosted[v.Rank] || v.Step != l.step {
			return Decision{}, fmt.Errorf("ring: a vote of rank %d in step %d, while step %d is under way", v.Rank, v.Step, l.step)
		}
	}
	if !l.cast {
		if err := l.castLocked(votes); err != nil {
			return Decision{}, err
		}
	}
	if l.c.Worker == 0 && l.decision == nil {
		return l.decideLocked(ctx)
	}
	if err := l.waitLocked(ctx, kindDecision, -1, func() bool { return l.decision != nil }); err != nil {
		return Decision{}, err
	}
	return *l.decision, nil
}

// castLocked sends the votes, or on rank 0's worker counts them.
func (l *Link) castLocked(votes []Vote) error {
	if l.err != nil {
		return l.err
	}
	if why := l.unready(); why != "" {
		return fmt.Errorf("ring: a vote on step %d before %s", l.step, why)
	}
	l.cast = true
	for _, v := range votes {
		if l.c.Worker == 0 {
			l.votes[v.Rank] = v
			l.votes[v.Rank].SqNorms = slices.Clone(v.SqNorms)
			l.voted++
			continue
		}
		h := header{Kind: kindVote, Step: v.Step, Piece: uint16(v.Rank), From: uint16(l.c.Worker)}
		l.sendLocked(item{header: h, payload: appendVote(nil, v)})
	}
	return nil
}

// Decided is the last decision that this worker knows. It is known from the moment at
// which it is here or made here, although Vote may not have returned, and stays known
// when the link has broken.
func (l *Link) Decided() (Decision, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.decided == nil {
		return Decision{}, false
	}
	return *l.decided, true
}

// decideLocked waits for the votes of all ranks and decides.
func (l *Link) decideLocked(ctx context.Context) (Decision, error) {
	if err := l.waitLocked(ctx, kindVote, -1, func() bool { return l.voted == len(l.votes) }); err != nil {
		return Decision{}, err
	}
	l.mu.Unlock()
	d, err := l.c.Decide(l.votes)
	l.mu.Lock()
	if err == nil && d.Step != l.step {
		err = fmt.Errorf("the decision is about step %d, not %d", d.Step, l.step)
	}
	if err != nil {
		return Decision{}, fmt.Errorf("ring: %w", err)
	}
	l.decision, l.decided = &d, &d
	l.sendLocked(item{header: header{Kind: kindDecision, Step: d.Step}, payload: AppendDecision(nil, d)})
	l.changed.Broadcast()
	return d, nil
}

// vote takes a vote on rank 0's worker, and passes it on elsewhere.
func (r *receiver) vote(h *header) error {
	l := r.l
	if int64(h.Length) > voteFixed+8*int64(l.c.Table.Buckets()) || int(h.Piece) >= l.c.Table.WorldSize() || l.hosted[h.Piece] {
		return outOfPlace(h, "%d bytes", h.Length)
	}
	b := make([]byte, h.Length)
	if err := r.payload(h, b); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	v, err := decodeVote(b, nil)
	switch {
	case err != nil || int(h.Piece) != int(v.Rank) || h.Step != v.Step:
		return outOfPlace(h, "its payload is not this vote")
	case !l.reducing || v.Step != l.step || l.decision != nil:
		return outOfPlace(h, "step %d is under way, decided: %t", l.step, l.decision != nil)
	case l.c.Worker != 0:
		l.sendLocked(item{header: *h, payload: b, summed: true})
		return nil
	case l.votes[v.Rank].Step == v.Step:
		return outOfPlace(h, "the rank has voted")
	}
	l.votes[v.Rank] = v
	l.voted++
	l.changed.Broadcast()
	return nil
}

// decision adopts the decision of the step and passes it on, ahead of everything that
// follows from it.
func (r *receiver) decision(h *header) error {
	l := r.l
	b := make([]byte, DecisionSize)
	if err := r.payload(h, b); err != nil {
		return err
	}
	d, err := DecodeDecision(b)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.reducing || d.Step != l.step || h.Step != d.Step || l.decision != nil || l.c.Worker == 0 {
		return outOfPlace(h, "step %d is under way, decided: %t", l.step, l.decision != nil)
	}
	if l.next != 0 {
		l.sendLocked(item{header: *h, payload: b, summed: true})
	}
	l.decision, l.decided = &d, &d
	l.changed.Broadcast()
	return nil
}
