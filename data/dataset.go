package data

import (
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/memory"

	"github.com/skein-ml/skein/internal/vfs"
)

// cacheRecords is how many decoded records a Dataset keeps: some megabytes. A file read in order is decoded once; a shuffled
// one much larger than this decodes a record for every pack, at about a millisecond each.
const cacheRecords = 16

// Dataset is an open data set. Its methods may be called concurrently.
type Dataset struct {
	dir      string
	m        *Manifest
	files    []vfs.File
	records  []recordPlace
	capacity int

	mu      sync.Mutex
	decoder *recordDecoder
	scratch []byte     // a record's message
	hashBuf []byte     // contentHash's
	recent  *list.List // of *cached, most recent first
	cached  map[int64]*list.Element
	closed  bool
}

// recordPlace says where a record lies.
type recordPlace struct {
	file          int
	offset, bytes int64
	content       string
}

// cached is a decoded record.
type cached struct {
	index int64
	rec   arrow.Record
	packs packs
}

// Open opens the data set in a folder for reading. The manifest and every file are held against their hashes first, so that
// damage shows before training starts; each record is again when it is read, so that damage done later shows too.
func Open(fsys vfs.FS, dir string) (*Dataset, error) {
	m, err := ReadManifest(fsys, dir)
	if err != nil {
		return nil, err
	}
	return open(fsys, dir, m, memory.DefaultAllocator, verifyFile)
}

// OpenUnread is Open without the hashes of the files, which takes no time: for those who serve records to readers that hold
// each against its hash.
func OpenUnread(fsys vfs.FS, dir string) (*Dataset, error) {
	m, err := ReadManifest(fsys, dir)
	if err != nil {
		return nil, err
	}
	return open(fsys, dir, m, memory.DefaultAllocator, verifySize)
}

func open(fsys vfs.FS, dir string, m *Manifest, mem memory.Allocator, verify func(vfs.File, ManifestFile) error) (_ *Dataset, err error) {
	d := &Dataset{dir: dir, m: m, capacity: cacheRecords, recent: list.New(), cached: map[int64]*list.Element{}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("data set %s: %w", dir, err), d.Close())
		}
	}()
	for i, mf := range m.Files {
		f, err := openFile(fsys, filepath.Join(dir, mf.Name), mf, verify)
		if err != nil {
			return nil, err
		}
		d.files = append(d.files, f)
		for _, r := range mf.Records {
			d.records = append(d.records, recordPlace{i, r.Offset, r.Bytes, r.Content})
		}
	}
	d.decoder, err = newRecordDecoder(mem, m.SequenceLength, m.Vocab, int(m.maxRecordBytes()))
	if err != nil {
		return nil, err
	}
	return d, nil
}

// openFile opens a file of packs and compares it with the manifest.
func openFile(fsys vfs.FS, name string, want ManifestFile, verify func(vfs.File, ManifestFile) error) (vfs.File, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	if err := verify(f, want); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func verifySize(f vfs.File, want ManifestFile) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != want.Bytes {
		return fmt.Errorf("%s has %d bytes, its manifest says %d; prepare the data again", want.Name, info.Size(), want.Bytes)
	}
	return nil
}

func verifyFile(f vfs.File, want ManifestFile) error {
	if err := verifySize(f, want); err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("read %s: %w", want.Name, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want.SHA256 {
		return fmt.Errorf("%s is damaged (sha256 %s, its manifest says %s); prepare the data again", want.Name, got, want.SHA256)
	}
	return nil
}

// Manifest describes the data set. It must not be changed.
func (d *Dataset) Manifest() *Manifest { return d.m }

// Len is the number of packs.
func (d *Dataset) Len() int64 { return d.m.Report.Packs }

// SeqLen is T.
func (d *Dataset) SeqLen() int { return d.m.SequenceLength }

// Batch is some packs as a model reads them. Its slices are reused by the next call that fills the same Batch.
type Batch struct {
	Rows, SeqLen int
	Tokens       []int32 // [Rows·T]
	Targets      []int32 // [Rows·T], the token to predict at each row, NoTarget where there is none
	// CuDocs cuts the rows into documents: document i is rows [CuDocs[i], CuDocs[i+1]). No document crosses a pack. Positions
	// count from 0 in each. A pack's padding is its last document.
	CuDocs      []int32
	Padding     []int32 // [Rows] tokens of padding at each pack's end
	TargetCount int64   // how many of Targets are not NoTarget
}

// Batch fills dst with the packs of these indices in [0, Len()), in their order. An index below zero stands for a place that no sample is
// left for (shard.Filler): a pack of padding alone, without targets. On an error dst holds nothing of use.
func (d *Dataset) Batch(ctx context.Context, indices []int64, dst *Batch) error {
	seqLen := d.m.SequenceLength
	dst.Rows, dst.SeqLen, dst.TargetCount = len(indices), seqLen, 0
	dst.Tokens, dst.Targets = dst.Tokens[:0], dst.Targets[:0]
	dst.Padding, dst.CuDocs = dst.Padding[:0], append(dst.CuDocs[:0], 0)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, index := range indices {
		if err := ctx.Err(); err != nil {
			return err
		}
		if index < 0 {
			dst.appendFiller()
			continue
		}
		if index >= d.m.Report.Packs {
			return fmt.Errorf("data set %s: pack %d of %d", d.dir, index, d.m.Report.Packs)
		}
		n := int64(d.m.RecordPacks)
		p, err := d.record(index / n)
		if err != nil {
			return err
		}
		dst.appendPack(p, int(index%n))
	}
	return nil
}

func (b *Batch) appendPack(p *packs, r int) {
	tokens, targets := p.row(r)
	b.Tokens = append(b.Tokens, tokens...)
	b.Targets = append(b.Targets, targets...)
	for _, y := range targets {
		if y != NoTarget {
			b.TargetCount++
		}
	}
	at := b.CuDocs[len(b.CuDocs)-1]
	for _, n := range p.lengths(r) {
		at += n
		b.CuDocs = append(b.CuDocs, at)
	}
	b.Padding = append(b.Padding, p.padding[r])
}

func (b *Batch) appendFiller() {
	for range b.SeqLen {
		b.Tokens = append(b.Tokens, padToken)
		b.Targets = append(b.Targets, NoTarget)
	}
	b.CuDocs = append(b.CuDocs, b.CuDocs[len(b.CuDocs)-1]+int32(b.SeqLen))
	b.Padding = append(b.Padding, int32(b.SeqLen))
}

// record gives a decoded record, which is valid until d.mu is released.
func (d *Dataset) record(i int64) (*packs, error) {
	if d.closed {
		return nil, fmt.Errorf("data set %s: it is closed", d.dir)
	}
	if e, ok := d.cached[i]; ok {
		d.recent.MoveToFront(e)
		return &e.Value.(*cached).packs, nil
	}
	if d.recent.Len() >= d.capacity {
		d.evict(d.recent.Back())
	}
	c, err := d.read(i)
	if err != nil {
		place := d.records[i]
		return nil, fmt.Errorf("data set %s: %s, record %d: %w; prepare the data again", d.dir, d.m.Files[place.file].Name, i, err)
	}
	d.cached[i] = d.recent.PushFront(c)
	return &c.packs, nil
}

// read reads and checks record i.
func (d *Dataset) read(i int64) (*cached, error) {
	place := d.records[i]
	if int64(cap(d.scratch)) < place.bytes {
		d.scratch = make([]byte, place.bytes)
	}
	b := d.scratch[:place.bytes]
	if _, err := d.files[place.file].ReadAt(b, place.offset); err != nil {
		return nil, err
	}
	n := int64(d.m.RecordPacks)
	rec, p, err := d.decoder.decode(b, int(min(n, d.m.Report.Packs-i*n)))
	if err != nil {
		return nil, err
	}
	var sum [sha256.Size]byte
	sum, d.hashBuf = p.contentHash(d.hashBuf)
	if hex.EncodeToString(sum[:]) != place.content {
		rec.Release()
		return nil, errors.New("its content is not what the manifest says")
	}
	return &cached{index: i, rec: rec, packs: p}, nil
}

func (d *Dataset) evict(e *list.Element) {
	c := d.recent.Remove(e).(*cached)
	delete(d.cached, c.index)
	c.rec.Release()
}

// Close closes the files and frees memory. Batches that were filled stay valid.
func (d *Dataset) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	for d.recent.Len() > 0 {
		d.evict(d.recent.Back())
	}
	if d.decoder != nil {
		d.decoder.close()
	}
	var err error
	for _, f := range d.files {
		err = errors.Join(err, f.Close())
	}
	return err
}
