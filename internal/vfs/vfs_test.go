package vfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// implementations is every FS; each must pass the same suite.
func implementations(t *testing.T) map[string]func() (FS, string) {
	return map[string]func() (FS, string){
		"os":    func() (FS, string) { return OS, t.TempDir() },
		"mem":   func() (FS, string) { return NewMem(), "/" },
		"fault": func() (FS, string) { return NewFault(NewMem()), "/" },
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestEveryFileSystemBehavesAlike(t *testing.T) {
	for name, open := range implementations(t) {
		t.Run(name, func(t *testing.T) {
			fsys, dir := open()
			conform(t, fsys, dir)
		})
	}
}

func conform(t *testing.T, fsys FS, dir string) {
	sub := filepath.Join(dir, "a", "b")
	must(t, fsys.MkdirAll(sub))
	must(t, fsys.MkdirAll(sub))
	name := filepath.Join(sub, "x")
	must(t, WriteFile(fsys, name, []byte("hello")))
	f, err := fsys.OpenReadWrite(name)
	must(t, err)
	if _, err := f.WriteAt([]byte("J"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("!")); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4)
	if n, err := f.ReadAt(p, 4); n != 2 || !errors.Is(err, io.EOF) {
		t.Errorf("ReadAt past the end: %d, %v; want 2, EOF", n, err)
	}
	must(t, f.Sync())
	info, err := f.Stat()
	must(t, err)
	if info.Size() != 6 || info.IsDir() {
		t.Errorf("Stat: size %d dir %v", info.Size(), info.IsDir())
	}
	must(t, f.Close())
	if err := f.Close(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("second Close: %v, want fs.ErrClosed", err)
	}
	b, err := ReadFile(fsys, name, 6)
	must(t, err)
	if string(b) != "Jello!" {
		t.Errorf("read %q", b)
	}
	if _, err := ReadFile(fsys, name, 5); !errors.Is(err, ErrTooLarge) {
		t.Errorf("ReadFile over the limit: %v", err)
	}
	if _, err := ReadFile(fsys, sub, 5); err == nil {
		t.Error("ReadFile of a folder succeeded")
	}
	if _, err := fsys.Open(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of a missing file: %v", err)
	}
	if _, err := fsys.Create(filepath.Join(dir, "none", "x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Create in a missing folder: %v", err)
	}
	if f, err := fsys.Open(name); err != nil {
		t.Error(err)
	} else {
		if _, err := f.Write([]byte("no")); err == nil {
			t.Error("a file opened for reading took a write")
		}
		must(t, f.Close())
	}
	conformNames(t, fsys, dir, sub, name)
}

func conformNames(t *testing.T, fsys FS, dir, sub, name string) {
	must(t, WriteFile(fsys, filepath.Join(sub, "w"), nil))
	names, err := fsys.ReadDir(sub)
	must(t, err)
	if !slices.Equal(names, []string{"w", "x"}) {
		t.Errorf("ReadDir: %v", names)
	}
	if err := fsys.Remove(sub); err == nil {
		t.Error("Remove took a folder with files in it")
	}
	full := filepath.Join(dir, "full")
	must(t, fsys.MkdirAll(full))
	must(t, WriteFile(fsys, filepath.Join(full, "y"), nil))
	if err := fsys.Rename(sub, full); err == nil {
		t.Error("Rename replaced a folder with files in it")
	}
	final := filepath.Join(dir, "final")
	must(t, fsys.MkdirAll(final))
	for what, rename := range map[string]func(from, to string) error{
		"Rename": fsys.Rename, "RenameNew": fsys.RenameNew,
		"Publish": func(from, to string) error { return Publish(fsys, from, to) },
	} {
		for _, from := range []string{sub, name} {
			if from == name && what == "Publish" {
				continue // is for folders
			}
			if err := rename(from, final); !errors.Is(err, fs.ErrExist) {
				t.Errorf("%s of %s replaced an empty folder: %v, want fs.ErrExist", what, from, err)
			}
		}
	}
	if err := fsys.RenameNew(name, filepath.Join(sub, "w")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("RenameNew replaced a file: %v", err)
	}
	if err := fsys.RenameNew(filepath.Join(dir, "none"), filepath.Join(dir, "new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("RenameNew of a missing name: %v", err)
	}
	must(t, fsys.Remove(final))
	must(t, Publish(fsys, sub, final))
	if ok, err := Exists(fsys, name); ok || err != nil {
		t.Errorf("the old name after Publish: %v %v", ok, err)
	}
	if ok, err := Exists(fsys, filepath.Join(dir, "final", "x")); !ok || err != nil {
		t.Errorf("the new name after Publish: %v %v", ok, err)
	}
	must(t, fsys.Rename(filepath.Join(dir, "final", "x"), filepath.Join(dir, "final", "w")))
	b, err := ReadFile(fsys, filepath.Join(dir, "final", "w"), 99)
	must(t, err)
	if string(b) != "Jello!" {
		t.Errorf("Rename over a file left %q", b)
	}
	must(t, fsys.RemoveAll(filepath.Join(dir, "final")))
	must(t, fsys.RemoveAll(filepath.Join(dir, "final")))
	must(t, fsys.Remove(filepath.Join(full, "y")))
	must(t, fsys.Remove(full))
	if err := fsys.Remove(full); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Remove of a missing name: %v", err)
	}
}

func TestMemForgetsWhatWasNotSynced(t *testing.T) {
	m := NewMem()
	must(t, m.MkdirAll("/d"))
	f, err := m.Create("/d/f")
	must(t, err)
	_, err = f.Write([]byte("safe"))
	must(t, err)
	must(t, f.Sync())
	must(t, m.SyncDir("/d"))
	_, err = f.Write([]byte(" lost"))
	must(t, err)
	must(t, f.Close())
	must(t, WriteFile(m, "/d/g", []byte("synced, but its name was not")))
	must(t, m.Rename("/d/f", "/d/h"))
	m.Crash()
	names, err := m.ReadDir("/d")
	must(t, err)
	if !slices.Equal(names, []string{"f"}) {
		t.Fatalf("names after the crash: %v, want [f]", names)
	}
	b, err := ReadFile(m, "/d/f", 99)
	must(t, err)
	if string(b) != "safe" {
		t.Errorf("bytes after the crash: %q", b)
	}
}

func TestPublishIsAllOrNothingAtEveryCrash(t *testing.T) {
	write := func(fsys FS) error {
		if err := fsys.MkdirAll("/s/tmp"); err != nil {
			return err
		}
		for _, n := range []string{"a", "b"} {
			if err := WriteFile(fsys, "/s/tmp/"+n, []byte(n)); err != nil {
				return err
			}
		}
		return Publish(fsys, "/s/tmp", "/s/final")
	}
	dry := NewFault(NewMem())
	must(t, write(dry))
	for n := 1; n <= dry.Changes(); n++ {
		m := NewMem()
		if err := write(NewFault(m, CrashAt(n))); !errors.Is(err, ErrCrashed) {
			t.Fatalf("crash at %d: %v", n, err)
		}
		for _, power := range []bool{false, true} {
			if power {
				m.Crash()
			}
			if ok, _ := Exists(m, "/s/final"); !ok {
				continue
			}
			for _, name := range []string{"a", "b"} {
				if b, err := ReadFile(m, "/s/final/"+name, 9); err != nil || string(b) != name {
					t.Errorf("crash at %d, power cut %v: /s/final/%s is %q, %v", n, power, name, b, err)
				}
			}
		}
	}
}

func TestFaultTearsTheNthWrite(t *testing.T) {
	m := NewMem()
	ff := NewFault(m, TearWrite(2, 3))
	f, err := ff.Create("/f")
	must(t, err)
	_, err = f.Write([]byte("one "))
	must(t, err)
	if n, err := f.Write([]byte("twotwo")); n != 3 || !errors.Is(err, ErrInjected) {
		t.Errorf("torn write: %d, %v", n, err)
	}
	_, err = f.Write([]byte("!"))
	must(t, err)
	must(t, f.Close())
	if b, _ := ReadFile(m, "/f", 99); string(b) != "one two!" {
		t.Errorf("file is %q", b)
	}
}

func TestFaultRunsOutOfSpace(t *testing.T) {
	m := NewMem()
	ff := NewFault(m).LimitSpace(10)
	err := WriteFile(ff, "/f", bytes.Repeat([]byte("x"), 6))
	must(t, err)
	if err := WriteFile(ff, "/g", bytes.Repeat([]byte("x"), 6)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("over the limit: %v", err)
	}
	if ok, _ := Exists(m, "/g"); ok {
		t.Error("WriteFile left a torn file behind")
	}
}

func TestErrorsOfTheDiskNameTheFileOnce(t *testing.T) {
	for what, rule := range map[string]Rule{
		"write": FailNth(OpWrite, 1, syscall.ENOSPC), "sync": FailNth(OpSync, 1, syscall.EIO),
		"close": FailNth(OpClose, 1, syscall.EIO), "create": FailNth(OpCreate, 1, syscall.EACCES),
		"all from the write on": {Ops: OpWrite | OpSync | OpClose, Nth: 1, Sticky: true},
	} {
		err := WriteFile(NewFault(NewMem(), rule), "/f", []byte("x"))
		if err == nil || strings.Count(err.Error(), "/f") != 1 || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s fails: error %q", what, err)
		}
	}
	m := NewMem()
	must(t, WriteFile(m, "/f", []byte("x")))
	_, err := ReadFile(NewFault(m, FailNth(OpRead, 1, syscall.EIO)), "/f", 9)
	if err == nil || strings.Count(err.Error(), "/f") != 1 {
		t.Errorf("read fails: error %q", err)
	}
}

func TestFaultRulesCountWhatTheyName(t *testing.T) {
	ff := NewFault(NewMem(), Rule{Ops: OpSync, Path: "keep", Nth: 1, Sticky: true, Err: syscall.EIO},
		FailNth(OpRename|OpRemove, 2, fs.ErrPermission))
	must(t, WriteFile(ff, "/other", nil))
	for range 2 {
		if err := WriteFile(ff, "/keep", nil); !errors.Is(err, syscall.EIO) {
			t.Errorf("sticky rule: %v", err)
		}
	}
	// Both failed WriteFile calls removed their file: the second removal is the second of OpRename|OpRemove and was refused.
	if ok, _ := Exists(ff, "/keep"); !ok {
		t.Error("the refused removal happened")
	}
	log := ff.Log()
	if len(log) != ff.Changes() || log[0] != "create /other" || !slices.Contains(log, "remove /keep") {
		t.Errorf("log: %v", log)
	}
}

func TestNothingWorksAfterACrash(t *testing.T) {
	ff := NewFault(NewMem(), CrashAt(3))
	f, err := ff.Create("/f")
	must(t, err)
	_, err = f.Write([]byte("x"))
	must(t, err)
	errs := map[string]error{"sync": f.Sync(), "syncdir": ff.SyncDir("/"), "mkdir": ff.MkdirAll("/d"), "close": f.Close(),
		"rename": ff.Rename("/f", "/g"), "remove": ff.Remove("/f"), "removeall": ff.RemoveAll("/f")}
	_, errs["create"] = ff.Create("/g")
	_, errs["open"] = ff.Open("/f")
	_, errs["stat"] = ff.Stat("/f")
	_, errs["readdir"] = ff.ReadDir("/")
	_, errs["read"] = f.Read(make([]byte, 1))
	_, errs["readat"] = f.ReadAt(make([]byte, 1), 0)
	for op, err := range errs {
		if !errors.Is(err, ErrCrashed) {
			t.Errorf("%s after the crash: %v", op, err)
		}
	}
}

func TestARuleWithDoLetsOthersActAndGoesAhead(t *testing.T) {
	mem := NewMem()
	var seen []string
	fault := NewFault(mem, Rule{Ops: OpRename, Nth: 2, Do: func() {
		names, err := mem.ReadDir(".")
		if err != nil {
			t.Error(err)
		}
		seen = names
	}})
	for _, name := range []string{"a", "b"} {
		if err := errors.Join(WriteFile(fault, name+".tmp", []byte(name)), fault.Rename(name+".tmp", name)); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(seen, " "); got != "a b.tmp" {
		t.Errorf("at the second rename there was %q", got)
	}
	if there, err := Exists(mem, "b"); !there || err != nil {
		t.Errorf("the rename did not go ahead: %v", err)
	}
}

func TestAReplacedFileIsWholeWhateverIsKilled(t *testing.T) {
	for n := 1; ; n++ {
		mem := NewMem()
		if err := ReplaceFile(mem, "f", []byte("before")); err != nil {
			t.Fatal(err)
		}
		rule := CrashAt(n)
		rule.Torn = 2
		err := ReplaceFile(NewFault(mem, rule), "f", []byte("after"))
		mem.Crash()
		b, readErr := ReadFile(mem, "f", 10)
		if got := string(b); readErr != nil || got != "after" && (err == nil || got != "before") {
			t.Fatalf("killed at change %d: %q, %v; the writer was told %v", n, got, readErr, err)
		}
		if err == nil {
			return
		}
	}
}
