package allreduce

import (
	"encoding/binary"
	"math"

	"github.com/skein-ml/skein/shard"
)

// Arithmetic is the device's additions on little-endian bytes in host memory. On a
// bf16 wire received and sent partial sums are two bytes an element, own gradients and
// the owner's last sum four. dst may be the operand of the same size.
type Arithmetic struct {
	AddF32      func(dst, a, b []byte)          // fp32 = fp32 + fp32
	RoundBF16   func(dst, src []byte)           // bf16 = fp32, to nearest even
	AddBF16     func(dst, received, own []byte) // bf16 = bf16 + fp32, added in fp32
	AddBF16Last func(dst, received, own []byte) // fp32 = bf16 + fp32
}

// RefArithmetic is the plain arithmetic, the specification of the device's.
var RefArithmetic = Arithmetic{AddF32: AddRef, RoundBF16: roundBF16Ref, AddBF16: addBF16Ref, AddBF16Last: addBF16LastRef}

// AddRef is the plain addition, the specification of AddF32. All three are fp32 of one length;
// dst may be one of the others.
func AddRef(dst, received, own []byte) {
	for i := 0; i+4 <= len(dst); i += 4 {
		a := math.Float32frombits(binary.LittleEndian.Uint32(received[i:]))
		b := math.Float32frombits(binary.LittleEndian.Uint32(own[i:]))
		binary.LittleEndian.PutUint32(dst[i:], math.Float32bits(a+b))
	}
}

// RoundBits rounds the bits of an fp32 to the nearest bfloat16, ties to even. NaN
// stays NaN, and becomes quiet.
func RoundBits(x uint32) uint32 {
	if x&0x7FFFFFFF > 0x7F800000 {
		return (x | 0x00400000) & 0xFFFF0000
	}
	return (x + 0x7FFF + x>>16&1) & 0xFFFF0000
}

func roundBF16Ref(dst, src []byte) {
	for i := 0; i+2 <= len(dst); i += 2 {
		binary.LittleEndian.PutUint16(dst[i:], uint16(RoundBits(binary.LittleEndian.Uint32(src[2*i:]))>>16))
	}
}

// bf16Sum is element i of received + own, in fp32.
func bf16Sum(received, own []byte, i int) uint32 {
	a := math.Float32frombits(uint32(binary.LittleEndian.Uint16(received[2*i:])) << 16)
	b := math.Float32frombits(binary.LittleEndian.Uint32(own[4*i:]))
	return math.Float32bits(a + b)
}

func addBF16Ref(dst, received, own []byte) {
	for i := range len(dst) / 2 {
		binary.LittleEndian.PutUint16(dst[2*i:], uint16(RoundBits(bf16Sum(received, own, i))>>16))
	}
}

func addBF16LastRef(dst, received, own []byte) {
	for i := range len(dst) / 4 {
		binary.LittleEndian.PutUint32(dst[4*i:], bf16Sum(received, own, i))
	}
}

// LinkMemory is where the worker's numbers lie in host memory. What it returns is
// exactly as long as the range and stays valid while the link lives; its methods are
// called from the link's goroutines.
//
// A LinkMemory of a worker that mirrors is a MirrorMemory too; one that takes state
// that moves from worker to worker is a StateMemory.
type LinkMemory interface {
	// Gradient is the local gradient of a hosted rank, fp32. It does not change from
	// Ready until the bucket is spent, see [Link.WaitSpent], or the step is decided.
	Gradient(rank shard.Rank, bucket int, r shard.Range) []byte
	// Reduced is where the reduced gradient of a piece goes that a hosted rank owns,
	// fp32. The range lies in one piece.
	Reduced(bucket int, r shard.Range) []byte
	// Gathered is the worker's copy of what is gathered, ElemBytes an element: the
	// working weights, or in ZeRO-0 the reduced gradients. The range lies in one piece.
	Gathered(bucket int, r shard.Range) []byte
	// ElemBytes is the size of an element of Gathered: 2 or 4.
	ElemBytes() int
}

// chunk is memory for one reduce frame in transit, in the wire type.
type chunk struct {
	buf  []byte
	data []byte // the front of buf that holds elements
	next *chunk
}

// chunkList is a first-in first-out list of chunks.
type chunkList struct{ head, tail *chunk }

func (l *chunkList) push(c *chunk) {
	c.next = nil
	if l.tail == nil {
		l.head = c
	} else {
		l.tail.next = c
	}
	l.tail = c
}

func (l *chunkList) pop() *chunk {
	c := l.head
	if l.head = c.next; l.head == nil {
		l.tail = nil
	}
	c.next = nil
	return c
}

// queue is a first-in first-out queue that keeps its memory.
type queue[T any] struct {
	ring     []T // a power of two long
	first, n int
}

func (q *queue[T]) push(x T) {
	if q.n == len(q.ring) {
		grown := make([]T, max(16, 2*len(q.ring)))
		for i := range q.n {
			grown[i] = q.ring[(q.first+i)&(len(q.ring)-1)]
		}
		q.ring, q.first = grown, 0
	}
	q.ring[(q.first+q.n)&(len(q.ring)-1)] = x
	q.n++
}

func (q *queue[T]) pop() T {
	var zero T
	x := q.ring[q.first]
	q.ring[q.first] = zero // so that what it points to can be freed
	q.first = (q.first + 1) & (len(q.ring) - 1)
	q.n--
	return x
}
