package allreduce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/skein-ml/skein/internal/crc32c"
)

// ringVersion is the version of everything that two workers say to each other.
const ringVersion = 4

const (
	helloMagic    = "SKNR"
	questionMagic = "SKNQ"
	answerMagic   = "SKNA"
	// letterHead is magic, version and length: the part that no version changes.
	letterHead = 8
	letterMax  = 2048
	nameMax    = 255
)

// hello is the first thing that a worker says to the next: which generation it means,
// and what both must agree on.
type hello struct {
	Key       Key
	From, To  int // worker indices
	Workers   int
	WorldSize int
	Wire      Wire
	ElemBytes int
	Chunk     int // elements of a frame
	FromName  string
	ToName    string

	Mirror, GatherFirst, OnDemand bool
}

// The bits of a greeting's byte of flags.
const (
	flagMirror = 1 << iota
	flagGatherFirst
	flagOnDemand
	flagsEnd
)

// flags are what the steps of the generation have besides.
func (h *hello) flags() (b byte) {
	if h.Mirror {
		b |= flagMirror
	}
	if h.GatherFirst {
		b |= flagGatherFirst
	}
	if h.OnDemand {
		b |= flagOnDemand
	}
	return b
}

// verdict is what the next worker answers.
type verdict uint8

// The answers. refusedNotYet is the only one that may change.
const (
	accepted          verdict = iota
	refusedVersion            // another version of the protocol
	refusedNotYet             // the generation is not known here yet
	refusedGeneration         // it is over
	refusedJob                // another spec, class or shape of the ring
	refusedTaken              // this connection is there already
	verdictEnd
)

// answer is a verdict with its reason.
type answer struct {
	Verdict verdict
	Why     string
}

// Errors of the two decoders.
var (
	errHello   = errors.New("not the greeting of a worker")
	errVersion = errors.New("another version of the ring protocol")
)

// appendLetter appends magic, version, length, payload and checksum.
func appendLetter(b []byte, magic string, payload []byte) []byte {
	start := len(b)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint16(b, ringVersion)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(payload)))
	b = append(b, payload...)
	return binary.LittleEndian.AppendUint32(b, crc32c.Sum(b[start:]))
}

// readLetter reads one letter, of one of the magics, and returns its payload. It reads no
// more than that, and nothing after a magic or a version that it does not know.
func readLetter(r io.Reader, magics ...string) (magic string, payload []byte, err error) {
	le := binary.LittleEndian
	b := make([]byte, letterHead, letterHead+letterMax+4)
	if _, err := io.ReadFull(r, b); err != nil {
		return "", nil, err
	}
	n := int(le.Uint16(b[6:]))
	magic = string(b[:4])
	switch {
	case !slices.Contains(magics, magic):
		return "", nil, fmt.Errorf("%w: it begins with %q", errHello, b[:4])
	case le.Uint16(b[4:]) != ringVersion:
		return "", nil, fmt.Errorf("%w: %d, this program speaks %d", errVersion, le.Uint16(b[4:]), ringVersion)
	case n > letterMax:
		return "", nil, fmt.Errorf("%w: %d bytes", errHello, n)
	}
	b = b[:letterHead+n+4]
	if _, err := io.ReadFull(r, b[letterHead:]); err != nil {
		return "", nil, err
	}
	end := letterHead + n
	if le.Uint32(b[end:]) != crc32c.Sum(b[:end]) {
		return "", nil, fmt.Errorf("%w: its checksum differs", errHello)
	}
	return magic, b[letterHead:end], nil
}

const helloFixed = 8 + 4*2 + 4 + 4

func (h *hello) append(b []byte) []byte {
	le := binary.LittleEndian
	p := le.AppendUint64(nil, h.Key.Generation)
	for _, x := range []int{h.From, h.To, h.Workers, h.WorldSize} {
		p = le.AppendUint16(p, uint16(x))
	}
	p = append(p, byte(h.Wire), byte(h.ElemBytes), h.flags(), 0)
	p = le.AppendUint32(p, uint32(h.Chunk))
	for _, s := range []string{h.Key.Job, h.Key.SpecHash, h.Key.Class, h.FromName, h.ToName} {
		p = append(p, byte(len(s)))
		p = append(p, s...)
	}
	return appendLetter(b, helloMagic, p)
}

// tooLong names a text that does not fit a greeting, or "".
func (h *hello) tooLong() string {
	for name, s := range map[string]string{"job": h.Key.Job, "spec hash": h.Key.SpecHash, "class": h.Key.Class, "worker name": h.FromName + h.ToName} {
		if len(s) > nameMax {
			return name
		}
	}
	return ""
}

func parseHello(p []byte) (h hello, err error) {
	if len(p) < helloFixed || p[18] >= flagsEnd || p[19] != 0 {
		return hello{}, fmt.Errorf("%w: its fixed part is not right", errHello)
	}
	le := binary.LittleEndian
	word := func(at int) int { return int(le.Uint16(p[at:])) }
	h = hello{
		Key: Key{Generation: le.Uint64(p)}, From: word(8), To: word(10), Workers: word(12), WorldSize: word(14),
		Wire: Wire(p[16]), ElemBytes: int(p[17]), Chunk: int(le.Uint32(p[20:])),
		Mirror: p[18]&flagMirror != 0, GatherFirst: p[18]&flagGatherFirst != 0, OnDemand: p[18]&flagOnDemand != 0,
	}
	p = p[helloFixed:]
	for _, s := range []*string{&h.Key.Job, &h.Key.SpecHash, &h.Key.Class, &h.FromName, &h.ToName} {
		if *s, p, err = cutText(p); err != nil {
			return hello{}, err
		}
	}
	if len(p) != 0 {
		return hello{}, fmt.Errorf("%w: %d bytes too many", errHello, len(p))
	}
	return h, nil
}

// cutText takes a text of at most nameMax bytes from the front of p.
func cutText(p []byte) (text string, rest []byte, err error) {
	if len(p) == 0 || len(p)-1 < int(p[0]) {
		return "", nil, fmt.Errorf("%w: a text is cut off", errHello)
	}
	n := 1 + int(p[0])
	return string(p[1:n]), p[n:], nil
}

func (a answer) append(b []byte) []byte {
	why := a.Why[:min(len(a.Why), nameMax)]
	return appendLetter(b, answerMagic, append([]byte{byte(a.Verdict), byte(len(why))}, why...))
}

func readAnswer(r io.Reader) (answer, error) {
	_, p, err := readLetter(r, answerMagic)
	if err != nil {
		return answer{}, err
	}
	if len(p) == 0 || verdict(p[0]) >= verdictEnd {
		return answer{}, fmt.Errorf("%w: an unknown answer", errHello)
	}
	why, rest, err := cutText(p[1:])
	if err != nil || len(rest) != 0 {
		return answer{}, fmt.Errorf("%w: the answer's reason is not right", errHello)
	}
	return answer{verdict(p[0]), why}, nil
}

// differs says what h, which is about the generation of own, does not agree on, or "".
// own is the greeting that was expected.
func (h *hello) differs(own *hello) string {
	theirs, ours := *h, *own
	switch {
	case theirs.Key.SpecHash != ours.Key.SpecHash:
		return fmt.Sprintf("spec hash %.12s, here it is %.12s", theirs.Key.SpecHash, ours.Key.SpecHash)
	case theirs.Key.Class != ours.Key.Class:
		return fmt.Sprintf("numeric class %s, the job runs in %s", theirs.Key.Class, ours.Key.Class)
	case theirs.Workers != ours.Workers || theirs.WorldSize != ours.WorldSize:
		return fmt.Sprintf("%d ranks on %d workers, here %d on %d", theirs.WorldSize, theirs.Workers, ours.WorldSize, ours.Workers)
	case theirs.To != ours.To || theirs.ToName != ours.ToName:
		return fmt.Sprintf("worker %d (%s) is called, this is %d (%s)", theirs.To, theirs.ToName, ours.To, ours.ToName)
	case theirs.From != ours.From || theirs.FromName != ours.FromName:
		return fmt.Sprintf("worker %d (%s) is not the one before, which is %d (%s)", theirs.From, theirs.FromName, ours.From, ours.FromName)
	case theirs.Wire != ours.Wire || theirs.ElemBytes != ours.ElemBytes || theirs.Chunk != ours.Chunk:
		return fmt.Sprintf("wire type %d, %d bytes a gathered element, frames of %d elements; here %d, %d, %d",
			theirs.Wire, theirs.ElemBytes, theirs.Chunk, ours.Wire, ours.ElemBytes, ours.Chunk)
	case theirs.flags() != ours.flags():
		return fmt.Sprintf("mirrors: %t, gather before the vote: %t, weights on demand: %t; here %t, %t, %t",
			theirs.Mirror, theirs.GatherFirst, theirs.OnDemand, ours.Mirror, ours.GatherFirst, ours.OnDemand)
	}
	return ""
}
