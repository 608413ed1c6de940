package allreduce

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/skein-ml/skein/internal/crc32c"
)

// messagesMax bounds the messages of the previous worker that nobody has taken.
const messagesMax = 4096

// exchange is what has come of an exchange.
type exchange struct {
	name  uint32 // CRC-32C of it
	from  int    // who named it first
	own   string // its name here, once it is known
	blobs []blob // by worker
	left  int    // blobs that are not complete
}

// blob is a worker's contribution, or a message, as it arrives.
type blob struct {
	b    []byte
	got  int64
	done bool
}

// part reads a part of a blob to its place.
func (r *receiver) part(h *header, b *blob) ([]byte, error) {
	if b.done || h.Lo != b.got || b.got > 0 && int64(len(b.b)) != h.Hi {
		return nil, outOfPlace(h, "bytes from %d of %d, expected from %d", h.Lo, h.Hi, b.got)
	}
	if b.got == 0 {
		b.b = make([]byte, h.Hi)
	}
	part := b.b[h.Lo : h.Lo+int64(h.Length)]
	if err := r.payload(h, part); err != nil {
		return nil, err
	}
	b.got += int64(h.Length)
	r.l.mu.Lock() // who waits for it looks at done
	b.done = b.got == h.Hi
	r.l.mu.Unlock()
	return part, nil
}

// Exchange gives every worker every worker's blob, by worker index. All workers call
// it in the same order with the same names. A blob has at most 64 MiB.
func (l *Link) Exchange(ctx context.Context, name string, own []byte) ([][]byte, error) {
	if len(own) > blobMax {
		return nil, fmt.Errorf("ring: exchange %q: %d bytes, at most %d can be sent", name, len(own), blobMax)
	}
	own = slices.Clone(own) // it may still be on its way when the others' are here
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil { // what is said now, nobody hears
		return nil, l.err
	}
	sum := crc32c.Sum([]byte(name))
	number := l.exchanged
	x, err := l.exchangeLocked(number, sum, l.c.Worker, name)
	if err != nil {
		l.failLocked(&LinkError{Accused: -1, Err: err})
		return nil, l.err
	}
	x.blobs[l.c.Worker] = blob{own, int64(len(own)), true}
	x.left--
	l.sendPartsLocked(header{Kind: kindExchange, Step: number, Bucket: sum, From: uint16(l.c.Worker)}, own)
	w := waiting{kind: kindExchange, name: name, step: l.step, bucket: -1, piece: -1, from: -1}
	if err := l.waitAs(ctx, w, func() bool { return x.left == 0 }); err != nil {
		return nil, err
	}
	delete(l.exchanges, number)
	l.exchanged++
	all := make([][]byte, len(x.blobs))
	for i := range all {
		all[i] = x.blobs[i].b
	}
	return all, nil
}

// errMismatch is returned where two workers disagree on what comes next. Nobody knows
// which is wrong.
var errMismatch = errors.New("another collective at this point")

// exchangeLocked is the exchange of a number; its name must be that of the others. Only who comes
// to it here can say it in words.
func (l *Link) exchangeLocked(number int64, name uint32, from int, own string) (*exchange, error) {
	x := l.exchanges[number]
	if x == nil {
		workers := l.c.Placement.Workers()
		x = &exchange{name: name, from: from, blobs: make([]blob, workers), left: workers}
		l.exchanges[number] = x
	}
	if own != "" {
		x.own = own
	}
	if x.name != name {
		what := fmt.Sprintf("exchange %d", number)
		if x.own != "" {
			what += fmt.Sprintf(", %q on %s,", x.own, l.name(l.c.Worker))
		}
		return nil, fmt.Errorf("%w: %s in step %d is not the same on %s with ranks %v and on %s with ranks %v",
			errMismatch, what, l.step, l.name(from), l.c.Placement.Ranks(from), l.name(x.from), l.c.Placement.Ranks(x.from))
	}
	return x, nil
}

// exchange reads part of a worker's blob, and passes it on. A neighbour may be one
// exchange ahead.
func (r *receiver) exchange(h *header) error {
	l := r.l
	from := int(h.From)
	l.mu.Lock()
	if from >= l.c.Placement.Workers() || from == l.c.Worker || h.Step < l.exchanged || h.Step > l.exchanged+1 || int(h.Length) > l.c.ChunkBytes {
		defer l.mu.Unlock()
		return outOfPlace(h, "exchange %d is under way", l.exchanged)
	}
	x, err := l.exchangeLocked(h.Step, h.Bucket, from, "")
	l.mu.Unlock()
	if err != nil {
		return err
	}
	part, err := r.part(h, &x.blobs[from])
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if from != l.next {
		l.sendLocked(item{header: *h, payload: part, summed: true})
	}
	if x.blobs[from].done {
		x.left--
		l.changed.Broadcast()
	}
	return nil
}

// Pass sends a message to the next worker, which takes it by its tag. A message has at
// most 64 MiB. The blob may be changed when Pass returns.
func (l *Link) Pass(tag uint64, b []byte) error {
	if len(b) > blobMax {
		return fmt.Errorf("ring: message %d: %d bytes, at most %d can be sent", tag, len(b), blobMax)
	}
	b = slices.Clone(b)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	if l.nextLeft {
		return l.leftError()
	}
	l.sendPartsLocked(header{Kind: kindPass, Step: int64(tag), From: uint16(l.c.Worker)}, b)
	return nil
}

// Take waits for the message of that tag from the previous worker. A tag can be used
// again when its message is taken.
func (l *Link) Take(ctx context.Context, tag uint64) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ok := func() bool { m := l.messages[tag]; return m != nil && m.done }
	if err := l.waitLocked(ctx, kindPass, -1, ok); err != nil {
		return nil, err
	}
	m := l.messages[tag]
	delete(l.messages, tag)
	l.messageBytes -= int64(len(m.b))
	return m.b, nil
}

// message reads part of a message.
func (r *receiver) message(h *header) error {
	l := r.l
	tag := uint64(h.Step)
	l.mu.Lock()
	m := l.messages[tag]
	if m == nil {
		m = &blob{}
		l.messages[tag] = m
		l.messageBytes += h.Hi
	}
	full := len(l.messages) > messagesMax || l.messageBytes > 2*blobMax || int(h.Length) > l.c.ChunkBytes
	l.mu.Unlock()
	if full {
		return outOfPlace(h, "%d messages wait that nobody has taken", messagesMax)
	}
	// A complete message is not touched here: a second one of its tag is refused.
	if _, err := r.part(h, m); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed.Broadcast()
	return nil
}
