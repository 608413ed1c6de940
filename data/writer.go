package data

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/ipc"
	"github.com/apache/arrow/go/v17/arrow/memory"

	"github.com/skein-ml/skein/internal/vfs"
)

// fileRecords is the number of records in every file but the last: files of about a gigabyte.
const fileRecords = 2048

// writer streams packs into the files of a data set. Its memory is one record, whatever the size of the data.
type writer struct {
	fsys    vfs.FS
	dir     string
	m       *Manifest
	mem     memory.Allocator
	schema  *arrow.Schema
	builder *recordBuilder
	file    *arrowFile // open one, or nil
	perFile int        // fileRecords, but in tests
	leaves  hash.Hash
	buf     []byte
}

// newWriter begins a data set in dir, which exists and is empty. m has its options; the writer adds files and hashes.
func newWriter(fsys vfs.FS, dir string, m *Manifest, mem memory.Allocator) *writer {
	m.Magic, m.Version, m.RecordPacks = manifestMagic, manifestVersion, recordPacks(m.SequenceLength)
	schema := packSchema(m.SequenceLength, arrow.NewMetadata(
		[]string{"skein.dataset.version", "skein.split", "skein.sequenceLength", "skein.tokenizer", "skein.template", "skein.vocab"},
		[]string{strconv.Itoa(manifestVersion), m.Split, strconv.Itoa(m.SequenceLength), m.Tokenizer, m.Template, strconv.Itoa(int(m.Vocab))}))
	return &writer{fsys: fsys, dir: dir, m: m, mem: mem, schema: schema, perFile: fileRecords,
		builder: newRecordBuilder(mem, schema), leaves: sha256.New()}
}

// append adds a pack.
func (w *writer) append(p *pack) error {
	w.builder.append(p)
	if w.builder.rows < w.m.RecordPacks {
		return nil
	}
	return w.flush()
}

// flush writes the record under way.
func (w *writer) flush() error {
	rows := w.builder.rows
	if rows == 0 {
		return nil
	}
	rec := w.builder.record()
	defer rec.Release()
	if w.file == nil {
		var err error
		name := fmt.Sprintf("packs-%05d.arrow", len(w.m.Files))
		if w.file, err = createArrowFile(w.fsys, filepath.Join(w.dir, name), w.schema, w.mem); err != nil {
			return err
		}
		w.m.Files = append(w.m.Files, ManifestFile{Name: name})
	}
	p, err := viewRecord(rec, rows, w.m.SequenceLength, w.m.Vocab)
	if err != nil {
		return fmt.Errorf("data: a record that was just made is wrong: %w", err)
	}
	var sum [sha256.Size]byte
	sum, w.buf = p.contentHash(w.buf)
	w.leaves.Write(sum[:])
	offset, size, err := w.file.write(rec)
	if err != nil {
		return err
	}
	f := &w.m.Files[len(w.m.Files)-1]
	f.Records = append(f.Records, ManifestRecord{Offset: offset, Bytes: size, Content: hex.EncodeToString(sum[:])})
	if len(f.Records) == w.perFile {
		return w.closeFile()
	}
	return nil
}

func (w *writer) closeFile() error {
	if w.file == nil {
		return nil
	}
	f := &w.m.Files[len(w.m.Files)-1]
	var err error
	f.Bytes, f.SHA256, err = w.file.finish()
	w.file = nil
	return err
}

// finish writes what is left, then the manifest.
func (w *writer) finish() error {
	if err := w.flush(); err != nil {
		return err
	}
	if err := w.closeFile(); err != nil {
		return err
	}
	w.m.ContentHash = rootHash(w.m.SequenceLength, w.m.Report.Packs, w.leaves.Sum(nil))
	b, err := w.m.encode()
	if err != nil {
		return err
	}
	if err := w.m.check(); err != nil {
		return fmt.Errorf("data: the data set that was just made is wrong: %w", err)
	}
	return vfs.WriteFile(w.fsys, filepath.Join(w.dir, manifestName), b)
}

// release frees memory and the open file; the caller removes the folder unless finish succeeded.
func (w *writer) release() {
	w.builder.release()
	if w.file != nil {
		w.file.f.Close() // the folder is being thrown away
		w.file = nil
	}
}

// arrowFile writes one Arrow IPC file, hashing it on the way and noting where messages lie.
type arrowFile struct {
	f   vfs.File
	w   *ipc.FileWriter
	out *countingWriter
}

func createArrowFile(fsys vfs.FS, name string, schema *arrow.Schema, mem memory.Allocator) (*arrowFile, error) {
	f, err := fsys.Create(name)
	if err != nil {
		return nil, fmt.Errorf("data: %w", err)
	}
	a := &arrowFile{f: f, out: &countingWriter{w: bufio.NewWriterSize(f, 1<<20), sum: sha256.New()}}
	if a.w, err = ipc.NewFileWriter(a.out, ipc.WithSchema(schema), ipc.WithAllocator(mem)); err != nil {
		f.Close()
		return nil, fmt.Errorf("data: %s: %w", name, err)
	}
	return a, nil
}

// write appends a record and says where its message lies.
func (a *arrowFile) write(rec arrow.Record) (offset, size int64, err error) {
	offset = a.out.n
	if err := a.w.Write(rec); err != nil {
		return 0, 0, a.fail(err)
	}
	if offset == 0 {
		// The first record brought the file's head along: magic, then the schema's message, 8 bytes and its length, no body.
		offset = 16 + int64(binary.LittleEndian.Uint32(a.out.head[12:]))
	}
	return offset, a.out.n - offset, nil
}

// fail says which file could not be written, unless err does.
func (a *arrowFile) fail(err error) error {
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("data: %w", err)
	}
	return fmt.Errorf("data: write %s: %w", a.f.Name(), err)
}

// finish writes the footer, syncs and closes.
func (a *arrowFile) finish() (size int64, sum string, err error) {
	err = a.w.Close()
	if err == nil {
		err = a.out.w.Flush()
	}
	if err == nil {
		err = a.f.Sync()
	}
	if closeErr := a.f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return 0, "", a.fail(err)
	}
	return a.out.n, hex.EncodeToString(a.out.sum.Sum(nil)), nil
}

// countingWriter counts and hashes what passes, and keeps the first bytes.
type countingWriter struct {
	w    *bufio.Writer
	sum  hash.Hash
	n    int64
	head [16]byte
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if c.n < int64(len(c.head)) {
		copy(c.head[c.n:], p[:n])
	}
	c.n += int64(n)
	c.sum.Write(p[:n])
	return n, err
}

// Seek tells the position, which is all that Arrow's writer asks for.
func (c *countingWriter) Seek(offset int64, whence int) (int64, error) {
	if offset != 0 || whence != io.SeekCurrent {
		return 0, errors.New("data: an Arrow file is written front to back")
	}
	return c.n, nil
}
