package checkpoint

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"math"

	"github.com/skein-ml/skein/internal/invariant"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
)

// Kind is what the numbers of an object are.
type Kind uint8

// The kinds, all fp32.
const (
	Master  Kind = iota // master weights
	Moment1             // AdamW's m
	Moment2             // AdamW's v
	kindCount
)

var kindNames = [kindCount]string{"master", "m", "v"}

func (k Kind) String() string {
	if k < kindCount {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// MarshalText writes the kind's name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads a kind's name.
func (k *Kind) UnmarshalText(text []byte) error {
	for i, name := range kindNames {
		if name == string(text) {
			*k = Kind(i)
			return nil
		}
	}
	return fmt.Errorf("unknown kind %q", text)
}

// The layout of an object file, see docs/formats/checkpoint.md:
//
//	| header 64 B | elements, 4 B each | CRC-32C of each block | CRC-32C of these | SHA-256 of all before |
const (
	objectMagic   = "SKEINOBJ"
	objectVersion = 1
	headerBytes   = 64
	// blockBytes is how much of the data one checksum covers, and so the least that
	// is read to have a verified element.
	blockBytes = 256 << 10
	// elemsMax keeps sizes in bytes far from overflow.
	elemsMax = math.MaxInt64 / 64
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is the fixed start of an object file.
type header struct {
	kind  Kind
	step  int64
	elems int64
	rank  shard.Rank
}

func (h header) encode() []byte {
	b, le := make([]byte, headerBytes), binary.LittleEndian
	copy(b, objectMagic)
	le.PutUint32(b[8:], objectVersion)
	le.PutUint32(b[12:], uint32(h.kind))
	le.PutUint64(b[16:], uint64(h.step))
	le.PutUint64(b[24:], uint64(h.elems))
	le.PutUint32(b[32:], uint32(h.rank))
	le.PutUint32(b[36:], blockBytes)
	le.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return b
}

// decodeHeader reads what encode writes and refuses everything else.
func decodeHeader(b []byte) (header, error) {
	le := binary.LittleEndian
	switch {
	case len(b) != headerBytes || string(b[:8]) != objectMagic:
		return header{}, errors.New("is not a checkpoint object")
	case crc32.Checksum(b[:60], castagnoli) != le.Uint32(b[60:]):
		return header{}, errors.New("the header's checksum differs")
	case le.Uint32(b[8:]) != objectVersion:
		return header{}, fmt.Errorf("is an object of version %d, an %w: this program reads version %d", le.Uint32(b[8:]), ErrVersion, objectVersion)
	}
	h := header{Kind(min(le.Uint32(b[12:]), uint32(kindCount))), int64(le.Uint64(b[16:])), int64(le.Uint64(b[24:])), shard.Rank(le.Uint32(b[32:]))}
	if string(h.encode()) != string(b) || h.kind >= kindCount || h.step < 0 || h.elems < 0 || h.elems > elemsMax || h.rank >= shard.WorldSizeMax {
		return header{}, errors.New("the header holds an impossible value")
	}
	return h, nil
}

// blocks is the number of blocks of an object's data.
func blocks(elems int64) int64 { return (elems*4 + blockBytes - 1) / blockBytes }

// objectBytes is the size of an object file.
func objectBytes(elems int64) int64 {
	return headerBytes + elems*4 + blocks(elems)*4 + 4 + sha256.Size
}

// objectWriter streams one object file.
type objectWriter struct {
	w     io.Writer
	sum   hash.Hash
	crc   uint32
	fill  int // bytes in the open block
	table []byte
	left  int64 // data bytes still to come
}

func newObjectWriter(w io.Writer, h header) (*objectWriter, error) {
	o := &objectWriter{w: w, sum: sha256.New(), left: h.elems * 4}
	return o, o.emit(h.encode())
}

func (o *objectWriter) emit(b []byte) error {
	o.sum.Write(b)
	_, err := o.w.Write(b)
	return err
}

// data appends elements.
func (o *objectWriter) data(le []byte) error {
	o.left -= int64(len(le))
	invariant.Check(o.left >= 0, "object got %d bytes too many", -o.left)
	for rest := le; len(rest) > 0; {
		n := min(len(rest), blockBytes-o.fill)
		o.crc = crc32.Update(o.crc, castagnoli, rest[:n])
		o.fill += n
		rest = rest[n:]
		if o.fill == blockBytes {
			o.closeBlock()
		}
	}
	return o.emit(le)
}

func (o *objectWriter) closeBlock() {
	o.table = binary.LittleEndian.AppendUint32(o.table, o.crc)
	o.crc, o.fill = 0, 0
}

// finish writes the checksums and returns the SHA-256 that the file ends with.
func (o *objectWriter) finish() (shard.Digest, error) {
	invariant.Check(o.left == 0, "object lacks %d bytes", o.left)
	if o.fill > 0 {
		o.closeBlock()
	}
	if err := o.emit(binary.LittleEndian.AppendUint32(o.table, crc32.Checksum(o.table, castagnoli))); err != nil {
		return shard.Digest{}, err
	}
	sum := shard.Digest(o.sum.Sum(nil))
	_, err := o.w.Write(sum[:])
	return sum, err
}

// objectReader reads verified stretches of one object file. It is not safe for
// concurrent use.
type objectReader struct {
	file  vfs.File
	head  header
	sum   shard.Digest // that the file claims
	table []byte       // CRC-32C of each block
	at    int64        // block in cache, −1 for none
	cache []byte
}

// openObject checks everything about an object but its data: size, header,
// checksum table. The sum it claims is for the caller to compare.
func openObject(f vfs.File) (*objectReader, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, headerBytes)
	if err := readAt(f, b, 0); err != nil {
		return nil, err
	}
	h, err := decodeHeader(b)
	if err != nil {
		return nil, err
	}
	if want := objectBytes(h.elems); info.Size() != want {
		return nil, fmt.Errorf("has %d bytes, should have %d: it is cut off or damaged", info.Size(), want)
	}
	tail := make([]byte, blocks(h.elems)*4+4+sha256.Size)
	if err := readAt(f, tail, headerBytes+h.elems*4); err != nil {
		return nil, err
	}
	o := &objectReader{file: f, head: h, at: -1, table: tail[:blocks(h.elems)*4]}
	copy(o.sum[:], tail[len(tail)-sha256.Size:])
	if crc32.Checksum(o.table, castagnoli) != binary.LittleEndian.Uint32(tail[len(o.table):]) {
		return nil, errors.New("its table of checksums is damaged")
	}
	return o, nil
}

// readAt fills b, and calls a file that ends too early cut off.
func readAt(f io.ReaderAt, b []byte, off int64) error {
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		return fmt.Errorf("ends after %d bytes: it is cut off", off+int64(n))
	}
	return err
}

// read fills le with data bytes from off, counted from the start of the data.
func (o *objectReader) read(le []byte, off int64) error {
	for len(le) > 0 {
		block := off / blockBytes
		if err := o.load(block); err != nil {
			return err
		}
		n := copy(le, o.cache[off-block*blockBytes:])
		le, off = le[n:], off+int64(n)
	}
	return nil
}

// load brings a block into the cache and verifies it.
func (o *objectReader) load(block int64) error {
	if block == o.at {
		return nil
	}
	o.at = -1
	if o.cache == nil {
		o.cache = make([]byte, blockBytes)
	}
	n := min(blockBytes, o.head.elems*4-block*blockBytes)
	o.cache = o.cache[:n] // its capacity is always a whole block
	if err := readAt(o.file, o.cache, headerBytes+block*blockBytes); err != nil {
		return err
	}
	if crc32.Checksum(o.cache, castagnoli) != binary.LittleEndian.Uint32(o.table[block*4:]) {
		return fmt.Errorf("the checksum of bytes %d to %d differs: the file is damaged", headerBytes+block*blockBytes, headerBytes+block*blockBytes+n)
	}
	o.at = block
	return nil
}

// handOver gives the memory of the cache to another object's reader.
func (o *objectReader) handOver(to *objectReader) {
	if to.cache == nil {
		to.cache = o.cache[:cap(o.cache)]
	}
	o.cache, o.at = nil, -1
}

// verify reads the whole file. With deep it also computes the SHA-256, which binds
// the data to the manifest; without it finds every accident, at memory speed.
func (o *objectReader) verify(deep bool) error {
	sum := sha256.New()
	if deep {
		sum.Write(o.head.encode())
	}
	for block := range blocks(o.head.elems) {
		if err := o.load(block); err != nil {
			return err
		}
		if deep {
			sum.Write(o.cache)
		}
	}
	if !deep {
		return nil
	}
	sum.Write(o.table)
	sum.Write(binary.LittleEndian.AppendUint32(nil, crc32.Checksum(o.table, castagnoli)))
	if shard.Digest(sum.Sum(nil)) != o.sum {
		return errors.New("its SHA-256 differs: the file is damaged")
	}
	return nil
}
