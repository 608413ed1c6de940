package data

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/ipc"
	"github.com/apache/arrow/go/v17/arrow/memory"
)

// Arrow files are read as hostile. The library's own reader parses footer and schema as they come, allocates what they ask
// for and panics on what it does not like. So it never sees either: the schema is the one we write, the manifest says where
// each record lies, and the library gets one record message at a time, read into memory whose size was checked, with an
// allocator that has a limit, under a recover. What comes out is then checked number by number (viewRecord).

// errMemory is the panic of an allocator that was asked for more than its limit.
var errMemory = errors.New("the record asks for more memory than its size allows")

// limitAllocator hands out memory up to a limit of bytes at a time, and keeps what is freed for the next record: records are
// all of one size, so a steady stream of them allocates no new memory. Not safe for concurrent use.
type limitAllocator struct {
	mem   memory.Allocator
	limit int
	free  map[int][][]byte // by size
}

// keepFree is how many freed buffers of a size are kept: one record's worth and a little.
const keepFree = 4

func newLimitAllocator(mem memory.Allocator, limit int) *limitAllocator {
	return &limitAllocator{mem: mem, limit: limit, free: map[int][][]byte{}}
}

func (a *limitAllocator) Allocate(size int) []byte {
	if size < 0 || size > a.limit {
		panic(errMemory)
	}
	if list := a.free[size]; len(list) > 0 {
		b := list[len(list)-1]
		a.free[size] = list[:len(list)-1]
		return b
	}
	return a.mem.Allocate(size)
}

func (a *limitAllocator) Reallocate(size int, b []byte) []byte {
	if size < 0 || size > a.limit {
		panic(errMemory)
	}
	return a.mem.Reallocate(size, b)
}

func (a *limitAllocator) Free(b []byte) {
	if list := a.free[len(b)]; len(b) > 0 && len(list) < keepFree && len(a.free) <= 2*keepFree {
		a.free[len(b)] = append(list, b)
		return
	}
	a.mem.Free(b)
}

// close gives everything back.
func (a *limitAllocator) close() {
	for _, list := range a.free {
		for _, b := range list {
			a.mem.Free(b)
		}
	}
	a.free = map[int][][]byte{}
}

// recordDecoder reads record messages of one schema. Not safe for concurrent use.
type recordDecoder struct {
	mem    *limitAllocator
	schema *ipc.Message
	seqLen int
	vocab  int32
}

// newRecordDecoder makes a decoder for packs of seqLen. Buffers come from mem, at most limit bytes each.
func newRecordDecoder(mem memory.Allocator, seqLen int, vocab int32, limit int) (*recordDecoder, error) {
	// A stream without records is the schema message and an end mark.
	var stream bytes.Buffer
	w := ipc.NewWriter(&stream, ipc.WithSchema(packSchema(seqLen, arrow.Metadata{})))
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("arrow schema: %w", err)
	}
	r := ipc.NewMessageReader(&stream)
	defer r.Release()
	schema, err := r.Message()
	if err != nil {
		return nil, fmt.Errorf("arrow schema: %w", err)
	}
	schema.Retain()
	return &recordDecoder{mem: newLimitAllocator(mem, limit), schema: schema, seqLen: seqLen, vocab: vocab}, nil
}

func (d *recordDecoder) close() {
	d.schema.Release()
	d.mem.close()
}

// decode reads one encapsulated record message of so many packs. The caller releases the record; b may be reused at once.
// It never panics.
func (d *recordDecoder) decode(b []byte, rows int) (rec arrow.Record, p packs, err error) {
	meta, body, err := splitMessage(b)
	if err != nil {
		return nil, packs{}, err
	}
	return d.decodeMessage(meta, body, rows)
}

// decodeMessage is decode for a message in its two parts.
func (d *recordDecoder) decodeMessage(meta, body []byte, rows int) (rec arrow.Record, p packs, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			rec, p, err = nil, packs{}, fmt.Errorf("damaged record: %v", cause)
		}
	}()
	if err := refuseCompression(meta); err != nil {
		return nil, packs{}, err
	}
	msg := ipc.NewMessage(memory.NewBufferBytes(meta), memory.NewBufferBytes(body))
	defer msg.Release()
	if msg.Type() != ipc.MessageRecordBatch {
		return nil, packs{}, fmt.Errorf("message is a %v, want a record batch", msg.Type())
	}
	feed := &messageFeed{queue: []*ipc.Message{d.schema, msg}}
	r, err := ipc.NewReaderFromMessageReader(feed, ipc.WithAllocator(d.mem))
	if err != nil {
		return nil, packs{}, err
	}
	defer r.Release()
	if !r.Next() {
		return nil, packs{}, fmt.Errorf("damaged record: %w", r.Err())
	}
	rec = r.Record()
	if p, err = viewRecord(rec, rows, d.seqLen, d.vocab); err != nil {
		return nil, packs{}, err
	}
	rec.Retain()
	return rec, p, nil
}

// messageFeed hands the messages in its queue to Arrow's reader.
type messageFeed struct{ queue []*ipc.Message }

func (f *messageFeed) Message() (*ipc.Message, error) {
	if len(f.queue) == 0 {
		return nil, errors.New("no more messages")
	}
	m := f.queue[0]
	f.queue = f.queue[1:]
	return m, nil
}
func (f *messageFeed) Retain()  {}
func (f *messageFeed) Release() {}

// splitMessage cuts an encapsulated message: 0xFFFFFFFF, i32 length of the metadata, metadata, body.
func splitMessage(b []byte) (meta, body []byte, err error) {
	if len(b) < 8 || binary.LittleEndian.Uint32(b) != 0xffffffff {
		return nil, nil, errors.New("no Arrow message where the manifest says there is one")
	}
	n := int64(int32(binary.LittleEndian.Uint32(b[4:])))
	if n < 8 || n > int64(len(b)-8) {
		return nil, nil, fmt.Errorf("message metadata of %d bytes in a message of %d", n, len(b))
	}
	return b[8 : 8+n], b[8+n:], nil
}

// refuseCompression looks into the flatbuffer of a record message, for the one thing that the library must not see: a
// decompressor takes its memory where no limit of ours is.
//
//	Message     { 0 version, 1 header type, 2 header, 3 body length }
//	RecordBatch { 0 length, 1 nodes, 2 buffers, 3 compression }
func refuseCompression(meta []byte) error {
	const header, compression = 2, 3
	root, ok := readOffset(meta, 0)
	if !ok {
		return errors.New("damaged message metadata")
	}
	field, err := tableField(meta, root, header)
	if err != nil || field == 0 {
		return fmt.Errorf("damaged message metadata: no header (%w)", err)
	}
	batch, ok := readOffset(meta, field)
	if !ok {
		return errors.New("damaged message metadata: header offset")
	}
	if field, err = tableField(meta, batch, compression); err != nil {
		return err
	}
	if field != 0 {
		return errors.New("compressed records are not read; prepare the data again")
	}
	return nil
}

// readOffset follows the u32 offset at position at.
func readOffset(b []byte, at int) (int, bool) {
	if at < 0 || at+4 > len(b) {
		return 0, false
	}
	to := int64(at) + int64(binary.LittleEndian.Uint32(b[at:]))
	return int(to), to+4 <= int64(len(b))
}

// tableField is the position of field i of the flatbuffer table at position at, 0 if the table does not have it.
func tableField(b []byte, at, i int) (int, error) {
	bad := errors.New("damaged message metadata")
	if at < 0 || at+4 > len(b) {
		return 0, bad
	}
	vtable := int64(at) - int64(int32(binary.LittleEndian.Uint32(b[at:])))
	if vtable < 0 || vtable+4 > int64(len(b)) {
		return 0, bad
	}
	v := b[vtable:]
	size := int(binary.LittleEndian.Uint16(v))
	if size > len(v) {
		return 0, bad
	}
	slot := 4 + 2*i
	if slot+2 > size {
		return 0, nil
	}
	off := int(binary.LittleEndian.Uint16(v[slot:]))
	if off == 0 {
		return 0, nil
	}
	if at+off+4 > len(b) {
		return 0, bad
	}
	return at + off, nil
}
