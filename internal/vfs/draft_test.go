package vfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// draft makes a draft of final with one file in it.
func draft(t *testing.T, fsys FS, final string) *Draft {
	t.Helper()
	d, err := NewDraft(fsys, final)
	must(t, err)
	must(t, WriteFile(fsys, filepath.Join(d.Dir, "f"), []byte(d.Dir)))
	return d
}

// left lists the drafts in a folder.
func left(t *testing.T, fsys FS, dir string) []string {
	t.Helper()
	names, err := fsys.ReadDir(dir)
	must(t, err)
	return slices.DeleteFunc(names, func(s string) bool { return !strings.HasSuffix(s, draftSuffix) })
}

func TestOfManyDraftsForOnePlaceOneAppearsWhole(t *testing.T) {
	for name, open := range implementations(t) {
		t.Run(name, func(t *testing.T) {
			fsys, dir := open()
			final := filepath.Join(dir, "out")
			const writers = 16
			errs := make([]error, writers)
			var wg sync.WaitGroup
			for i := range writers {
				wg.Go(func() {
					d, err := NewDraft(fsys, final)
					if err != nil {
						errs[i] = err
						return
					}
					for _, f := range []string{"a", "b", "c"} {
						if err := WriteFile(fsys, filepath.Join(d.Dir, f), []byte(d.Dir)); err != nil {
							t.Errorf("another draft took the folder away: %v", err)
						}
					}
					if errs[i] = d.Publish(); errs[i] != nil {
						d.Discard()
					}
				})
			}
			wg.Wait()
			won := 0
			for _, err := range errs {
				if err == nil {
					won++
				} else if !errors.Is(err, fs.ErrExist) {
					t.Errorf("a draft that came late: %v, want fs.ErrExist", err)
				}
			}
			if won != 1 {
				t.Errorf("%d drafts say that they were published", won)
			}
			by := map[string]bool{}
			for _, f := range []string{"a", "b", "c"} {
				b, err := ReadFile(fsys, filepath.Join(final, f), 1<<10)
				must(t, err)
				by[string(b)] = true
			}
			if len(by) != 1 {
				t.Errorf("the folder is a mixture of %d drafts", len(by))
			}
			if l := left(t, fsys, dir); len(l) != 0 {
				t.Errorf("left: %v", l)
			}
		})
	}
}

func TestADraftDoesNotReplaceWhatCameToBeMeanwhile(t *testing.T) {
	for name, open := range implementations(t) {
		t.Run(name, func(t *testing.T) {
			fsys, dir := open()
			final := filepath.Join(dir, "out")
			d := draft(t, fsys, final)
			must(t, fsys.MkdirAll(final)) // empty
			if err := d.Publish(); !errors.Is(err, fs.ErrExist) {
				t.Errorf("error %v, want fs.ErrExist", err)
			}
			d.Discard()
			if names, err := fsys.ReadDir(final); err != nil || len(names) != 0 || len(left(t, fsys, dir)) != 0 {
				t.Errorf("in place: %v, %v; drafts: %v", names, err, left(t, fsys, dir))
			}
		})
	}
}

func TestADraftThatAKillLeftIsSweptAndOneInUseIsNot(t *testing.T) {
	dir := t.TempDir()
	final := filepath.Join(dir, "out")
	killed, used, other := draft(t, OS, final), draft(t, OS, final), draft(t, OS, final+".b")
	must(t, killed.hold.Close()) // what the system does for a process that is gone
	must(t, other.hold.Close())
	foreign := []string{".out.partial", ".out.123.partial", ".out.0123456789abcdeg.partial", ".out.0123456789abcdef"}
	for _, name := range foreign {
		must(t, OS.MkdirAll(filepath.Join(dir, name)))
	}
	d := draft(t, OS, final)
	must(t, d.Publish())
	for _, there := range append(foreign, filepath.Base(used.Dir), filepath.Base(other.Dir)) {
		if ok, _ := Exists(OS, filepath.Join(dir, there)); !ok {
			t.Errorf("%s was removed", there)
		}
	}
	if ok, _ := Exists(OS, killed.Dir); ok {
		t.Error("what the kill left is still there")
	}
	if b, err := ReadFile(OS, filepath.Join(used.Dir, "f"), 1<<10); err != nil || string(b) != used.Dir {
		t.Errorf("the draft in use was touched: %q, %v", b, err)
	}
	used.Discard()
}

// lockless is a file system whose files cannot be locked.
type lockless struct{ FS }

func (l lockless) Open(name string) (File, error) {
	f, err := l.FS.Open(name)
	return struct{ File }{f}, err
}

func TestWithoutLocksADraftIsSweptAfterADay(t *testing.T) {
	dir := t.TempDir()
	final := filepath.Join(dir, "out")
	young, old := draft(t, lockless{OS}, final), draft(t, lockless{OS}, final)
	yesterday := time.Now().Add(-25 * time.Hour)
	must(t, os.Chtimes(old.Dir, yesterday, yesterday))
	d := draft(t, lockless{OS}, final)
	if l := left(t, OS, dir); len(l) != 2 || !slices.Contains(l, filepath.Base(young.Dir)) || !slices.Contains(l, filepath.Base(d.Dir)) {
		t.Errorf("drafts there: %v, want the young one and the new one", l)
	}
}
