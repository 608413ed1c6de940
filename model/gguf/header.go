package gguf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
)

// Limits on the header of a file that may be hostile. Each is far above what
// published models need; together they bound the memory that a header can claim.
const (
	metaCountMax   = 1 << 16
	tensorCountMax = 1 << 17
	keyBytesMax    = 1 << 10
	stringBytesMax = 16 << 20
	headerBytesMax = 512 << 20
	nameBytesMax   = 64
	dimsMax        = 4
	alignmentMax   = 1 << 16
)

// The value types of metadata.
const (
	typeU8 uint32 = iota
	typeI8
	typeU16
	typeI16
	typeU32
	typeI32
	typeF32
	typeBool
	typeString
	typeArray
	typeU64
	typeI64
	typeF64
)

// widthOf is the bytes of a value of each fixed-size type.
var widthOf = map[uint32]int64{typeU8: 1, typeI8: 1, typeU16: 2, typeI16: 2, typeU32: 4, typeI32: 4, typeF32: 4,
	typeBool: 1, typeU64: 8, typeI64: 8, typeF64: 8}

// numbers is an array of fixed-size values as it stands in the file.
type numbers struct {
	kind uint32
	raw  []byte
}

func (n numbers) len() int { return len(n.raw) / int(widthOf[n.kind]) }

// at decodes element i to an int64, uint64, float64 or bool.
func (n numbers) at(i int) any {
	w := int(widthOf[n.kind])
	return decodeValue(n.kind, n.raw[i*w:(i+1)*w])
}

// decodeValue widens one little-endian value; signed to int64, unsigned to uint64.
func decodeValue(kind uint32, b []byte) any {
	le := binary.LittleEndian
	switch kind {
	case typeU8:
		return uint64(b[0])
	case typeI8:
		return int64(int8(b[0]))
	case typeU16:
		return uint64(le.Uint16(b))
	case typeI16:
		return int64(int16(le.Uint16(b)))
	case typeU32:
		return uint64(le.Uint32(b))
	case typeI32:
		return int64(int32(le.Uint32(b)))
	case typeF32:
		return float64(math.Float32frombits(le.Uint32(b)))
	case typeBool:
		return b[0] != 0
	case typeU64:
		return le.Uint64(b)
	case typeI64:
		return int64(le.Uint64(b))
	case typeF64:
		return math.Float64frombits(le.Uint64(b))
	}
	panic("gguf: decodeValue of a type without width")
}

// tensor is one tensor as stored: shape outermost first, offset in the file.
type tensor struct {
	name   string
	shape  []int64
	kind   quant
	offset int64
}

// header is everything before the data.
type header struct {
	meta    map[string]any // int64, uint64, float64, bool, string, []string or numbers
	tensors map[string]tensor
	order   []string // names of tensors in file order
}

// cursor reads the header in order. Its errors name the offset.
type cursor struct {
	r    *bufio.Reader
	at   int64 // offset in the file
	size int64 // bytes that may be read: the file's, or the limit on headers
	err  error
}

func (c *cursor) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("offset %d: %w", c.at, fmt.Errorf(format, args...))
	}
}

// take reads n bytes. It checks what is left before it allocates.
func (c *cursor) take(n int64) []byte {
	if c.err != nil {
		return nil
	}
	if n > c.size-c.at {
		c.fail("%d bytes are needed, but the header may go on for %d only; the file is truncated or damaged", n, c.size-c.at)
		return nil
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c.r, b); err != nil {
		c.fail("%w", err)
		return nil
	}
	c.at += n
	return b
}

func (c *cursor) u32() uint32 {
	if b := c.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if b := c.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (c *cursor) text(what string, bytesMax uint64) string {
	n := c.u64()
	if n > bytesMax {
		c.fail("%s of %d bytes; at most %d are read", what, n, bytesMax)
		return ""
	}
	return string(c.take(int64(n)))
}

func readHeader(r io.ReaderAt, size int64) (*header, error) {
	limit := min(size, headerBytesMax)
	c := &cursor{r: bufio.NewReaderSize(io.NewSectionReader(r, 0, limit), 1<<18), size: limit}
	if magic := c.take(4); c.err != nil || string(magic) != "GGUF" {
		return nil, errors.New("the file does not begin with GGUF; name a GGUF file or a Hugging Face folder")
	}
	switch version := c.u32(); {
	case c.err != nil:
		return nil, c.err
	case version == bits.ReverseBytes32(3):
		return nil, errors.New("the file is big-endian; only little-endian files are read")
	case version != 3:
		return nil, fmt.Errorf("GGUF version %d is not read, only version 3; convert the file with a recent llama.cpp", version)
	}
	tensorCount, metaCount := c.u64(), c.u64()
	if tensorCount > tensorCountMax || metaCount > metaCountMax {
		return nil, fmt.Errorf("offset 8: %d tensors and %d metadata keys; at most %d and %d are read", tensorCount, metaCount, tensorCountMax, metaCountMax)
	}
	h := &header{meta: map[string]any{}, tensors: map[string]tensor{}}
	for range metaCount {
		key := c.text("a metadata key", keyBytesMax)
		value := c.value(key, c.u32())
		if c.err != nil {
			return nil, c.err
		}
		if _, twice := h.meta[key]; twice {
			return nil, fmt.Errorf("metadata key %q appears twice", key)
		}
		h.meta[key] = value
	}
	alignment, err := h.alignment()
	if err != nil {
		return nil, err
	}
	if err := h.readTensors(c, tensorCount); err != nil {
		return nil, err
	}
	return h, h.place(roundUp(c.at, alignment), size, alignment)
}

// value reads one metadata value of the given type.
func (c *cursor) value(key string, kind uint32) any {
	switch width, fixed := widthOf[kind]; {
	case c.err != nil:
		return nil
	case fixed:
		if b := c.take(width); b != nil {
			return decodeValue(kind, b)
		}
		return nil
	case kind == typeString:
		return c.text("metadata "+key, stringBytesMax)
	case kind == typeArray:
		return c.array(key)
	}
	c.fail("metadata %s has the unknown type %d", key, kind)
	return nil
}

func (c *cursor) array(key string) any {
	kind, n := c.u32(), c.u64()
	if width, fixed := widthOf[kind]; fixed {
		if n > uint64(c.size)/uint64(width) {
			c.fail("metadata %s has %d elements, more than the file can hold", key, n)
			return nil
		}
		return numbers{kind, c.take(int64(n) * width)}
	}
	if kind != typeString {
		c.fail("metadata %s is an array of type %d, which is not read", key, kind)
		return nil
	}
	if n > uint64(c.size-c.at)/8 { // each string has a length of 8 bytes
		c.fail("metadata %s has %d strings, more than the file can hold", key, n)
		return nil
	}
	texts := make([]string, 0, n)
	for range n {
		texts = append(texts, c.text("metadata "+key, stringBytesMax))
		if c.err != nil {
			return nil
		}
	}
	return texts
}

func (h *header) alignment() (int64, error) {
	value, given := h.meta["general.alignment"]
	if !given {
		return 32, nil
	}
	n, ok := value.(uint64)
	if !ok || n < 8 || n > alignmentMax || n&(n-1) != 0 {
		return 0, fmt.Errorf("general.alignment is %v; it must be a power of two from 8 to %d", value, alignmentMax)
	}
	return int64(n), nil
}

// readTensors reads the tensor infos. Offsets still count from the data's start.
func (h *header) readTensors(c *cursor, count uint64) error {
	for range count {
		t := tensor{name: c.text("a tensor name", nameBytesMax)}
		dims := c.u32()
		if dims < 1 || dims > dimsMax {
			c.fail("tensor %q has %d dimensions; from 1 to %d are read", t.name, dims, dimsMax)
		}
		if c.err != nil {
			return c.err
		}
		t.shape = make([]int64, dims)
		elements := uint64(1)
		for i := range t.shape {
			dim := c.u64()
			high, low := bits.Mul64(elements, dim)
			if dim == 0 || high != 0 || low >= 1<<48 {
				c.fail("tensor %q: its shape is empty or overflows", t.name)
			}
			elements = low
			t.shape[len(t.shape)-1-i] = int64(dim) // the file has the fastest first
		}
		id, offset := c.u32(), c.u64()
		if c.err != nil {
			return c.err
		}
		var err error
		if t.kind, err = quantOf(id); err != nil {
			return fmt.Errorf("tensor %q: %w", t.name, err)
		}
		if t.shape[dims-1]%t.kind.elements != 0 {
			return fmt.Errorf("tensor %q: rows of %d elements do not divide into blocks of %d (%s)", t.name, t.shape[dims-1], t.kind.elements, t.kind.name)
		}
		if offset >= 1<<62 {
			return fmt.Errorf("tensor %q: offset %d lies outside the file", t.name, offset)
		}
		t.offset = int64(offset)
		if _, twice := h.tensors[t.name]; twice {
			return fmt.Errorf("tensor %q appears twice", t.name)
		}
		h.tensors[t.name] = t
		h.order = append(h.order, t.name)
	}
	return nil
}

// place checks that the tensors lie one after another, aligned, inside the file, with
// nothing behind them, and turns their offsets into offsets in the file.
func (h *header) place(dataStart, size, alignment int64) error {
	end, next := int64(0), int64(0)
	for _, name := range h.order {
		t := h.tensors[name]
		if t.offset != next {
			return fmt.Errorf("tensor %q: its data is at offset %d, but the tensors before it ask for %d", name, t.offset, next)
		}
		end = next + t.bytes()
		if end > size-dataStart {
			return fmt.Errorf("tensor %q: its data ends at offset %d, but the file has %d bytes; it is truncated, fetch it again", name, dataStart+end, size)
		}
		next = roundUp(end, alignment)
		t.offset += dataStart
		h.tensors[name] = t
	}
	if size > dataStart+next {
		return fmt.Errorf("%d bytes follow the last tensor, which ends at offset %d", size-dataStart-end, dataStart+end)
	}
	return nil
}

func roundUp(n, multiple int64) int64 { return (n + multiple - 1) / multiple * multiple }

// elements is the number of values in t.
func (t tensor) elements() int64 {
	n := int64(1)
	for _, dim := range t.shape {
		n *= dim
	}
	return n
}

// bytes is the stored size of t; whole blocks, as readTensors has checked.
func (t tensor) bytes() int64 { return t.elements() / t.kind.elements * t.kind.bytes }
