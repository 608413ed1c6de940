package allreduce

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/skein-ml/skein/internal/crc32c"
	"github.com/skein-ml/skein/shard"
)

// readAhead is small: it saves the system call for a header and for small frames, and
// the bulk of a large frame still goes straight to its place.
const readAhead = 8 << 10

// errSum is returned for a payload that is not what was sent.
var errSum = errors.New("the checksum of its payload differs")

// receiver is the reader's side of a link, for one goroutine.
type receiver struct {
	l    *Link
	r    *bufio.Reader
	head [headerSize]byte
	h    header
}

// receive reads frames from the previous worker until it leaves or the link breaks.
func (l *Link) receive() {
	r := &receiver{l: l, r: bufio.NewReaderSize(l.in.reader, readAhead)}
	for {
		bye, err := r.frame()
		if err != nil {
			l.prevFault(err)
			break
		}
		if bye {
			l.in.closeWrite() // the sender waits for this to close without loss
			break
		}
	}
	if l.polite() {
		_, _ = io.Copy(io.Discard, r.r) // until the other side ends it, or the deadline
	}
}

// frame reads one frame and acts on it.
func (r *receiver) frame() (bye bool, err error) {
	if _, err := io.ReadFull(r.r, r.head[:]); err != nil {
		return false, err
	}
	h := &r.h
	if err := h.decode(r.head[:]); err != nil {
		return false, err
	}
	if err := r.l.noteReceived(h); err != nil {
		return false, err
	}
	if err := r.l.checkFrom(h); err != nil {
		return false, err
	}
	switch h.Kind {
	case kindReduce:
		err = r.reduce(h)
	case kindGather:
		err = r.gather(h)
	case kindRows:
		err = r.rows(h)
	case kindMirror:
		err = r.mirror(h)
	case kindState:
		err = r.state(h)
	case kindReceipt:
		err = r.receipt(h)
	case kindVote:
		err = r.vote(h)
	case kindDecision:
		err = r.decision(h)
	case kindExchange:
		err = r.exchange(h)
	case kindPass:
		err = r.message(h)
	case kindPing:
		err = r.ping(h)
	case kindBye:
		r.l.hearBye(h, r.l.prev, &r.l.prevLeft)
		return true, nil
	}
	return false, err
}

// checkFrom refuses a frame that says that it is of another worker than it must be of.
// Exchanges, state and pings come from all others: who reads them looks at them.
func (l *Link) checkFrom(h *header) error {
	from := l.prev
	switch h.Kind {
	case kindRows, kindVote:
		if int(h.Piece) >= l.c.Table.WorldSize() {
			return outOfPlace(h, "there are %d ranks", l.c.Table.WorldSize())
		}
		from = l.c.Placement.Worker(shard.Rank(h.Piece))
	case kindDecision:
		from = 0
	case kindExchange, kindState, kindReceipt, kindPing:
		return nil
	}
	if int(h.From) != from {
		return outOfPlace(h, "it is of worker %d, and says %d", from, h.From)
	}
	return nil
}

// payload reads the payload to b and checks it.
func (r *receiver) payload(h *header, b []byte) error {
	if _, err := io.ReadFull(r.r, b); err != nil {
		return err
	}
	if crc32c.Sum(b) != h.Sum {
		return fmt.Errorf("%v: %w", h, errSum)
	}
	return nil
}

// outOfPlace is the error for a frame that cannot come now.
func outOfPlace(h *header, why string, args ...any) error {
	return fmt.Errorf("%v: %w: %s", h, ErrFrame, fmt.Sprintf(why, args...))
}

// cell checks that a frame is one whole cell of a piece, of cellElems elements, as all
// workers cut them. So what is held for a slow rank is cut as the rank will ask for it.
func (l *Link) cell(h *header, cellElems, elemBytes int64) error {
	if int(h.Bucket) >= l.c.Table.Buckets() || int(h.Piece) >= l.c.Table.WorldSize() {
		return outOfPlace(h, "there are %d buckets of %d pieces", l.c.Table.Buckets(), l.c.Table.WorldSize())
	}
	piece := l.c.Table.Bucket(int(h.Bucket)).Piece(shard.Rank(h.Piece))
	switch {
	case h.Lo < piece.Lo || h.Lo >= piece.Hi || (h.Lo-piece.Lo)%cellElems != 0 || h.Hi != min(h.Lo+cellElems, piece.Hi):
		return outOfPlace(h, "elements [%d, %d) are not a frame of [%d, %d)", h.Lo, h.Hi, piece.Lo, piece.Hi)
	case int64(h.Length) != (h.Hi-h.Lo)*elemBytes:
		return outOfPlace(h, "%d bytes for %d elements", h.Length, h.Hi-h.Lo)
	}
	return nil
}

func (r *receiver) reduce(h *header) error {
	l := r.l
	if err := l.cell(h, l.chunkElems, l.wireBytes); err != nil {
		return err
	}
	c := l.newChunk(h.Hi - h.Lo)
	if err := r.payload(h, c.data); err != nil {
		l.freeChunk(c)
		return err
	}
	l.take(event{what: arrived, frame: h.frame(), chunk: c})
	return nil
}

// take brings the engine an event and runs it.
func (l *Link) take(ev event) {
	l.mu.Lock()
	l.inbox.push(ev)
	l.mu.Unlock()
	l.drive()
}

func (r *receiver) gather(h *header) error {
	l := r.l
	if err := l.cell(h, l.chunkElems, l.elemBytes); err != nil {
		return err
	}
	admit := l.admitGather
	if l.c.OnDemand {
		admit = l.admitOnDemand
	}
	if err := admit(h); err != nil {
		return err
	}
	f := h.frame()
	if err := r.payload(h, l.c.Memory.Gathered(f.Bucket, f.Range)); err != nil {
		return err
	}
	l.take(event{what: arrived, frame: f, sum: h.Sum})
	return nil
}

// admitGather waits until this worker gathers the frame's step, and refuses what must
// not be written to memory: a frame of a step that is not decided here, of a piece
// that is owned here, or out of order.
func (l *Link) admitGather(h *header) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.Part != 0 {
		return outOfPlace(h, "weights are not gathered on demand in this generation")
	}
	for l.err == nil && h.Step != l.gatherStep {
		switch {
		case h.Step < l.gatherStep:
			return outOfPlace(h, "the gather of step %d has begun", l.gatherStep)
		case l.reducing && h.Step != l.step:
			return outOfPlace(h, "step %d is under way", l.step)
		case l.reducing && l.decision == nil && !l.c.GatherFirst:
			return outOfPlace(h, "its step is not decided here, and a decision travels ahead of the weights that it makes")
		}
		l.changed.Wait()
	}
	return l.placeGather(h)
}

// placeGather notes a frame of the gather that is under way, or refuses it.
func (l *Link) placeGather(h *header) error {
	if l.err != nil {
		return l.err
	}
	at := &l.gatherAt[h.Bucket][h.Piece]
	piece := l.c.Table.Bucket(int(h.Bucket)).Piece(shard.Rank(h.Piece))
	if l.hosted[h.Piece] {
		return outOfPlace(h, "this piece is owned here")
	}
	if h.Lo != piece.Lo+*at {
		return outOfPlace(h, "expected elements from %d", piece.Lo+*at)
	}
	*at += h.Hi - h.Lo
	return nil
}

// noteReceived counts a frame and remembers it for messages.
func (l *Link) noteReceived(h *header) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.Kind != kindPing {
		l.lastIn, l.lastInAt = *h, now()
		s := l.stats.of(h.Kind)
		s.ReceivedFrames++
		s.ReceivedBytes += int64(h.Length)
	}
	return l.err
}
