package fsm

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/skein-ml/skein/coordinator/ledger"
)

// Version is the newest version of entries and snapshots, and what is written. All
// versions from 1 are read. docs/formats/raft.md has the diagram.
const Version = 1

const (
	magicEntry    = "SKNE"
	magicSnapshot = "SKNS"
	headerBytes   = 4 + 2 + 2 + 8 // magic, version, reserved, length of the body
	frameBytes    = headerBytes + 4

	entryBytesMax    = 4 << 20 // a spec is at most 1 MiB, and base64
	snapshotBytesMax = 1 << 30
)

// ErrCorrupt is the error of bytes that are not what they should be.
var ErrCorrupt = errors.New("damaged")

// ErrVersion is the error of bytes that a newer program wrote.
var ErrVersion = errors.New("written by a newer version of skein")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// envelope is the body of an entry.
type envelope struct {
	At       int64           `json:"at"`
	Reason   string          `json:"reason"`
	Kind     string          `json:"kind"`
	Decision json.RawMessage `json:"decision"`
	Spent    ledger.Spent    `json:"spent,omitzero"`
}

// Encode writes the entry. It fails if the entry is larger than one may be.
func (e Entry) Encode() ([]byte, error) {
	decision, err := json.Marshal(e.Decision)
	if err != nil {
		return nil, fmt.Errorf("entry: %w", err)
	}
	body, err := json.Marshal(envelope{At: e.At, Reason: e.Reason, Kind: e.Decision.Kind(), Decision: decision, Spent: e.Spent})
	if err != nil {
		return nil, fmt.Errorf("entry: %w", err)
	}
	if len(body) > entryBytesMax {
		return nil, fmt.Errorf("entry: a %s of %d bytes is larger than %d", e.Decision.Kind(), len(body), entryBytesMax)
	}
	return frame(magicEntry, body), nil
}

// Decode reads an entry, strictly: half an understanding of a decision would give
// coordinators that disagree.
func Decode(b []byte) (Entry, error) {
	body, err := unframe(magicEntry, b, entryBytesMax)
	if err != nil {
		return Entry{}, fmt.Errorf("entry: %w", err)
	}
	var env envelope
	if err := strict(body, &env); err != nil {
		return Entry{}, fmt.Errorf("entry: %w", err)
	}
	empty := kinds[env.Kind]
	if empty == nil {
		return Entry{}, fmt.Errorf("entry: %w: kind %q is not known here", ErrVersion, env.Kind)
	}
	d := empty()
	if err := strict(env.Decision, d); err != nil {
		return Entry{}, fmt.Errorf("entry: %s: %w", env.Kind, err)
	}
	return Entry{At: env.At, Reason: env.Reason, Decision: d, Spent: env.Spent}, nil
}

// Snapshot writes the state. Equal states give equal bytes.
func (s *State) Snapshot(w io.Writer) error {
	body, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if _, err := w.Write(frame(magicSnapshot, body)); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}

// Restore reads what Snapshot wrote.
func Restore(r io.Reader) (*State, error) {
	b, err := io.ReadAll(io.LimitReader(r, snapshotBytesMax+frameBytes+1))
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	body, err := unframe(magicSnapshot, b, snapshotBytesMax)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	s := New()
	if err := strict(body, s); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	if err := s.index(); err != nil {
		return nil, fmt.Errorf("snapshot: %w: %w", ErrCorrupt, err)
	}
	return s, nil
}

// index derives what is not written, and refuses a state that Apply cannot have made.
func (s *State) index() error {
	if s.Jobs == nil || s.Workers == nil {
		return errors.New("it has no jobs or no workers")
	}
	for id, j := range s.Jobs {
		if j == nil || j.ID != id || next[j.Phase] == nil {
			return fmt.Errorf("job %q is not whole", id)
		}
		if s.requests[j.Request] != "" {
			return fmt.Errorf("request %q made two jobs", j.Request)
		}
		s.requests[j.Request] = id
	}
	for name, w := range s.Workers {
		if w == nil || w.Name != name {
			return fmt.Errorf("worker %q is not whole", name)
		}
	}
	return nil
}

// frame puts magic, version and length before a body and a checksum behind it.
func frame(magic string, body []byte) []byte {
	b := make([]byte, 0, frameBytes+len(body))
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint16(b, Version)
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(body)))
	b = append(b, body...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// unframe checks what frame wrote and gives the body back.
func unframe(magic string, b []byte, bodyMax uint64) ([]byte, error) {
	if len(b) < frameBytes || string(b[:4]) != magic {
		return nil, fmt.Errorf("%w: it does not begin with %q", ErrCorrupt, magic)
	}
	sum := binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(b[:len(b)-4], castagnoli) != sum {
		return nil, fmt.Errorf("%w: its checksum differs", ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint16(b[4:]); v < 1 || v > Version {
		return nil, fmt.Errorf("%w: version %d, this one reads up to %d", ErrVersion, v, Version)
	}
	if reserved := binary.LittleEndian.Uint16(b[6:]); reserved != 0 {
		return nil, fmt.Errorf("%w: a reserved field is %d", ErrCorrupt, reserved)
	}
	if n := binary.LittleEndian.Uint64(b[8:]); n != uint64(len(b)-frameBytes) || n > bodyMax {
		return nil, fmt.Errorf("%w: %d bytes where its length says %d", ErrCorrupt, len(b)-frameBytes, n)
	}
	return b[headerBytes : len(b)-4], nil
}

// strict reads one JSON value and refuses unknown keys.
func strict(body []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if d.More() {
		return fmt.Errorf("%w: something follows its end", ErrCorrupt)
	}
	return nil
}
