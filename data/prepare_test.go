package data

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/apache/arrow/go/v17/arrow/memory"

	"github.com/skein-ml/skein/internal/vfs"
)

// demoSpec prepares a.jsonl.
func demoSpec() Spec {
	return Spec{Train: []string{"/a.jsonl"}, SequenceLength: 64, Packing: true, CacheDir: "/cache"}
}

func prepareOn(fsys vfs.FS, spec Spec) (*Prepared, error) {
	return Prepare(context.Background(), fsys, spec, byteEncoder{})
}

// readAll reads a data set back, pack by pack.
func readAll(t testing.TB, fsys vfs.FS, dir string) []Batch {
	t.Helper()
	d, err := Open(fsys, dir)
	must(t, err)
	defer closing(t, d)
	all := make([]Batch, d.Len())
	for i := range all {
		must(t, d.Batch(context.Background(), []int64{int64(i)}, &all[i]))
	}
	return all
}

func TestPreparedDataReadsBackAsItWasPacked(t *testing.T) {
	m := memWith(t, map[string]string{"/a.jsonl": pronounce(500)})
	spec := demoSpec()
	p, err := prepareOn(m, spec)
	must(t, err)
	var docs []encoded
	must(t, Examples(context.Background(), m, spec, false, func(e Example) bool {
		x, err := newEncoder(byteEncoder{}).encode(e)
		must(t, err)
		docs = append(docs, x)
		return true
	}))
	want, report := packAll(t, 64, true, Split, docs...)
	got := readAll(t, m, p.Train)
	if len(got) != len(want) || !reflect.DeepEqual(p.TrainManifest.Report, report) {
		t.Fatalf("%d packs, want %d; report %+v, want %+v", len(got), len(want), p.TrainManifest.Report, report)
	}
	for i, w := range want {
		cu := []int32{0}
		for _, n := range w.documents {
			cu = append(cu, cu[len(cu)-1]+n)
		}
		g := got[i]
		if !slices.Equal(g.Tokens, w.tokens) || !slices.Equal(g.Targets, w.targets) || !slices.Equal(g.CuDocs, cu) || g.Padding[0] != w.padding {
			t.Fatalf("pack %d:\n got %+v\nwant %+v", i, g, w)
		}
	}
}

// The content hash is the identity of data in lineages: the definition in docs/formats/dataset.md must not move.
func TestContentHashNeverChanges(t *testing.T) {
	m := memWith(t, map[string]string{"/a.jsonl": pronounce(500)})
	const want = "7a1ea610519162917ccf94fcdee9cb2cea8bf87ed1fe4150700212fdb2b23927"
	for _, threads := range []int{1, 2, 8} {
		spec := demoSpec()
		spec.Threads, spec.CacheDir = threads, fmt.Sprintf("/cache%d", threads)
		p, err := prepareOn(m, spec)
		must(t, err)
		if p.TrainManifest.ContentHash != want {
			t.Errorf("%d threads: content hash %s, want %s", threads, p.TrainManifest.ContentHash, want)
		}
	}
}

func TestASecondPreparationIsFoundAndChangesNothing(t *testing.T) {
	m := memWith(t, map[string]string{"/a.jsonl": pronounce(50)})
	first, err := prepareOn(m, demoSpec())
	must(t, err)
	if first.Cached {
		t.Error("the first preparation says it was there already")
	}
	count := vfs.NewFault(m)
	second, err := prepareOn(count, demoSpec())
	must(t, err)
	if !second.Cached || count.Changes() != 0 || second.Train != first.Train {
		t.Errorf("cached %v, changes %v", second.Cached, count.Log())
	}
	for name, change := range map[string]func(*Spec){
		"T": func(s *Spec) { s.SequenceLength++ }, "packing": func(s *Spec) { s.Packing = false }, "tooLong": func(s *Spec) { s.TooLong = Drop },
		"bad lines": func(s *Spec) { s.MaxBadLines = 1 }, "share": func(s *Spec) { s.ValidationShare = 0.5 },
		"validation": func(s *Spec) { s.Validation = []string{"/a.jsonl"} },
	} {
		spec := demoSpec()
		change(&spec)
		if p, err := prepareOn(m, spec); err != nil || p.Cached {
			t.Errorf("another %s: %+v, %v", name, p, err)
		}
	}
	must(t, vfs.WriteFile(m, "/a.jsonl", []byte(pronounce(51))))
	if p, err := prepareOn(m, demoSpec()); err != nil || p.Cached {
		t.Errorf("another source: %+v, %v", p, err)
	}
}

func TestDamagedCacheIsPreparedAgain(t *testing.T) {
	m := memWith(t, map[string]string{"/a.jsonl": pronounce(50)})
	first, err := prepareOn(m, demoSpec())
	must(t, err)
	name := filepath.Join(first.Train, first.TrainManifest.Files[0].Name)
	must(t, vfs.WriteFile(m, name, []byte("rubbish")))
	again, err := prepareOn(m, demoSpec())
	must(t, err)
	if again.Cached || again.TrainManifest.ContentHash != first.TrainManifest.ContentHash {
		t.Errorf("cached %v, hash %s", again.Cached, again.TrainManifest.ContentHash)
	}
	names, err := m.ReadDir("/cache")
	must(t, err)
	if len(names) != 1 {
		t.Errorf("the cache holds %v", names)
	}
}

func TestPreparationIsAllOrNothingAtEveryCrash(t *testing.T) {
	files := map[string]string{"/a.jsonl": pronounce(40)}
	spec := demoSpec()
	spec.ValidationShare, spec.Threads = 0.3, 1
	dry := vfs.NewFault(memWith(t, files))
	want, err := prepareOn(dry, spec)
	must(t, err)
	if dry.Changes() < 15 {
		t.Fatalf("only %d changes: %v", dry.Changes(), dry.Log())
	}
	for n := 1; n <= dry.Changes(); n++ {
		for _, power := range []bool{false, true} {
			m := memWith(t, files)
			must(t, m.SyncDir("/"))
			if _, err := prepareOn(vfs.NewFault(m, vfs.CrashAt(n)), spec); !errors.Is(err, vfs.ErrCrashed) {
				t.Fatalf("crash at %d (%s): %v", n, dry.Log()[n-1], err)
			}
			if power {
				m.Crash()
			}
			p, err := prepareOn(m, spec)
			if err != nil {
				t.Fatalf("after a crash at %d (%s), power cut %v: %v", n, dry.Log()[n-1], power, err)
			}
			if p.TrainManifest.ContentHash != want.TrainManifest.ContentHash || p.ValidationManifest.ContentHash != want.ValidationManifest.ContentHash {
				t.Errorf("after a crash at %d, power cut %v: other data", n, power)
			}
		}
	}
}

func TestFullDiskLeavesNothingBehind(t *testing.T) {
	m := memWith(t, map[string]string{"/a.jsonl": pronounce(200)})
	_, err := prepareOn(vfs.NewFault(m).LimitSpace(10_000), demoSpec())
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("error %v", err)
	}
	wantError(t, err, "no space left")
	if text := err.Error(); strings.Count(text, "write ") != 1 || strings.Contains(text, "\n") {
		t.Errorf("error %q", text)
	}
	if names, _ := m.ReadDir("/cache"); len(names) != 0 {
		t.Errorf("left behind: %v", names)
	}
}

func TestValidationShareIsAFunctionOfWhatRowsSay(t *testing.T) {
	text := pronounce(300) + pronounce(20) // some rows twice
	m := memWith(t, map[string]string{"/a.jsonl": text, "/b.jsonl": strings.ReplaceAll(text, `"role":"user","content"`, `"role": "user", "content"`)})
	spec := demoSpec()
	spec.ValidationShare = 0.25
	p, err := prepareOn(m, spec)
	must(t, err)
	train, held := p.TrainManifest.Report.Examples, p.ValidationManifest.Report.Examples
	if train+held != 320 || held == 0 || train == 0 {
		t.Errorf("%d + %d examples of 320", train, held)
	}
	side := map[string]bool{}
	for _, validation := range []bool{false, true} {
		n := int64(0)
		must(t, Examples(context.Background(), m, spec, validation, func(e Example) bool {
			key := fmt.Sprint(e.Messages)
			if was, seen := side[key]; seen && was != validation {
				t.Errorf("%s is on both sides", key)
			}
			side[key] = validation
			n++
			return true
		}))
		if want := map[bool]int64{false: train, true: held}[validation]; n != want {
			t.Errorf("Examples gives %d rows for validation %v, prepared were %d", n, validation, want)
		}
	}
	spec.Train = []string{"/b.jsonl"} // the same rows in other bytes
	q, err := prepareOn(m, spec)
	must(t, err)
	if q.Cached || q.ValidationManifest.ContentHash != p.ValidationManifest.ContentHash {
		t.Error("white space in the JSON moved rows between the sides")
	}
}

func TestSourcesAreReadInTheOrderOfTheList(t *testing.T) {
	m := memWith(t, map[string]string{"/d/b.jsonl": `{"text":"b"}`, "/d/a.jsonl": `{"text":"a"}`, "/z.jsonl": `{"text":"z"}` + "\n"})
	spec := demoSpec()
	spec.Train = []string{"/z.jsonl", "/d/*.jsonl"}
	p, err := prepareOn(m, spec)
	must(t, err)
	b := readAll(t, m, p.Train)[0]
	if want := []int32{'z', fakeEnd, 'a', fakeEnd, 'b', fakeEnd, 0}; !slices.Equal(b.Tokens[:7], want) {
		t.Errorf("tokens %v, want %v", b.Tokens[:7], want)
	}
	spec.Train = []string{"/*/[ab].jsonl"}
	if p, err = prepareOn(m, spec); err != nil || p.TrainManifest.Report.Examples != 2 {
		t.Errorf("a glob over folders: %v", err)
	}
}

func TestPrepareRefusesBadInputByName(t *testing.T) {
	m := memWith(t, map[string]string{
		"/a.jsonl": pronounce(3), "/empty.jsonl": "\n \n", "/text.jsonl": `{"text":"a"}`,
		"/bad.jsonl":    "{\"text\":\"a\"}\n\n{\"text\":\n{\"text\":7}\n{\"text\":\"b\"}\n",
		"/allbad.jsonl": "{\n{\n",
		"/silent.jsonl": `{"messages":[{"role":"user","content":"x"}]}`,
		"/mixed.jsonl":  "{\"text\":\"a\"}\n{\"prompt\":\"a\",\"completion\":\"b\"}",
		"/noend.jsonl":  `{"messages":[{"role":"assistant","content":"@noend"}]}`,
		"/long.jsonl":   `{"text":"` + strings.Repeat("x", 100) + `"}`,
		"/huge.jsonl":   "{\"text\":\"a\"}\n" + strings.Repeat("x", maxLineBytes+1),
	})
	for _, c := range []struct {
		name string
		spec func(*Spec)
		want []string
	}{
		{"missing file", func(s *Spec) { s.Train = []string{"/none.jsonl"} }, []string{"data.train", "/none.jsonl"}},
		{"missing validation", func(s *Spec) { s.Validation = []string{"/none.jsonl"} }, []string{"data.validation", "/none.jsonl"}},
		{"empty glob", func(s *Spec) { s.Train = []string{"/x*.jsonl"} }, []string{"no file matches /x*.jsonl"}},
		{"bad glob", func(s *Spec) { s.Train = []string{"/[.jsonl"} }, []string{"pattern"}},
		{"twice", func(s *Spec) { s.Train = []string{"/a.jsonl", "/[a].jsonl"} }, []string{"/a.jsonl is listed twice"}},
		{"folder", func(s *Spec) { s.Train = []string{"/"} }, []string{"folder", "*.jsonl"}},
		{"empty", func(s *Spec) { s.Train = []string{"/empty.jsonl"} }, []string{"data.train", "no examples"}},
		{"empty validation", func(s *Spec) { s.Validation = []string{"/empty.jsonl"} }, []string{"data.validation", "no examples"}},
		{"bad line", func(s *Spec) { s.Train = []string{"/bad.jsonl"} }, []string{"/bad.jsonl:3: not valid JSON"}},
		{"bad lines over the limit", func(s *Spec) { s.Train, s.MaxBadLines = []string{"/bad.jsonl"}, 1 }, []string{"/bad.jsonl:4:", "/bad.jsonl:3:", "maxBadLines is 1"}},
		{"only bad lines", func(s *Spec) { s.Train, s.MaxBadLines = []string{"/allbad.jsonl"}, 9 }, []string{"all 2 lines", "/allbad.jsonl:1:"}},
		{"huge line", func(s *Spec) { s.Train = []string{"/huge.jsonl"} }, []string{"/huge.jsonl:2:", "16 MiB"}},
		{"mixed", func(s *Spec) { s.Train = []string{"/mixed.jsonl"} }, []string{"/mixed.jsonl:2:", "/mixed.jsonl:1 is text"}},
		{"mixed files", func(s *Spec) { s.Train = []string{"/a.jsonl", "/text.jsonl"} }, []string{"/text.jsonl:1:", "/a.jsonl:1 is messages"}},
		{"silent", func(s *Spec) { s.Train = []string{"/silent.jsonl"} }, []string{"nothing can be learnt", "1 without a target"}},
		{"no end", func(s *Spec) { s.Train = []string{"/noend.jsonl"} }, []string{"/noend.jsonl:1:", "never learn to stop"}},
		{"all dropped", func(s *Spec) { s.Train, s.TooLong = []string{"/long.jsonl"}, Drop }, []string{"longer than 64 tokens", "drop"}},
		{"share of nothing", func(s *Spec) { s.Train, s.ValidationShare = []string{"/text.jsonl"}, 1e-9 }, []string{"data.validation", "took none"}},
		{"T", func(s *Spec) { s.SequenceLength = 1 }, []string{"sequenceLength is 1"}},
		{"share and files", func(s *Spec) { s.ValidationShare, s.Validation = 0.1, []string{"/a.jsonl"} }, []string{"choose one"}},
		{"share", func(s *Spec) { s.ValidationShare = 1 }, []string{"share of 1"}},
		{"policy", func(s *Spec) { s.TooLong = "cut" }, []string{`"cut"`, "split"}},
	} {
		spec := demoSpec()
		c.spec(&spec)
		_, err := prepareOn(m, spec)
		t.Run(c.name, func(t *testing.T) { wantError(t, err, c.want...) })
		if names, _ := m.ReadDir("/cache"); len(names) != 0 {
			t.Errorf("%s left %v", c.name, names)
		}
	}
}

func TestBadLinesWithinTheLimitAreSkippedAndReported(t *testing.T) {
	m := memWith(t, map[string]string{"/a.jsonl": "{\"text\":\"a\"}\n{\n{\"text\":\"b\"}\n" + strings.Repeat("x", 3)})
	spec := demoSpec()
	spec.MaxBadLines = 2
	p, err := prepareOn(m, spec)
	must(t, err)
	r := p.TrainManifest.Report
	if r.Examples != 2 || r.BadLines != 2 || len(r.BadLineErrors) != 2 || !strings.HasPrefix(r.BadLineErrors[0], "/a.jsonl:2: ") {
		t.Errorf("%+v", r)
	}
	if !strings.Contains(r.String(), "2 bad lines skipped") {
		t.Error(r.String())
	}
}

// changingFS gives other bytes for a name from the second Open on.
type changingFS struct {
	vfs.FS
	name  string
	opens int
}

func (c *changingFS) Open(name string) (vfs.File, error) {
	if name == c.name {
		if c.opens++; c.opens == 2 {
			if err := vfs.WriteFile(c.FS, name, []byte(pronounce(4))); err != nil {
				return nil, err
			}
		}
	}
	return c.FS.Open(name)
}

func TestASourceThatChangesMeanwhileIsRefused(t *testing.T) {
	m := memWith(t, map[string]string{"/a.jsonl": pronounce(3)})
	_, err := prepareOn(&changingFS{FS: m, name: "/a.jsonl"}, demoSpec())
	wantError(t, err, "/a.jsonl changed while it was being read")
}

func TestPreparationEndsWithItsContext(t *testing.T) {
	m := memWith(t, map[string]string{"/a.jsonl": pronounce(3000)})
	ctx, cancel := context.WithCancel(context.Background())
	spec := demoSpec()
	spec.Progress = func(read, total int64) {
		if read > 0 && read <= total {
			cancel()
		}
	}
	if _, err := Prepare(ctx, m, spec, byteEncoder{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if names, _ := m.ReadDir("/cache"); len(names) != 0 {
		t.Errorf("left behind: %v", names)
	}
}

func TestProgressReachesItsEnd(t *testing.T) {
	m := memWith(t, map[string]string{"/a.jsonl": pronounce(1000), "/b.jsonl": pronounce(10)})
	spec := demoSpec()
	spec.Validation = []string{"/b.jsonl"}
	var last, total int64
	spec.Progress = func(r, n int64) {
		if r < last {
			t.Errorf("progress went back from %d to %d", last, r)
		}
		last, total = r, n
	}
	_, err := prepareOn(m, spec)
	must(t, err)
	if last != total || total != int64(len(pronounce(1000))+len(pronounce(10))) {
		t.Errorf("ended at %d of %d", last, total)
	}
}

func TestPreparationGivesAllArrowMemoryBack(t *testing.T) {
	m := memWith(t, map[string]string{"/a.jsonl": pronounce(3000)})
	mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
	_, err := prepare(context.Background(), m, demoSpec(), byteEncoder{}, mem)
	must(t, err)
	mem.AssertSize(t, 0)
	spec := demoSpec()
	spec.MaxBadLines, spec.CacheDir = 5, "/other"
	_, err = prepare(context.Background(), vfs.NewFault(m, vfs.Rule{Ops: vfs.OpWrite, Nth: 1}), spec, byteEncoder{}, mem)
	if !errors.Is(err, vfs.ErrInjected) {
		t.Errorf("error %v", err)
	}
	mem.AssertSize(t, 0)
}
