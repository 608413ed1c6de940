package stream

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/skein-ml/skein/data"
)

// ticket asks a server for records of a data set, in this order.
//
//	"SKEINTKT" | u32 version | u32 n | content hash, 32 bytes | n × u64 record | u32 CRC-32C of all before
//
// little-endian. Records, not packs: a record is the least that a reader can verify.
type ticket struct {
	hash    [sha256.Size]byte
	records []int64
}

const (
	ticketMagic   = "SKEINTKT"
	indexMagic    = "SKEINIDX"
	formatVersion = 1
	ticketHead    = 8 + 4 + 4 + sha256.Size
	indexHead     = 8 + 4 + 4 + 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (t ticket) encode() []byte {
	le := binary.LittleEndian
	b := append(make([]byte, 0, ticketHead+8*len(t.records)+4), ticketMagic...)
	b = le.AppendUint32(b, formatVersion)
	b = le.AppendUint32(b, uint32(len(t.records)))
	b = append(b, t.hash[:]...)
	for _, i := range t.records {
		b = le.AppendUint64(b, uint64(i))
	}
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeTicket reads a ticket of anybody's making. Nothing is allocated by a number that was not checked.
func decodeTicket(b []byte) (ticket, error) {
	le := binary.LittleEndian
	var t ticket
	if len(b) > ticketBytesMax {
		return t, fmt.Errorf("ticket of %d bytes, at most %d are read", len(b), ticketBytesMax)
	}
	if len(b) < ticketHead+4 || string(b[:8]) != ticketMagic {
		return t, fmt.Errorf("not a Skein ticket (%d bytes)", len(b))
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		return t, fmt.Errorf("ticket of version %d, this build reads version %d; use the same build everywhere", v, formatVersion)
	}
	n := le.Uint32(b[12:])
	if n < 1 || n > ticketRecordsMax {
		return t, fmt.Errorf("ticket for %d records, must be 1 to %d", n, ticketRecordsMax)
	}
	if want := ticketHead + 8*int(n) + 4; len(b) != want {
		return t, fmt.Errorf("ticket of %d bytes for %d records, want %d", len(b), n, want)
	}
	if crc32.Checksum(b[:len(b)-4], castagnoli) != le.Uint32(b[len(b)-4:]) {
		return t, fmt.Errorf("damaged ticket: its checksum does not match")
	}
	copy(t.hash[:], b[16:])
	for at := ticketHead; at < len(b)-4; at += 8 {
		i := le.Uint64(b[at:])
		if i >= 1<<40 {
			return t, fmt.Errorf("ticket for record %d", i)
		}
		t.records = append(t.records, int64(i))
	}
	return t, nil
}

// parseHash reads a content hash as people and URLs write it.
func parseHash(s string) (h [sha256.Size]byte, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(h) {
		return h, fmt.Errorf("%.80q is not a content hash: want %d hexadecimal digits", s, 2*len(h))
	}
	return [sha256.Size]byte(b), nil
}

// encodeIndex writes an index; its checksum is the content hash that it was asked for by.
//
//	"SKEINIDX" | u32 version | u32 T | u64 packs | for each record: its hash, 32 bytes
func encodeIndex(x *data.Index) []byte {
	le := binary.LittleEndian
	b := append(make([]byte, 0, indexHead+len(x.Leaves())), indexMagic...)
	b = le.AppendUint32(b, formatVersion)
	b = le.AppendUint32(b, uint32(x.SeqLen))
	b = le.AppendUint64(b, uint64(x.Packs))
	return append(b, x.Leaves()...)
}

// indexBytes is how long the index is that begins with b.
func indexBytes(b []byte) (int, error) {
	le := binary.LittleEndian
	if len(b) < indexHead || string(b[:8]) != indexMagic {
		return 0, fmt.Errorf("not an index (%d bytes)", len(b))
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		return 0, fmt.Errorf("index of version %d, this build reads version %d; use the same build everywhere", v, formatVersion)
	}
	x := data.Index{SeqLen: int(le.Uint32(b[12:])), Packs: int64(le.Uint64(b[16:]))}
	if x.SeqLen < 1 || x.Packs < 1 || x.Packs > 1<<40 || indexHead+x.Records()*sha256.Size > indexBytesMax {
		return 0, fmt.Errorf("index of %d packs of %d tokens", x.Packs, x.SeqLen)
	}
	return indexHead + int(x.Records())*sha256.Size, nil
}

// decodeIndex reads an index and holds it against the content hash.
func decodeIndex(b []byte, contentHash string) (*data.Index, error) {
	if _, err := indexBytes(b); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	return data.NewIndex(contentHash, int(le.Uint32(b[12:])), int64(le.Uint64(b[16:])), slices.Clone(b[indexHead:]))
}
