package data

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
)

// maxSeqLen bounds T: far above what models of these families attend, and small enough for int32 arithmetic in a record.
const maxSeqLen = 1 << 20

// recordTokens is the size of a record batch: about half a megabyte, so that reading one pack of a shuffled order costs a
// read that the disk hardly notices. The number of packs in a record is a function of T alone, because the content hash is
// built of the records' hashes.
const recordTokens = 1 << 16

// recordPacks is how many packs every record holds, but for the last.
func recordPacks(seqLen int) int { return min(max(recordTokens/seqLen, 1), 256) }

// The columns of a record.
const (
	columnTokens = iota
	columnTargets
	columnDocuments
	columnPadding
)

// packSchema is the Arrow schema of the packs: no column has nulls.
func packSchema(seqLen int, meta arrow.Metadata) *arrow.Schema {
	row := arrow.FixedSizeListOfNonNullable(int32(seqLen), arrow.PrimitiveTypes.Int32)
	return arrow.NewSchema([]arrow.Field{
		columnTokens:    {Name: "tokens", Type: row},
		columnTargets:   {Name: "targets", Type: row},
		columnDocuments: {Name: "documents", Type: arrow.ListOfNonNullable(arrow.PrimitiveTypes.Int32)},
		columnPadding:   {Name: "padding", Type: arrow.PrimitiveTypes.Int32},
	}, &meta)
}

// recordBuilder collects packs into Arrow records.
type recordBuilder struct {
	b                  *array.RecordBuilder
	tokens, targets    *array.FixedSizeListBuilder
	tokenV, targetV    *array.Int32Builder
	documents          *array.ListBuilder
	documentV, padding *array.Int32Builder
	rows               int
}

func newRecordBuilder(mem memory.Allocator, schema *arrow.Schema) *recordBuilder {
	b := array.NewRecordBuilder(mem, schema)
	r := &recordBuilder{
		b:         b,
		tokens:    b.Field(columnTokens).(*array.FixedSizeListBuilder),
		targets:   b.Field(columnTargets).(*array.FixedSizeListBuilder),
		documents: b.Field(columnDocuments).(*array.ListBuilder),
		padding:   b.Field(columnPadding).(*array.Int32Builder),
	}
	r.tokenV = r.tokens.ValueBuilder().(*array.Int32Builder)
	r.targetV = r.targets.ValueBuilder().(*array.Int32Builder)
	r.documentV = r.documents.ValueBuilder().(*array.Int32Builder)
	return r
}

func (r *recordBuilder) append(p *pack) {
	r.tokens.Append(true)
	r.tokenV.AppendValues(p.tokens, nil)
	r.targets.Append(true)
	r.targetV.AppendValues(p.targets, nil)
	r.documents.Append(true)
	r.documentV.AppendValues(p.documents, nil)
	r.padding.Append(p.padding)
	r.rows++
}

// record takes what was collected; the caller releases it.
func (r *recordBuilder) record() arrow.Record {
	r.rows = 0
	return r.b.NewRecord()
}

func (r *recordBuilder) release() { r.b.Release() }

// packs is a record as slices. They belong to the record and live as long as it does.
type packs struct {
	rows, seqLen int
	tokens       []int32 // [rows·T]
	targets      []int32 // [rows·T]
	offsets      []int32 // [rows+1] into documents
	documents    []int32
	padding      []int32 // [rows]
}

// viewRecord takes a record apart and checks every number in it, so that nothing that is read from it can lie outside of what
// the model expects. It panics on records that are broken inside; decode recovers.
func viewRecord(rec arrow.Record, rows, seqLen int, vocab int32) (packs, error) {
	if rec.NumRows() != int64(rows) || rec.NumCols() != columnPadding+1 {
		return packs{}, fmt.Errorf("record has %d rows and %d columns, want %d and %d", rec.NumRows(), rec.NumCols(), rows, columnPadding+1)
	}
	for i, col := range rec.Columns() {
		if col.Len() != rows || col.NullN() != 0 || col.Data().Offset() != 0 {
			return packs{}, fmt.Errorf("column %s has %d rows, %d nulls, offset %d; want %d, 0, 0",
				rec.ColumnName(i), col.Len(), col.NullN(), col.Data().Offset(), rows)
		}
	}
	documents := rec.Column(columnDocuments).(*array.List)
	p := packs{
		rows: rows, seqLen: seqLen,
		tokens:    int32Values(rec.Column(columnTokens).(*array.FixedSizeList).ListValues()),
		targets:   int32Values(rec.Column(columnTargets).(*array.FixedSizeList).ListValues()),
		offsets:   documents.Offsets(),
		documents: int32Values(documents.ListValues()),
		padding:   int32Values(rec.Column(columnPadding)),
	}
	return p, p.check(vocab)
}

// int32Values are the values of an array without nulls, nil if it has some.
func int32Values(a arrow.Array) []int32 {
	if a.NullN() != 0 {
		return nil
	}
	return a.(*array.Int32).Int32Values()
}

// check holds the packs to their invariants.
func (p *packs) check(vocab int32) error {
	n := p.rows * p.seqLen
	if len(p.tokens) != n || len(p.targets) != n || len(p.padding) != p.rows || len(p.offsets) != p.rows+1 {
		return fmt.Errorf("record has %d tokens, %d targets, %d paddings, %d offsets for %d packs of %d",
			len(p.tokens), len(p.targets), len(p.padding), len(p.offsets), p.rows, p.seqLen)
	}
	for r := range p.rows {
		if err := p.checkRow(r, vocab); err != nil {
			return fmt.Errorf("pack %d of its record: %w", r, err)
		}
	}
	return nil
}

func (p *packs) checkRow(r int, vocab int32) error {
	from, to := p.offsets[r], p.offsets[r+1]
	if from < 0 || to <= from || int(to) > len(p.documents) {
		return fmt.Errorf("documents %d to %d of %d", from, to, len(p.documents))
	}
	tokens, targets := p.row(r)
	at := int64(0)
	for _, n := range p.documents[from:to] {
		if at += int64(n); n <= 0 || at > int64(p.seqLen) {
			return fmt.Errorf("document lengths %v do not cut %d tokens", clip(p.documents[from:to]), p.seqLen)
		}
		if targets[at-1] != NoTarget {
			return fmt.Errorf("the last token of a document has a target")
		}
	}
	last := p.documents[to-1]
	if at != int64(p.seqLen) || p.padding[r] != 0 && p.padding[r] != last {
		return fmt.Errorf("document lengths %v and padding %d do not cut %d tokens", clip(p.documents[from:to]), p.padding[r], p.seqLen)
	}
	for i, t := range tokens {
		if t < 0 || t >= vocab {
			return fmt.Errorf("token %d lies outside the vocabulary of %d", t, vocab)
		}
		if y := targets[i]; y != NoTarget && (i+1 == len(tokens) || y != tokens[i+1] || i >= p.seqLen-int(p.padding[r])) {
			return fmt.Errorf("target %d of row %d is not the token that follows", y, i)
		}
	}
	return nil
}

// clip keeps hostile lists from filling an error message.
func clip(v []int32) []int32 { return v[:min(len(v), 8)] }

// row is one pack's tokens and targets.
func (p *packs) row(r int) (tokens, targets []int32) {
	return p.tokens[r*p.seqLen : (r+1)*p.seqLen], p.targets[r*p.seqLen : (r+1)*p.seqLen]
}

// lengths are the documents of a pack.
func (p *packs) lengths(r int) []int32 { return p.documents[p.offsets[r]:p.offsets[r+1]] }

// contentHash hashes what the packs say, in a form that has nothing of Arrow in it:
//
//	SHA-256( "skein packs 1\n" | u32 rows | u32 T | for each pack: u32 padding, u32 documents, u32 × lengths, i32 × tokens, i32 × targets )
//
// all little-endian.
func (p *packs) contentHash(buf []byte) (sum [sha256.Size]byte, _ []byte) {
	h := sha256.New()
	le := binary.LittleEndian
	buf = append(buf[:0], "skein packs 1\n"...)
	buf = le.AppendUint32(buf, uint32(p.rows))
	buf = le.AppendUint32(buf, uint32(p.seqLen))
	for r := range p.rows {
		tokens, targets := p.row(r)
		buf = le.AppendUint32(buf, uint32(p.padding[r]))
		buf = le.AppendUint32(buf, uint32(len(p.lengths(r))))
		for _, v := range [][]int32{p.lengths(r), tokens, targets} {
			for _, x := range v {
				buf = le.AppendUint32(buf, uint32(x))
			}
		}
		h.Write(buf)
		buf = buf[:0]
	}
	h.Sum(sum[:0])
	return sum, buf
}
