package data

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/memory"
)

// ErrVocab says that a genuine record holds a token that the reader's model does not have.
var ErrVocab = errors.New("token outside the vocabulary")

// Index is what a content hash stands for: the length of the packs, their number, and the hash of every record. Whoever
// holds it may take records from anyone and know that they are the right ones. It must not be changed.
type Index struct {
	SeqLen      int   // T
	Packs       int64 // in the data set
	ContentHash string
	leaves      []byte // the records' hashes, 32 bytes each
}

// NewIndex makes an index of what somebody else says about the data set of a content hash, and refuses it unless all of it
// follows from the hash.
func NewIndex(contentHash string, seqLen int, packs int64, leaves []byte) (*Index, error) {
	if seqLen < 2 || seqLen > maxSeqLen || packs <= 0 || packs > 1<<40 {
		return nil, fmt.Errorf("index of %d packs of %d tokens", packs, seqLen)
	}
	x := &Index{SeqLen: seqLen, Packs: packs, ContentHash: contentHash, leaves: leaves}
	if int64(len(leaves)) != x.Records()*sha256.Size {
		return nil, fmt.Errorf("index of %d packs has %d bytes of hashes, want %d", packs, len(leaves), x.Records()*sha256.Size)
	}
	sum := sha256.Sum256(leaves)
	if got := rootHash(seqLen, packs, sum[:]); got != contentHash {
		return nil, fmt.Errorf("index of another data set: its content hash is %s", got)
	}
	return x, nil
}

// Index is the index of the manifest's data set.
func (m *Manifest) Index() *Index {
	x := &Index{SeqLen: m.SequenceLength, Packs: m.Report.Packs, ContentHash: m.ContentHash}
	for _, f := range m.Files {
		for _, r := range f.Records {
			leaf, _ := hex.DecodeString(r.Content) // check has seen to it
			x.leaves = append(x.leaves, leaf...)
		}
	}
	return x
}

// RecordPacks is how many packs every record holds, but for the last.
func (x *Index) RecordPacks() int { return recordPacks(x.SeqLen) }

// Records is the number of records.
func (x *Index) Records() int64 {
	n := int64(x.RecordPacks())
	return (x.Packs + n - 1) / n
}

// Rows is the number of packs in record i.
func (x *Index) Rows(i int64) int {
	n := int64(x.RecordPacks())
	return int(min(n, x.Packs-i*n))
}

// RecordBytesMax is the most that a record's message takes.
func (x *Index) RecordBytesMax() int64 {
	return (&Manifest{SequenceLength: x.SeqLen, RecordPacks: x.RecordPacks()}).maxRecordBytes()
}

// Leaves are the records' hashes, 32 bytes each.
func (x *Index) Leaves() []byte { return x.leaves }

// Leaf is the hash of record i.
func (x *Index) Leaf(i int64) []byte { return x.leaves[i*sha256.Size : (i+1)*sha256.Size] }

// Schema is the Arrow schema of the records.
func (x *Index) Schema() *arrow.Schema { return packSchema(x.SeqLen, arrow.Metadata{}) }

// ReadRecord reads the Arrow message of record i as it lies in its file: metadata and body. Both lie in the returned buffer,
// which is buf where that is large enough. The message is not looked into: its reader has to (RecordReader).
func (d *Dataset) ReadRecord(i int64, buf []byte) (meta, body, _ []byte, err error) {
	if i < 0 || i >= int64(len(d.records)) {
		return nil, nil, buf, fmt.Errorf("data set %s: record %d of %d", d.dir, i, len(d.records))
	}
	place := d.records[i]
	buf = slices.Grow(buf[:0], int(place.bytes))[:place.bytes]
	if err = d.readAt(place, buf); err == nil {
		meta, body, err = splitMessage(buf)
	}
	if err != nil {
		return nil, nil, buf, fmt.Errorf("data set %s: %s, record %d: %w; prepare the data again", d.dir, d.m.Files[place.file].Name, i, err)
	}
	return meta, body, buf, nil
}

// readAt reads a record's message, several callers at a time.
func (d *Dataset) readAt(place recordPlace, b []byte) error {
	d.mu.Lock()
	closed := d.closed
	d.mu.Unlock()
	if closed {
		return errors.New("it is closed")
	}
	_, err := d.files[place.file].ReadAt(b, place.offset)
	return err
}

// RecordReader decodes record messages that come from somebody else and holds them against the index. Not safe for
// concurrent use.
type RecordReader struct {
	x       *Index
	vocab   int32
	decoder *recordDecoder
	hashBuf []byte
}

// NewRecordReader makes a reader for the records of an index. Tokens must lie in [0, vocab): the content hash does not cover
// a vocabulary, so it is the reader's own. 0: any.
func NewRecordReader(x *Index, vocab int32) (*RecordReader, error) {
	// Tokens are compared with the vocabulary after the hash, so that a wrong vocabulary is not taken for a damaged record.
	d, err := newRecordDecoder(memory.DefaultAllocator, x.SeqLen, math.MaxInt32, int(x.RecordBytesMax()))
	if err != nil {
		return nil, err
	}
	return &RecordReader{x: x, vocab: vocab, decoder: d}, nil
}

// Read decodes the message of record i and checks every number and the hash. The message is not needed afterwards. An error
// that is not ErrVocab says that this is not the record. It never panics.
func (r *RecordReader) Read(i int64, meta, body []byte) (*Record, error) {
	if total := int64(len(meta)) + int64(len(body)); total > r.x.RecordBytesMax() {
		return nil, fmt.Errorf("record %d: message of %d bytes, at most %d are possible", i, total, r.x.RecordBytesMax())
	}
	rec, p, err := r.decoder.decodeMessage(meta, body, r.x.Rows(i))
	if err != nil {
		return nil, fmt.Errorf("record %d: %w", i, err)
	}
	defer rec.Release()
	var sum [sha256.Size]byte
	if sum, r.hashBuf = p.contentHash(r.hashBuf); string(sum[:]) != string(r.x.Leaf(i)) {
		return nil, fmt.Errorf("record %d: its content hash is %.16x…, want %.16x…", i, sum, r.x.Leaf(i))
	}
	if r.vocab > 0 {
		for _, t := range p.tokens {
			if t >= r.vocab {
				return nil, fmt.Errorf("record %d: %w: %d of %d; the data was prepared for another model", i, ErrVocab, t, r.vocab)
			}
		}
	}
	return &Record{p.clone()}, nil
}

// Close frees memory. Records that were read stay valid.
func (r *RecordReader) Close() { r.decoder.close() }

// Record is some packs that are known to be genuine. It never changes.
type Record struct{ packs packs }

// Bytes is the memory that the record takes.
func (r *Record) Bytes() int64 {
	p := &r.packs
	return 4 * int64(len(p.tokens)+len(p.targets)+len(p.offsets)+len(p.documents)+len(p.padding))
}

// Reset empties the batch for packs of seqLen tokens; Rows counts what is appended then.
func (b *Batch) Reset(seqLen int) {
	b.Rows, b.SeqLen, b.TargetCount = 0, seqLen, 0
	b.Tokens, b.Targets = b.Tokens[:0], b.Targets[:0]
	b.Padding, b.CuDocs = b.Padding[:0], append(b.CuDocs[:0], 0)
}

// Append adds a row of a record to the batch, which was reset for packs of the same length.
func (b *Batch) Append(r *Record, row int) {
	b.Rows++
	b.appendPack(&r.packs, row)
}

// AppendFiller adds a row of padding without targets, as Dataset.Batch gives for an index below zero.
func (b *Batch) AppendFiller() {
	b.Rows++
	b.appendFiller()
}

// clone copies the packs out of the memory of an Arrow record.
func (p *packs) clone() packs {
	c := *p
	parts := []*[]int32{&c.tokens, &c.targets, &c.offsets, &c.documents, &c.padding}
	n := 0
	for _, v := range parts {
		n += len(*v)
	}
	all := make([]int32, 0, n) // one allocation, one life
	for _, v := range parts {
		from := len(all)
		all = append(all, *v...)
		*v = all[from:len(all):len(all)]
	}
	return c
}
