package allreduce

import "github.com/skein-ml/skein/internal/crc32c"

// item is a frame on its way out. Its payload does not change until it is written.
type item struct {
	header  header // Length, and Sum unless summed, are set when it is written
	payload []byte
	chunk   *chunk // that holds the payload, or nil
	summed  bool   // Sum is right: the payload goes on as it came
}

// Bounds on what one write takes from the queue.
const (
	batchFrames = 16
	batchBytes  = 1 << 20
)

// send queues a frame for the next worker.
func (l *Link) send(it item) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sendLocked(it)
}

func (l *Link) sendLocked(it item) {
	switch {
	case l.err != nil:
	case l.nextLeft:
		l.cut = l.cut || it.header.Kind != kindPing // whom somebody waits for is nothing to one that has left
		l.changed.Broadcast()
		if it.chunk != nil {
			l.freeLocked(it.chunk)
		}
	default:
		if it.header.Kind == kindGather {
			l.unsent[it.header.Bucket]++
		}
		l.queueOf(&it.header).push(it)
		l.work.Signal()
	}
}

// queueOf is where a frame waits to be written: state lets everything else pass.
func (l *Link) queueOf(h *header) *queue[item] {
	switch {
	case h.Kind != kindState:
		return &l.outbox
	case int(h.From) == l.c.Worker:
		return &l.moving
	}
	return &l.relayed
}

// nextLocked takes the frame that is to be written next, if there is one.
func (l *Link) nextLocked() (it item, ok bool) {
	switch {
	case l.outbox.n > 0:
		return l.outbox.pop(), true
	case l.relayed.n > 0:
		return l.relayed.pop(), true
	case l.moving.n > 0 && l.stateInRing < stateWindow:
		it = l.moving.pop()
		l.stateUnsent -= int64(len(it.payload))
		l.stateInRing += int64(len(it.payload))
		return it, true
	}
	return item{}, false
}

// idleLocked tells whether there is nothing to write now.
func (l *Link) idleLocked() bool {
	return l.outbox.n == 0 && l.relayed.n == 0 && (l.moving.n == 0 || l.stateInRing >= stateWindow)
}

// transmitter is the writer's side of a link, for one goroutine.
type transmitter struct {
	l     *Link
	items []item
	heads [batchFrames][headerSize]byte
	parts [][]byte
}

// transmit writes frames to the next worker until the link ends or that worker leaves,
// then the goodbye.
func (l *Link) transmit() {
	t := &transmitter{l: l, items: make([]item, 0, batchFrames), parts: make([][]byte, 0, 2*batchFrames)}
	for t.fetch() {
		if err := t.write(); err != nil {
			t.failed(err)
			return
		}
	}
	_ = l.out.send([][]byte{l.goodbye()}) // best effort: without it, the connection's end says as much
	l.out.closeWrite()
}

// failed waits for what the next worker may have said before its end closed the
// connection: a goodbye is no fault.
func (t *transmitter) failed(err error) {
	select {
	case <-t.l.verdict:
	case <-after(verdictWait):
	}
	t.l.nextFault(err)
	t.l.mu.Lock()
	defer t.l.mu.Unlock()
	t.l.writing, t.l.lagging = false, false
	for _, it := range t.items {
		t.l.outbox.push(it)
	}
	t.l.dropLocked()
}

// dropLocked forgets what can not be sent any more.
func (l *Link) dropLocked() {
	for _, q := range []*queue[item]{&l.outbox, &l.relayed, &l.moving} {
		for q.n > 0 {
			if it := q.pop(); it.header.Kind != kindPing {
				l.cut = true
			}
		}
	}
	l.changed.Broadcast()
}

// fetch waits for frames and takes some; false at the end.
func (t *transmitter) fetch() bool {
	l := t.l
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writing, l.lagging = false, false
	for i := range t.items {
		l.writtenLocked(&t.items[i])
	}
	t.items = t.items[:0]
	if l.outbox.n == 0 && l.calm > 0 {
		l.changed.Broadcast()
	}
	for l.idleLocked() && l.err == nil && !l.nextLeft {
		l.work.Wait()
	}
	if l.err != nil || l.nextLeft {
		l.dropLocked()
		return false
	}
	for bytes := 0; len(t.items) < batchFrames && bytes < batchBytes; {
		it, ok := l.nextLocked()
		if !ok {
			break
		}
		l.writing, l.lagging = l.writing || it.header.Kind != kindState, l.lagging || it.header.Kind == kindState
		it.header.Length = uint32(len(it.payload))
		bytes += len(it.payload)
		t.items = append(t.items, it)
		s := l.stats.of(it.header.Kind)
		s.SentFrames++
		s.SentBytes += int64(len(it.payload))
	}
	l.wroteAt = now()
	if last := &t.items[len(t.items)-1].header; last.Kind != kindPing {
		l.lastOut, l.lastOutAt = *last, l.wroteAt
	}
	return true
}

// writtenLocked notes that a frame's payload is not read any more.
func (l *Link) writtenLocked(it *item) {
	switch {
	case it.chunk != nil:
		l.freeLocked(it.chunk)
	case it.header.Kind == kindReduce:
		l.spendLocked(int(it.header.Bucket), it.header.Hi-it.header.Lo)
	case it.header.Kind == kindGather:
		if l.unsent[it.header.Bucket]--; l.unsent[it.header.Bucket] == 0 {
			l.changed.Broadcast()
		}
	}
}

// write writes what was fetched.
func (t *transmitter) write() error {
	t.parts = t.parts[:0]
	for i := range t.items {
		it := &t.items[i]
		if !it.summed {
			it.header.Sum = crc32c.Sum(it.payload)
		}
		it.header.encode(t.heads[i][:])
		t.parts = append(t.parts, t.heads[i][:])
		if len(it.payload) > 0 {
			t.parts = append(t.parts, it.payload)
		}
	}
	return t.l.out.send(t.parts)
}
