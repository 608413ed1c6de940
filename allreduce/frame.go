package allreduce

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/skein-ml/skein/internal/crc32c"
	"github.com/skein-ml/skein/shard"
)

// kind is what a frame between two workers is for.
type kind uint8

// The kinds of frames; docs/formats/ring.md describes them.
const (
	kindReduce   kind = 1 + iota // a stretch of a piece, partly summed
	kindGather                   // a stretch of a piece, final
	kindRows                     // part of the sparse rows of a rank
	kindVote                     // a rank's vote, on its way to rank 0's worker
	kindDecision                 // the decision record
	kindExchange                 // part of a worker's blob for all
	kindPass                     // part of a message for the next worker
	kindPing                     // nothing else to say
	kindBye                      // the sender leaves
	kindMirror                   // a stretch of a piece's reduced gradient, for its mirror
	kindState                    // a stretch of a part of a piece's state, on its way to a worker
	kindReceipt                  // so much state has arrived
	kindEnd
)

var kindNames = [kindEnd]string{
	kindReduce: "reduce", kindGather: "gather", kindRows: "rows", kindVote: "vote", kindDecision: "decision",
	kindExchange: "exchange", kindPass: "message", kindPing: "ping", kindBye: "goodbye",
	kindMirror: "mirror", kindState: "state", kindReceipt: "receipt",
}

// partsOf is how many values Part may have, by kind.
var partsOf = [kindEnd]uint8{
	kindReduce: 1, kindGather: roundEnd, kindRows: 1, kindVote: 1, kindDecision: 1, kindExchange: 1, kindPass: 1, kindBye: 1,
	kindMirror: 1, kindReceipt: 1, kindState: StateParts, kindPing: uint8(phaseEnd),
}

func (k kind) String() string {
	if k > 0 && k < kindEnd {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

const (
	headerSize  = 52
	headerMagic = "SK"
	// payloadMax bounds what a header may announce.
	payloadMax = 16 << 20
	// blobMax bounds a worker's blob and a message.
	blobMax = 64 << 20
)

// header is what stands before the payload of every frame. Job, generation, spec and
// class belong to the connection.
type header struct {
	Kind   kind
	Part   uint8  // of a piece's state: one of StateParts; of a ping the phase of a debt; of a gather on demand its round
	Length uint32 // of the payload in bytes
	// Step is the step; of a message the tag, of an exchange its number.
	Step int64
	// Lo and Hi are elements of the bucket (reduce, gather, mirror, state), or where in the
	// whole the payload begins and how long the whole is, in bytes (rows, exchange,
	// message). Hi is the bytes that have arrived (receipt).
	Lo, Hi int64
	// Bucket is the bucket; of rows the number of ids, of an exchange the CRC-32C of its
	// name, of a goodbye the worker at fault plus one.
	Bucket uint32
	Piece  uint16 // the piece, or the rank (rows, vote)
	From   uint16 // the worker that made the frame
	To     uint16 // the worker that it is for (state, receipt)
	Sum    uint32 // CRC-32C of the payload
}

// errHeader is returned for bytes that are not the header of a frame.
var errHeader = errors.New("not a frame")

// encode writes the header to b[:headerSize].
func (h *header) encode(b []byte) {
	le := binary.LittleEndian
	b = b[:headerSize]
	copy(b, headerMagic)
	b[2], b[3] = byte(h.Kind), h.Part
	le.PutUint32(b[4:], h.Length)
	le.PutUint64(b[8:], uint64(h.Step))
	le.PutUint64(b[16:], uint64(h.Lo))
	le.PutUint64(b[24:], uint64(h.Hi))
	le.PutUint32(b[32:], h.Bucket)
	le.PutUint16(b[36:], h.Piece)
	le.PutUint16(b[38:], h.From)
	le.PutUint16(b[40:], h.To)
	le.PutUint16(b[42:], 0)
	le.PutUint32(b[44:], h.Sum)
	le.PutUint32(b[48:], crc32c.Sum(b[:48]))
}

// decode reads headerSize bytes. It knows nothing of the job: what a frame says may
// still be out of place.
func (h *header) decode(b []byte) error {
	le := binary.LittleEndian
	switch {
	case len(b) != headerSize:
		return fmt.Errorf("%w: a header of %d bytes", errHeader, len(b))
	case string(b[:2]) != headerMagic || b[42] != 0 || b[43] != 0:
		return fmt.Errorf("%w: it begins with % x", errHeader, b[:4])
	case le.Uint32(b[48:]) != crc32c.Sum(b[:48]):
		return fmt.Errorf("%w: the checksum of its header differs", errHeader)
	}
	*h = header{
		Kind: kind(b[2]), Part: b[3], Length: le.Uint32(b[4:]), Step: int64(le.Uint64(b[8:])), Lo: int64(le.Uint64(b[16:])), Hi: int64(le.Uint64(b[24:])),
		Bucket: le.Uint32(b[32:]), Piece: le.Uint16(b[36:]), From: le.Uint16(b[38:]),
		To: le.Uint16(b[40:]), Sum: le.Uint32(b[44:]),
	}
	if why := h.impossible(); why != "" {
		return fmt.Errorf("%w: %v: %s", errHeader, h, why)
	}
	return nil
}

// impossible says why no job can make this header, or "".
func (h *header) impossible() string {
	switch {
	case h.Kind == 0 || h.Kind >= kindEnd:
		return "no such kind"
	case h.Length > payloadMax:
		return fmt.Sprintf("%d bytes of payload, more than %d", h.Length, payloadMax)
	case h.Step < 0 && h.Kind != kindPass:
		return "a step below zero"
	case h.Lo < 0 || h.Hi < h.Lo:
		return fmt.Sprintf("the range [%d, %d)", h.Lo, h.Hi)
	case h.Part >= partsOf[h.Kind]:
		return fmt.Sprintf("part %d", h.Part)
	case h.To != 0 && h.Kind != kindState && h.Kind != kindReceipt:
		return "it is for one worker"
	}
	switch h.Kind {
	case kindReduce, kindGather, kindMirror, kindState:
		if h.Length == 0 || h.Hi == h.Lo {
			return "it is empty"
		}
	case kindRows, kindExchange, kindPass:
		if int64(h.Length) > h.Hi-h.Lo || h.Length == 0 && h.Hi != 0 {
			return fmt.Sprintf("%d bytes at %d of %d", h.Length, h.Lo, h.Hi)
		}
		if h.Kind != kindRows && h.Hi > blobMax {
			return fmt.Sprintf("%d bytes, more than %d", h.Hi, blobMax)
		}
	case kindPing, kindBye, kindReceipt:
		if h.Length != 0 {
			return "it has a payload"
		}
	case kindDecision:
		if h.Length != DecisionSize {
			return fmt.Sprintf("%d bytes", h.Length)
		}
	}
	return ""
}

// String names the frame for messages.
func (h *header) String() string {
	switch h.Kind {
	case kindReduce, kindGather, kindMirror:
		return fmt.Sprintf("%v, step %d, bucket %d, piece %d", h.Kind, h.Step, h.Bucket, h.Piece)
	case kindState:
		return fmt.Sprintf("%v of worker %d for worker %d, step %d, bucket %d, piece %d, part %d", h.Kind, h.From, h.To, h.Step, h.Bucket, h.Piece, h.Part)
	case kindReceipt:
		return fmt.Sprintf("%v of worker %d for worker %d", h.Kind, h.From, h.To)
	case kindRows, kindVote:
		return fmt.Sprintf("%v, step %d, rank %d", h.Kind, h.Step, h.Piece)
	case kindDecision:
		return fmt.Sprintf("%v, step %d", h.Kind, h.Step)
	case kindExchange:
		return fmt.Sprintf("%v %d of worker %d", h.Kind, h.Step, h.From)
	case kindPass:
		return fmt.Sprintf("%v %d", h.Kind, uint64(h.Step))
	}
	return h.Kind.String()
}

// frame is the header of a reduce or gather as the rings know it.
func (h *header) frame() Frame {
	op := OpReduce
	if h.Kind == kindGather {
		op = OpGather
	}
	return Frame{h.Step, op, int(h.Bucket), shard.Rank(h.Piece), shard.Range{Lo: h.Lo, Hi: h.Hi}}
}

// frameHeader is the header of a ring's frame, without length and checksum.
func frameHeader(f Frame, from int) header {
	k := kindReduce
	if f.Op == OpGather {
		k = kindGather
	}
	return header{Kind: k, Step: f.Step, Lo: f.Range.Lo, Hi: f.Range.Hi, Bucket: uint32(f.Bucket), Piece: uint16(f.Piece), From: uint16(from)}
}
