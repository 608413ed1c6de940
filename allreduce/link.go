package allreduce

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"time"

	"github.com/skein-ml/skein/shard"
)

// Key names a generation of a job; a connection belongs to one and is never used for
// another.
type Key struct {
	Job        string // the job's id
	Generation uint64
	SpecHash   string // of the resolved spec
	Class      string // numeric class
}

// Arithmetic is the device's additions on little-endian bytes in host memory. On a
// bf16 wire received and sent partial sums are two bytes an element, own gradients and
// the owner's last sum four. dst may be the operand of the same size.
type Arithmetic struct {
	AddF32      func(dst, a, b []byte)          // fp32 = fp32 + fp32
	RoundBF16   func(dst, src []byte)           // bf16 = fp32, to nearest even
	AddBF16     func(dst, received, own []byte) // bf16 = bf16 + fp32, added in fp32
	AddBF16Last func(dst, received, own []byte) // fp32 = bf16 + fp32
}

// LinkMemory is where the worker's numbers lie in host memory. What it returns is
// exactly as long as the range and stays valid while the link lives; its methods are
// called from the link's goroutines.
type LinkMemory interface {
	// Gradient is the local gradient of a hosted rank, fp32. It does not change from
	// Ready until the step is decided.
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

// RankRows are the sparse rows of one rank: ids ascending, an fp32 row each.
type RankRows struct {
	IDs  []int32
	Rows []byte
}

// LinkConfig is what a worker knows about its place in the ring of a generation.
type LinkConfig struct {
	Key       Key
	Table     shard.Table
	Placement shard.Placement // at least two workers
	Worker    int             // own index in the placement
	Names     []string        // of all workers, by index, for messages
	Next      string          // ring address of the next worker
	Wire      Wire

	Arithmetic Arithmetic // zero: RefArithmetic
	Memory     LinkMemory
	// Decide makes the decision record of a step from the votes of all ranks. It is
	// called on rank 0's worker only, from Vote.
	Decide func(votes []Vote) (Decision, error)

	// TLS, if given, makes the connection to the next worker mutual TLS 1.3; the
	// listener has its own. VerifyPeer, if given, has the last word on the certificate.
	TLS        *tls.Config
	VerifyPeer func(tls.ConnectionState) error

	ChunkBytes int           // largest payload of a reduce frame; the same on all workers; 0: 256 KiB
	Silence    time.Duration // without a byte from the previous worker the link breaks; 0: 10 s
	Log        *slog.Logger  // nil: slog.Default()
}

// Errors of a link to branch on; they arrive inside a LinkError.
var (
	// ErrLinkClosed is returned by calls on a link that was closed on this side.
	ErrLinkClosed = errors.New("the link is closed")
	// ErrLeft is returned when a neighbour has left politely and what is waited for
	// cannot come any more. Nobody is accused.
	ErrLeft = errors.New("left the ring")
	// ErrRefused is returned by Connect when the next worker refuses for good.
	ErrRefused = errors.New("refused")
)

// LinkError is why a link broke. A link breaks once.
type LinkError struct {
	Accused int           // index of the worker at fault, or -1
	Name    string        // its name
	Frame   string        // the last frame that it sent or was sent, or the frame at fault
	Since   time.Duration // since that frame
	Err     error
}

// LinkStats counts what a link moved and waited for.
type LinkStats struct {
	Reduce, Gather, Rows, Votes, Messages OpStats
}

// OpStats are the counts of one operation. Bytes are payload.
type OpStats struct {
	SentBytes, SentFrames, ReceivedBytes, ReceivedFrames int64
	Wait                                                 time.Duration // that callers spent waiting
}

// Link is a worker's place in the ring of one generation. Begin, Ready, SendRows, Vote,
// BeginGather and GatherReady belong to one goroutine or are ordered by the caller;
// the waits may be called from any.
type Link struct{}

// Connect dials the next worker, retrying until ctx ends, and takes the connection of
// the previous one from l. It returns when both are there.
func Connect(ctx context.Context, l *Listener, c LinkConfig) (*Link, error) { return nil, ErrRefused }

// Begin starts the reduce of a step. It waits until everything of the step before is
// written.
func (l *Link) Begin(step int64) error { return nil }

// Ready says that the local gradient of a hosted rank is complete in a bucket, and
// returns at once. Buckets and ranks may come in any order.
func (l *Link) Ready(rank shard.Rank, bucket int) {}

// SendRows sends the sparse rows of a hosted rank to all workers, once per rank and
// step. Both slices stay unchanged until the step is decided.
func (l *Link) SendRows(rank shard.Rank, ids []int32, rows []byte) {}

// WaitReduced waits until the reduced gradient of all pieces owned here is in Reduced
// memory.
func (l *Link) WaitReduced(ctx context.Context, bucket int) error { return nil }

// WaitRows waits for the sparse rows of all ranks, and returns them by rank. They are
// valid until the next Begin.
func (l *Link) WaitRows(ctx context.Context) ([]RankRows, error) { return nil, nil }

// Vote sends the votes of all hosted ranks and waits for the decision of their step.
func (l *Link) Vote(ctx context.Context, votes []Vote) (Decision, error) { return Decision{}, nil }

// BeginGather starts the gather of a step: after its decision, or alone on a link that
// has reduced nothing yet, which is how a restored worker gets its weights.
func (l *Link) BeginGather(step int64) error { return nil }

// GatherReady says that the pieces owned here of a bucket are final in Gathered memory,
// and returns at once.
func (l *Link) GatherReady(bucket int) {}

// WaitGathered waits until all pieces of a bucket are in Gathered memory.
func (l *Link) WaitGathered(ctx context.Context, bucket int) error { return nil }

// Exchange gives every worker every worker's blob, by worker index. All workers call
// it in the same order with the same names. A blob has at most 64 MiB.
func (l *Link) Exchange(ctx context.Context, name string, own []byte) ([][]byte, error) {
	return nil, nil
}

// Pass sends a message to the next worker.
func (l *Link) Pass(tag uint64, blob []byte) error { return nil }

// Take waits for the message of that tag from the previous worker.
func (l *Link) Take(ctx context.Context, tag uint64) ([]byte, error) { return nil, nil }

// Err is why the link broke, or nil.
func (l *Link) Err() error { return nil }

// Broken is closed when the link breaks or is closed. A neighbour that leaves politely
// does not break it: only waits for what cannot come any more fail.
func (l *Link) Broken() <-chan struct{} { return nil }

// Close leaves the ring: what is queued is written, the neighbours are told, and the
// connections are closed. It takes at most some seconds, and none if the link broke.
func (l *Link) Close() error { return nil }

// Stats are the counts so far.
func (l *Link) Stats() LinkStats { return LinkStats{} }

// Error names who and the frame.
func (e *LinkError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *LinkError) Unwrap() error { return e.Err }

// RefArithmetic is the plain arithmetic, the specification of the device's.
var RefArithmetic = Arithmetic{}
