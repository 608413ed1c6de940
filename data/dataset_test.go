package data

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/ipc"
	"github.com/apache/arrow/go/v17/arrow/memory"

	"github.com/skein-ml/skein/internal/vfs"
)

// smallSet writes n packs of seqLen tokens to a new data set, perFile records in each file, and gives its folder.
func smallSet(t testing.TB, fsys vfs.FS, seqLen, n, perFile int) (string, []pack) {
	t.Helper()
	must(t, fsys.MkdirAll("/set"))
	m := &Manifest{SequenceLength: seqLen, TooLong: Split, Split: trainName, Vocab: 1000}
	w := newWriter(fsys, "/set", m, memory.DefaultAllocator)
	defer w.release()
	w.perFile = perFile
	var all []pack
	p := newPacker(seqLen, true, &m.Report, func(p *pack) error {
		all = append(all, pack{slices.Clone(p.tokens), slices.Clone(p.targets), slices.Clone(p.documents), p.padding})
		return w.append(p)
	})
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	for len(all) < n {
		must(t, p.add(doc(rng.IntN(200), 1+rng.IntN(seqLen), rng.IntN(3))))
	}
	must(t, w.finish())
	return "/set", all
}

func TestBatchReadsAnyPacksInAnyOrder(t *testing.T) {
	m := vfs.NewMem()
	dir, want := smallSet(t, m, 700, 500, 2) // 93 packs a record, so three files
	d, err := Open(m, dir)
	must(t, err)
	defer closing(t, d)
	if len(d.files) != 3 || d.Len() != 500 || d.SeqLen() != 700 {
		t.Fatalf("%d files, %d packs of %d", len(d.files), d.Len(), d.SeqLen())
	}
	d.capacity = 2
	rng := rand.New(rand.NewPCG(2, 2))
	var b Batch
	for range 200 {
		indices := make([]int64, 1+rng.IntN(5))
		for i := range indices {
			indices[i] = rng.Int64N(501) - 1
		}
		must(t, d.Batch(context.Background(), indices, &b))
		checkBatch(t, indices, want, &b)
	}
	if len(d.cached) > 2 || d.recent.Len() != len(d.cached) {
		t.Errorf("%d records are kept, %d in the list", len(d.cached), d.recent.Len())
	}
}

func checkBatch(t *testing.T, indices []int64, want []pack, b *Batch) {
	t.Helper()
	seqLen, targets := b.SeqLen, int64(0)
	var cu []int32
	for r, index := range indices {
		w := pack{make([]int32, seqLen), slices.Repeat([]int32{NoTarget}, seqLen), []int32{int32(seqLen)}, int32(seqLen)}
		if index >= 0 {
			w = want[index]
		}
		from, to := r*seqLen, (r+1)*seqLen
		if !slices.Equal(b.Tokens[from:to], w.tokens) || !slices.Equal(b.Targets[from:to], w.targets) || b.Padding[r] != w.padding {
			t.Fatalf("row %d of %v is not pack %d", r, indices, index)
		}
		at := int32(from)
		for _, n := range w.documents {
			cu, at = append(cu, at), at+n
		}
		for _, y := range w.targets {
			if y >= 0 {
				targets++
			}
		}
	}
	cu = append(cu, int32(len(indices)*seqLen))
	if b.Rows != len(indices) || len(b.Tokens) != b.Rows*seqLen || len(b.Targets) != b.Rows*seqLen || !slices.Equal(b.CuDocs, cu) || b.TargetCount != targets {
		t.Fatalf("batch of %v: %d rows, documents %v (want %v), %d targets (want %d)", indices, b.Rows, b.CuDocs, cu, b.TargetCount, targets)
	}
}

func TestBatchMayBeCalledFromSeveralGoroutines(t *testing.T) {
	m := vfs.NewMem()
	dir, want := smallSet(t, m, 64, 1000, 100)
	d, err := Open(m, dir)
	must(t, err)
	defer closing(t, d)
	d.capacity = 1
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			var b Batch
			for i := int64(g); i < 1000; i += 17 {
				if err := d.Batch(context.Background(), []int64{i}, &b); err != nil || !slices.Equal(b.Tokens, want[i].tokens) {
					t.Errorf("pack %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestASteadyBatchAllocatesNothing(t *testing.T) {
	m := vfs.NewMem()
	dir, _ := smallSet(t, m, 64, 600, 100)
	d, err := Open(m, dir)
	must(t, err)
	defer closing(t, d)
	var b Batch
	ctx, indices := context.Background(), []int64{0, 0, 0, 0}
	next := func() {
		for i := range indices {
			indices[i] = (indices[i] + 101 + int64(i)) % 600
		}
		if err := d.Batch(ctx, indices, &b); err != nil {
			t.Fatal(err)
		}
	}
	for range 600 {
		next() // until the slices have grown to the most documents
	}
	if n := testing.AllocsPerRun(100, next); n != 0 {
		t.Errorf("%v allocations a batch from cached records", n)
	}
	// Arrow makes some hundred small objects for each record that is decoded, but no new buffers.
	d.capacity = 1
	bytesPerRun := testing.Benchmark(func(bm *testing.B) {
		bm.ReportAllocs()
		for bm.Loop() {
			next()
		}
	}).AllocedBytesPerOp()
	if record := int64(4 * 256 * 64 * 8); bytesPerRun > record/4 {
		t.Errorf("%d bytes allocated a batch that decodes four records of %d bytes", bytesPerRun, record/4)
	}
}

func TestBatchSaysWhatItCannotRead(t *testing.T) {
	m := vfs.NewMem()
	dir, _ := smallSet(t, m, 64, 10, 100)
	d, err := Open(m, dir)
	must(t, err)
	var b Batch
	wantError(t, d.Batch(context.Background(), []int64{10}, &b), "pack 10 of 10")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := d.Batch(ctx, []int64{1}, &b); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	must(t, d.Close())
	must(t, d.Close())
	wantError(t, d.Batch(context.Background(), []int64{1}, &b), "closed")
}

func TestADatasetGivesAllArrowMemoryBack(t *testing.T) {
	fsys := vfs.NewMem()
	dir, _ := smallSet(t, fsys, 64, 2000, 100)
	m, err := ReadManifest(fsys, dir)
	must(t, err)
	mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
	d, err := open(fsys, dir, m, mem, verifyFile)
	must(t, err)
	d.capacity = 3
	var b Batch
	for i := int64(0); i < 2000; i += 37 {
		must(t, d.Batch(context.Background(), []int64{i, 1999 - i}, &b))
	}
	must(t, d.Close())
	mem.AssertSize(t, 0)
}

func TestDamageIsFoundWhereverItIs(t *testing.T) {
	clean := vfs.NewMem()
	dir, _ := smallSet(t, clean, 64, 20, 100)
	for _, name := range []string{"manifest.json", "packs-00000.arrow"} {
		path := filepath.Join(dir, name)
		good, err := vfs.ReadFile(clean, path, 1<<20)
		must(t, err)
		damage := map[string][]byte{"truncated": good[:len(good)-1], "empty": {}, "longer": append(slices.Clone(good), 0)}
		for i := 0; i < len(good); i += 1 + len(good)/97 {
			b := slices.Clone(good)
			b[i] ^= 0x11
			damage[string(rune('0'+i%10))+" flipped"] = b
		}
		for what, b := range damage {
			must(t, vfs.WriteFile(clean, path, b))
			_, err := Open(clean, dir)
			if err == nil {
				t.Fatalf("%s, %s: opened", name, what)
			}
			wantError(t, err, "/set")
		}
		must(t, vfs.WriteFile(clean, path, good))
		must(t, clean.Rename(path, path+".away"))
		_, err = Open(clean, dir)
		wantError(t, err, name)
		must(t, clean.Rename(path+".away", path))
	}
}

func TestDamageAfterOpeningStopsTheReaderWithTheFilesName(t *testing.T) {
	m := vfs.NewMem()
	dir, _ := smallSet(t, m, 64, 600, 100)
	d, err := Open(m, dir)
	must(t, err)
	defer closing(t, d)
	name := filepath.Join(dir, "packs-00000.arrow")
	f, err := m.OpenReadWrite(name)
	must(t, err)
	place := d.records[1]
	found := 0
	var b, was Batch
	must(t, d.Batch(context.Background(), []int64{256}, &was))
	d.evict(d.recent.Back())
	for at := place.offset; at < place.offset+place.bytes; at += 97 {
		one := []byte{0}
		_, err := f.ReadAt(one, at)
		must(t, err)
		_, err = f.WriteAt([]byte{one[0] ^ 0x40}, at)
		must(t, err)
		must(t, d.Batch(context.Background(), []int64{255}, &b)) // in record 0
		if err := d.Batch(context.Background(), []int64{256}, &b); err != nil {
			wantError(t, err, "packs-00000.arrow, record 1")
			found++
		} else if !reflect.DeepEqual(b, was) { // alignment, and what Arrow does not look at
			t.Errorf("byte %d of the record: other data and no error", at-place.offset)
		}
		for d.recent.Len() > 0 {
			d.evict(d.recent.Back())
		}
		_, err = f.WriteAt(one, at)
		must(t, err)
	}
	if found < 100 {
		t.Errorf("damage was found %d times", found)
	}
	must(t, f.Close())
}

// hostileManifest changes a good manifest, gives it a checksum that is right, and reads it.
func hostileManifest(t *testing.T, good []byte, change func(m *Manifest)) error {
	t.Helper()
	m, err := decodeManifest(good)
	must(t, err)
	change(m)
	b, err := m.encode()
	must(t, err)
	_, err = decodeManifest(b)
	return err
}

func TestAManifestIsHeldToItsInvariants(t *testing.T) {
	fsys := vfs.NewMem()
	dir, _ := smallSet(t, fsys, 64, 600, 2)
	good, err := vfs.ReadFile(fsys, filepath.Join(dir, manifestName), 1<<20)
	must(t, err)
	for want, change := range map[string]func(m *Manifest){
		"not the manifest":    func(m *Manifest) { m.Magic = "x" },
		"version 2":           func(m *Manifest) { m.Version = 2 },
		"sequence length 0":   func(m *Manifest) { m.SequenceLength = 0 },
		"sequence length 209": func(m *Manifest) { m.SequenceLength = 2097152 },
		"packs a record":      func(m *Manifest) { m.RecordPacks = 1 << 30 },
		"vocabulary 0":        func(m *Manifest) { m.Vocab = 0 },
		"0 packs":             func(m *Manifest) { m.Report.Packs = 0 },
		"records for":         func(m *Manifest) { m.Report.Packs *= 2 },
		"content hash":        func(m *Manifest) { m.ContentHash = strings.Repeat("0", 64) },
		"file name":           func(m *Manifest) { m.Files[0].Name = "../set/packs-00000.arrow" },
		`file name ".."`:      func(m *Manifest) { m.Files[0].Name = ".." },
		"record hash":         func(m *Manifest) { m.Files[0].Records[0].Content = "xyz" },
		"record at -8":        func(m *Manifest) { m.Files[0].Records[0].Offset = -8 },
		"of 4 bytes":          func(m *Manifest) { m.Files[0].Records[0].Bytes = 4 },
		"of 1099511627776":    func(m *Manifest) { m.Files[0].Records[0].Bytes, m.Files[0].Bytes = 1<<40, 1<<50 },
		"record at 922":       func(m *Manifest) { m.Files[0].Records[1].Offset = 1<<63 - 10 },
	} {
		wantError(t, hostileManifest(t, good, change), want)
	}
	_, err = decodeManifest(bytes.Replace(good, []byte(`"magic"`), []byte(`"extra": 1, "magic"`), 1))
	wantError(t, err, "extra")
	_, err = decodeManifest(append([]byte(" "), good...))
	wantError(t, err, "checksum")
}

// messageOf is a record as an encapsulated message, as our files hold it.
func messageOf(t testing.TB, rec arrow.Record, opts ...ipc.Option) []byte {
	t.Helper()
	fsys := vfs.NewMem()
	f, err := fsys.Create("/f")
	must(t, err)
	defer f.Close()
	w, err := ipc.NewFileWriter(f, append(opts, ipc.WithSchema(rec.Schema()))...)
	must(t, err)
	must(t, w.Write(rec))
	must(t, w.Close())
	b, err := vfs.ReadFile(fsys, "/f", 1<<20)
	must(t, err)
	head := 16 + int(b[12]) + int(b[13])<<8
	return b[head:]
}

// goodRecord is a record of two packs of eight tokens.
func goodRecord(t testing.TB) arrow.Record {
	packs, _ := packAll(t, 8, true, Split, doc(10, 3, 1), doc(20, 4, 2), doc(30, 6, 2))
	b := newRecordBuilder(memory.DefaultAllocator, packSchema(8, arrow.Metadata{}))
	defer b.release()
	for i := range packs {
		b.append(&packs[i])
	}
	return b.record()
}

func decodeOne(t testing.TB, message []byte) (packs, error) {
	t.Helper()
	d, err := newRecordDecoder(memory.DefaultAllocator, 8, 1000, 1<<16)
	must(t, err)
	defer d.close()
	rec, p, err := d.decode(message, 2)
	if err == nil {
		p.tokens, p.targets, p.documents = slices.Clone(p.tokens), slices.Clone(p.targets), slices.Clone(p.documents)
		rec.Release()
	}
	return p, err
}

func TestARecordIsCheckedNumberByNumber(t *testing.T) {
	rec := goodRecord(t)
	p, err := decodeOne(t, messageOf(t, rec))
	must(t, err)
	if !slices.Equal(p.documents, []int32{3, 4, 1, 6, 2}) {
		t.Fatalf("documents %v", p.documents)
	}
	for want, change := range map[string]func(p *packs){
		"token -1":          func(p *packs) { p.tokens[0] = -1 },
		"token 1000":        func(p *packs) { p.tokens[15] = 1000 },
		"target 7":          func(p *packs) { p.targets[0] = 7 },
		"target -1":         func(p *packs) { p.targets[0] = -1 },
		"last token":        func(p *packs) { p.targets[2] = 20 },
		"lengths [0 4 1]":   func(p *packs) { p.documents[0] = 0 },
		"lengths [-3 4 1]":  func(p *packs) { p.documents[0] = -3 },
		"lengths [3 3 1]":   func(p *packs) { p.documents[1], p.targets[5] = 3, NoTarget },
		"lengths [3 4 9]":   func(p *packs) { p.documents[2] = 9 },
		"padding 2":         func(p *packs) { p.padding[0] = 2 },
		"documents 0 to 9":  func(p *packs) { p.offsets[1] = 9 },
		"documents 3 to 3":  func(p *packs) { p.offsets[2] = 3 },
		"documents -1 to 3": func(p *packs) { p.offsets[0] = -1 },
		"target 0 of row 6": func(p *packs) { p.targets[14] = 0 }, // in the padding
	} {
		rec := goodRecord(t)
		p, err := viewRecord(rec, 2, 8, 1000)
		must(t, err)
		change(&p)
		wantError(t, p.check(1000), want)
		rec.Release()
	}
	rec.Release()
}

func TestForeignRecordsAreRefused(t *testing.T) {
	rec := goodRecord(t)
	defer rec.Release()
	good := messageOf(t, rec)
	_, err := decodeOne(t, messageOf(t, rec, ipc.WithZstd()))
	wantError(t, err, "compressed")
	_, err = decodeOne(t, nil)
	wantError(t, err, "no Arrow message")
	_, err = decodeOne(t, good[:100])
	wantError(t, err, "message")
	other := array.NewRecord(arrow.NewSchema([]arrow.Field{{Name: "tokens", Type: arrow.PrimitiveTypes.Int32}}, nil),
		[]arrow.Array{rec.Column(columnPadding)}, 2)
	defer other.Release()
	_, err = decodeOne(t, messageOf(t, other))
	wantError(t, err, "damaged record")
	d, err := newRecordDecoder(memory.DefaultAllocator, 8, 1000, 16)
	must(t, err)
	defer d.close()
	_, _, err = d.decode(good, 2)
	wantError(t, err, "more memory than its size allows")
	_, _, err = d.decode(good, 3)
	if err == nil {
		t.Error("a record of two packs passed for three")
	}
}

func TestArrowsOwnReaderReadsOurFiles(t *testing.T) {
	fsys := vfs.NewMem()
	dir, want := smallSet(t, fsys, 64, 600, 100)
	f, err := fsys.Open(filepath.Join(dir, "packs-00000.arrow"))
	must(t, err)
	defer f.Close()
	r, err := ipc.NewFileReader(f)
	must(t, err)
	defer closing(t, r)
	if version, ok := r.Schema().Metadata().GetValue("skein.dataset.version"); !ok || version != "1" {
		t.Errorf("schema metadata %v", r.Schema().Metadata())
	}
	n := 0
	for i := range r.NumRecords() {
		rec, err := r.Record(i)
		must(t, err)
		p, err := viewRecord(rec, int(rec.NumRows()), 64, 1000)
		must(t, err)
		for j := range p.rows {
			if tokens, targets := p.row(j); !slices.Equal(tokens, want[n].tokens) || !slices.Equal(targets, want[n].targets) {
				t.Fatalf("pack %d differs", n)
			}
			n++
		}
	}
	if n != len(want) {
		t.Errorf("%d packs, want %d", n, len(want))
	}
}

func FuzzManifest(f *testing.F) {
	fsys := vfs.NewMem()
	dir, _ := smallSet(f, fsys, 64, 10, 100)
	good, err := vfs.ReadFile(fsys, filepath.Join(dir, manifestName), 1<<20)
	must(f, err)
	f.Add(good)
	f.Add([]byte(`{"magic":"skein dataset","version":1}`))
	f.Add([]byte(`{"magic":"skein dataset","version":1,"sequenceLength":64,"recordPacks":256,"vocab":9,"report":{"packs":1},"files":[{"name":"a","bytes":9,"records":[{"offset":0,"bytes":8}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := decodeManifest(b); err == nil && m.check() != nil {
			t.Error("accepted a manifest that does not pass its own check")
		}
		// The checksum keeps mutants out: hold what can be parsed to the invariants without it.
		var m Manifest
		if json.Unmarshal(b, &m) != nil || m.check() != nil {
			return
		}
		for _, mf := range m.Files {
			for _, r := range mf.Records {
				if r.Offset < 0 || r.Bytes < 0 || r.Bytes > m.maxRecordBytes() || r.Offset+r.Bytes > mf.Bytes {
					t.Errorf("record %+v of %+v", r, mf)
				}
			}
		}
		if again, err := m.encode(); err != nil {
			t.Error(err)
		} else if back, err := decodeManifest(again); m.Magic == manifestMagic && m.Version == manifestVersion && (err != nil || !reflect.DeepEqual(back, &m)) {
			t.Errorf("encode and decode differ: %v", err)
		}
	})
}

func FuzzRecord(f *testing.F) {
	rec := goodRecord(f)
	f.Add(messageOf(f, rec))
	f.Add(messageOf(f, rec, ipc.WithZstd()))
	rec.Release()
	d, err := newRecordDecoder(memory.DefaultAllocator, 8, 1000, 1<<16)
	must(f, err)
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, p, err := d.decode(b, 2)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error of several lines: %q", err)
			}
			return
		}
		defer rec.Release()
		if err := p.check(1000); err != nil {
			t.Errorf("decoded a record that fails its check: %v", err)
		}
		p.contentHash(nil)
	})
}
