package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Magic begins every connection between nodes, so that a port may be shared.
const Magic = "SKNR"

const (
	helloVersion   = 2
	nameBytesMax   = 64
	reasonBytesMax = 512
)

// hello is who calls, and what for.
type hello struct {
	cluster, id string
	asks        bool // only for the answer, which then names the leader that is heard there
}

func writeHello(w io.Writer, h hello) error {
	asks := byte(0)
	if h.asks {
		asks = 1
	}
	b := append([]byte(Magic), helloVersion, asks, byte(len(h.cluster)), byte(len(h.id)))
	b = append(append(b, h.cluster...), h.id...)
	_, err := w.Write(binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)))
	return err
}

// readHello reads what writeHello wrote, byte for byte and no further.
func readHello(r io.Reader) (h hello, err error) {
	head := make([]byte, 8, 8+2*nameBytesMax+4)
	if _, err := io.ReadFull(r, head); err != nil {
		return h, fmt.Errorf("hello: %w", err)
	}
	c, i := int(head[6]), int(head[7])
	if string(head[:4]) != Magic || c > nameBytesMax || i > nameBytesMax {
		return h, errors.New("hello: not from a coordinator")
	}
	if head[4] != helloVersion || head[5] > 1 {
		return h, fmt.Errorf("hello: version %d, this program speaks %d", head[4], helloVersion)
	}
	b := head[:8+c+i+4]
	if _, err := io.ReadFull(r, b[8:]); err != nil {
		return h, fmt.Errorf("hello: %w", err)
	}
	n := 8 + c + i
	if crc32.Checksum(b[:n], castagnoli) != binary.LittleEndian.Uint32(b[n:]) {
		return h, errors.New("hello: its checksum differs")
	}
	return hello{cluster: string(b[8 : 8+c]), id: string(b[8+c : n]), asks: head[5] == 1}, nil
}

// helloAnswer is what became of a hello.
type helloAnswer struct {
	refusal string // why the caller is not let in; empty: it is
	id      string // of who answers
	applied uint64 // index of the last entry that it has applied
	leader  string // id of the leader that it hears, for who asks; empty: it hears none
}

func writeAnswer(w io.Writer, a helloAnswer, asked bool) error {
	refusal := a.refusal[:min(len(a.refusal), reasonBytesMax)]
	b := append(binary.LittleEndian.AppendUint16(nil, uint16(len(refusal))), refusal...)
	b = append(append(b, byte(len(a.id))), a.id...)
	b = binary.LittleEndian.AppendUint64(b, a.applied)
	if asked {
		b = append(append(b, byte(len(a.leader))), a.leader...)
	}
	_, err := w.Write(b)
	return err
}

// readAnswer reads what writeAnswer wrote, as far as the caller may rely on it. A refusal
// is an error.
func readAnswer(r io.Reader, asked bool) (a helloAnswer, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return a, fmt.Errorf("hello: %w", err)
	}
	n := binary.LittleEndian.Uint16(head[:])
	if n > reasonBytesMax {
		return a, errors.New("hello: the answer is not a coordinator's")
	}
	b := make([]byte, n+1)
	if _, err := io.ReadFull(r, b); err != nil {
		return a, fmt.Errorf("hello: %w", err)
	}
	if n > 0 {
		return a, fmt.Errorf("refused: %s", b[:n])
	}
	i := int(b[n])
	if i == 0 || i > nameBytesMax {
		return a, errors.New("hello: the answer is not a coordinator's")
	}
	b = make([]byte, i+8)
	if _, err := io.ReadFull(r, b); err != nil {
		return a, fmt.Errorf("hello: %w", err)
	}
	a = helloAnswer{id: string(b[:i]), applied: binary.LittleEndian.Uint64(b[i:])}
	if !asked {
		return a, nil
	}
	if _, err := io.ReadFull(r, head[:1]); err != nil {
		return a, fmt.Errorf("hello: %w", err)
	}
	if head[0] > nameBytesMax {
		return a, errors.New("hello: the answer is not a coordinator's")
	}
	b = make([]byte, head[0])
	if _, err := io.ReadFull(r, b); err != nil {
		return a, fmt.Errorf("hello: %w", err)
	}
	a.leader = string(b)
	return a, nil
}
