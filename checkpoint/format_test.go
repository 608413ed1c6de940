package checkpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
)

func testManifest(t testing.TB) Manifest {
	t.Helper()
	return save(t, vfs.NewMem(), testTable(t, 2, 3000), 5)
}

func TestManifestsThatLieAreRefused(t *testing.T) {
	for what, change := range map[string]func(*Manifest){
		"world size 0":               func(m *Manifest) { m.WorldSize = 0 },
		"world size 17":              func(m *Manifest) { m.WorldSize = 17 },
		"negative step":              func(m *Manifest) { m.Step = -1 },
		"more taken than decided":    func(m *Manifest) { m.Taken = 6 },
		"history of the future":      func(m *Manifest) { m.History[4].Step = 6 },
		"history out of order":       func(m *Manifest) { m.History[1].Step = 1 },
		"no chain":                   func(m *Manifest) { m.Chain = nil },
		"chain of other weights":     func(m *Manifest) { m.Weights[0]++ },
		"chain broken":               func(m *Manifest) { m.Chain[0].Chain[0]++ },
		"chain of another spec":      func(m *Manifest) { m.Spec[0]++ },
		"path escape":                func(m *Manifest) { m.Objects[0].File = "../x.obj" },
		"absolute path":              func(m *Manifest) { m.Objects[0].File = "/x.obj" },
		"windows path":               func(m *Manifest) { m.Objects[0].File = `a\x.obj` },
		"hidden file":                func(m *Manifest) { m.Objects[0].File = ".obj" },
		"object twice":               func(m *Manifest) { m.Objects[0].File = m.Objects[1].File },
		"object of no rank":          func(m *Manifest) { m.Objects[0].Rank = 2 },
		"object size":                func(m *Manifest) { m.Objects[0].Bytes++ },
		"object overflow":            func(m *Manifest) { m.Objects[0].Elems = math.MaxInt64 / 4 },
		"object of negative size":    func(m *Manifest) { m.Objects[0].Elems = -1 },
		"object of another kind":     func(m *Manifest) { m.Objects[0].Kind = Moment1 },
		"tensor twice":               func(m *Manifest) { m.Tensors[1].Name = m.Tensors[2].Name },
		"nameless tensor":            func(m *Manifest) { m.Tensors[1].Name = "" },
		"empty tensor":               func(m *Manifest) { m.Tensors[1].Elems, m.Tensors[1].Master = 0, nil },
		"tensor overflow":            func(m *Manifest) { m.Tensors[1].Elems = math.MaxInt64/4 + 1 },
		"tensor missing":             func(m *Manifest) { m.Tensors = m.Tensors[1:] },
		"range missing":              func(m *Manifest) { m.Tensors[0].V = m.Tensors[0].V[:1] },
		"range of no object":         func(m *Manifest) { m.Tensors[0].V[0].Object = 99 },
		"range of negative object":   func(m *Manifest) { m.Tensors[0].V[0].Object = -1 },
		"range of weights as v":      func(m *Manifest) { m.Tensors[0].V[0].Object = 0 },
		"range in the header":        func(m *Manifest) { m.Tensors[0].M[0].Offset = 60 },
		"range off by one byte":      func(m *Manifest) { m.Tensors[0].M[0].Offset++ },
		"range past the end":         func(m *Manifest) { m.Tensors[0].M[0].Offset += 1 << 20 },
		"range overflow":             func(m *Manifest) { m.Tensors[0].M[0].Offset = math.MaxInt64 - 3 },
		"range of negative length":   func(m *Manifest) { m.Tensors[0].M[0].Length = -4 },
		"ranges swapped":             func(m *Manifest) { m.Tensors[1].Master[0].Offset, m.Tensors[2].Master[0].Offset = 68, 64 },
		"range shared by tensors":    func(m *Manifest) { m.Tensors[3].Master[0].Offset -= 4 },
		"range longer than the hole": func(m *Manifest) { m.Tensors[0].Master[0].Length += 4 },
	} {
		m := testManifest(t)
		change(&m)
		file, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeManifest(file); err == nil {
			t.Errorf("%s: accepted", what)
		} else if strings.Contains(err.Error(), "checksum") {
			t.Errorf("%s: refused for the wrong reason: %v", what, err)
		}
	}
}

func TestManifestReadsOnlyItsOwnVersion(t *testing.T) {
	m := testManifest(t)
	m.Version = 2
	file, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeManifest(file); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("version 2: %v", err)
	}
	m.Version = 1
	if file, err = m.encode(); err != nil {
		t.Fatal(err)
	}
	edited := bytes.Replace(file, []byte(`"taken": 5`), []byte(`"taken": 4`), 1)
	if bytes.Equal(file, edited) {
		t.Fatal("nothing was edited")
	}
	if _, err := DecodeManifest(edited); err == nil || !strings.Contains(err.Error(), "edited") {
		t.Errorf("an edited manifest: %v", err)
	}
	back, err := DecodeManifest(file)
	if err != nil || !reflect.DeepEqual(back, m) {
		t.Errorf("%+v\nreads back as\n%+v, %v", m, back, err)
	}
}

func FuzzDecodeManifest(f *testing.F) {
	file, err := testManifest(f).encode()
	if err != nil {
		f.Fatal(err)
	}
	body, err := unseal("manifest", file)
	if err != nil {
		f.Fatal(err)
	}
	// The fuzzer changes the body and the checksum is made again, or nothing would
	// get past it; whole files are tried as they are.
	f.Add([]byte(body), true)
	f.Add(file, false)
	f.Add([]byte(`{"format":"skein checkpoint","version":1,"world_size":1,"objects":[{}],"tensors":[{"master":[{"object":-1}]}]}`), true)
	f.Fuzz(func(t *testing.T, b []byte, reseal bool) {
		if reseal {
			b = seal("manifest", b)
		}
		m, err := DecodeManifest(b)
		if err != nil {
			return
		}
		again, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeManifest(again)
		if err != nil || len(back.Tensors) != len(m.Tensors) || back.Weights != m.Weights {
			t.Fatalf("an accepted manifest does not survive writing: %v", err)
		}
	})
}

func FuzzOpenObject(f *testing.F) {
	var file bytes.Buffer
	le := bytes.Repeat([]byte{1, 2, 3, 4}, 70_000)
	w, err := newObjectWriter(&file, header{Moment1, 12, 70_000, 3})
	if err != nil {
		f.Fatal(err)
	}
	if err := w.data(le); err != nil {
		f.Fatal(err)
	}
	if _, err := w.finish(); err != nil {
		f.Fatal(err)
	}
	f.Add(file.Bytes())
	file.Reset()
	if w, err = newObjectWriter(&file, header{}); err != nil {
		f.Fatal(err)
	}
	if _, err := w.finish(); err != nil {
		f.Fatal(err)
	}
	f.Add(file.Bytes())
	huge := header{elems: elemsMax}.encode()
	f.Add(huge)
	f.Fuzz(func(t *testing.T, b []byte) {
		fsys := vfs.NewMem()
		if err := vfs.WriteFile(fsys, "o", b); err != nil {
			t.Fatal(err)
		}
		file, err := fsys.Open("o")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		o, err := openObject(file)
		if err != nil {
			return
		}
		shallow, deep := o.verify(false), o.verify(true)
		if shallow != nil && deep == nil {
			t.Fatalf("the deep check passes what the shallow one refuses: %v", shallow)
		}
		var one [4]byte
		if o.head.elems > 0 {
			if err := o.read(one[:], o.head.elems*4-4); shallow == nil && err != nil {
				t.Fatalf("a verified object cannot be read: %v", err)
			}
		}
	})
}

func FuzzDecodeLineage(f *testing.F) {
	body, err := layout(testLineage())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeLineage(seal("lineage", b))
		if err != nil {
			return
		}
		again, err := layout(l)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeLineage(seal("lineage", again)); err != nil {
			t.Fatalf("an accepted lineage does not survive writing: %v", err)
		}
	})
}

func testLineage() Lineage {
	l := Lineage{Format: lineageFormat, Version: lineageVersion, Job: "pronounce", Program: "skein 0.1", Model: "tiny", DataHash: shard.Digest{2}, SpecHash: shard.Digest{1},
		Spec: json.RawMessage(`{"train": {"steps": 24}}`), NumericClass: "generic r1", WorldSize: 4,
		Steps: testState(3).History, Results: []Result{{0, "val_loss", 7.506}, {24, "val_loss", Number(math.NaN())}}}
	l.Chain = Extend(nil, l.SpecHash, l.DataHash, 0, shard.Digest{3})
	l.Chain = Extend(l.Chain, l.SpecHash, l.DataHash, 24, shard.Digest{4})
	return l
}

func TestLineageIsReadableAndNoticesEdits(t *testing.T) {
	fsys := vfs.NewMem()
	l := testLineage()
	if err := WriteLineage(fsys, "lineage.json", l); err != nil {
		t.Fatal(err)
	}
	back, err := ReadLineage(fsys, "lineage.json")
	if err != nil || !reflect.DeepEqual(back.Chain, l.Chain) || back.Results[0] != l.Results[0] || !math.IsNaN(float64(back.Results[1].Value)) {
		t.Fatalf("%+v, %v", back, err)
	}
	file, err := vfs.ReadFile(fsys, "lineage.json", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(file), "\n"); lines < 25 || !strings.Contains(string(file), "\n    {\"step\":2,\"loss\":0.5,") {
		t.Errorf("%d lines:\n%s", lines, file)
	}
	for _, edit := range [][2]string{{"7.506", "1.506"}, {`"steps": 24`, `"steps": 25`}, {`"pronounce"`, `"announce"`}} {
		edited := strings.Replace(string(file), edit[0], edit[1], 1)
		if edited == string(file) {
			t.Fatalf("%q is not in the file", edit[0])
		}
		if _, err := decodeLineage([]byte(edited)); err == nil {
			t.Errorf("%q was changed to %q and nobody noticed", edit[0], edit[1])
		}
	}
	l.Chain[1].Weights[0]++
	body, err := layout(l)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeLineage(seal("lineage", body)); err == nil || !strings.Contains(err.Error(), "breaks at step 24") {
		t.Errorf("a chain that does not follow: %v", err)
	}
}

func TestLineageIsReplacedWholeOrNotAtAll(t *testing.T) {
	for n := 1; ; n++ {
		mem := vfs.NewMem()
		if err := WriteLineage(mem, "lineage.json", testLineage()); err != nil {
			t.Fatal(err)
		}
		next := testLineage()
		next.Job = "next"
		err := WriteLineage(vfs.NewFault(mem, vfs.CrashAt(n)), "lineage.json", next)
		mem.Crash()
		l, readErr := ReadLineage(mem, "lineage.json")
		if readErr != nil || l.Job != "next" && (err == nil || l.Job != "pronounce") {
			t.Fatalf("killed at operation %d: job %q, %v; the write said %v", n, l.Job, readErr, err)
		}
		if err == nil {
			return
		}
		if !errors.Is(err, vfs.ErrCrashed) {
			t.Fatal(err)
		}
	}
}

func TestALineageIsNotSetBack(t *testing.T) {
	fsys := vfs.NewMem()
	older := testLineage()
	newer := testLineage()
	newer.Chain = Extend(newer.Chain, newer.SpecHash, newer.DataHash, 30, shard.Digest{5})
	other := testLineage()
	other.SpecHash, other.Chain = shard.Digest{9}, nil
	for _, x := range []struct {
		write Lineage
		chain int
	}{{older, 2}, {newer, 3}, {older, 3}, {newer, 3}, {other, 0}} {
		if err := AdvanceLineage(fsys, "lineage.json", x.write); err != nil {
			t.Fatal(err)
		}
		if l, err := ReadLineage(fsys, "lineage.json"); err != nil || len(l.Chain) != x.chain {
			t.Errorf("a chain of %d links was written, %d are there, %v; want %d", len(x.write.Chain), len(l.Chain), err, x.chain)
		}
	}
}

func TestChainFollowsFromSpecDataStepsAndWeights(t *testing.T) {
	spec, data, weights := shard.Digest{1}, shard.Digest{2}, shard.Digest{3}
	base := Extend(nil, spec, data, 5, weights)
	if got := base[0].Chain.String(); got != "9c7ddb00de89cb4ffde2060f5559f46c423d4b241318ec7e227698ece98aec8d" {
		t.Errorf("the first link is %s", got)
	}
	for what, other := range map[string][]Link{
		"spec":    Extend(nil, shard.Digest{9}, data, 5, weights),
		"data":    Extend(nil, spec, shard.Digest{9}, 5, weights),
		"step":    Extend(nil, spec, data, 6, weights),
		"weights": Extend(nil, spec, data, 5, shard.Digest{9}),
	} {
		if other[0].Chain == base[0].Chain {
			t.Errorf("another %s gives the same chain", what)
		}
	}
	two := Extend(base, spec, data, 7, weights)
	if three := Extend(base, spec, data, 8, weights); two[1] == three[1] || two[1].Step != 7 {
		t.Error("extending a chain twice changed the first extension")
	}
}
