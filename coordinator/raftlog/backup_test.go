package raftlog

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skein-ml/skein/coordinator/fsm"
)

// backup is one of a node with a job.
func (g *group) backup() []byte {
	g.Helper()
	var b bytes.Buffer
	if err := g.leader().Backup(g.Context(), &b); err != nil {
		g.Fatal(err)
	}
	return b.Bytes()
}

func TestABackupBecomesANewClusterThatOthersJoin(t *testing.T) {
	g := newGroup(t, 1)
	kept := g.submit("kept")
	backup := g.backup()
	g.submit("lost")
	g.close("c1")
	dir := filepath.Join(t.TempDir(), "new")
	l := listen(t, "127.0.0.1:0")
	head, err := Restore(dir, "n1", l.Addr().String(), bytes.NewReader(backup))
	if err != nil {
		t.Fatal(err)
	}
	if head.Cluster != "test" || head.ID != "c1" || head.Index == 0 || head.At == 0 {
		t.Errorf("the backup says it is %+v", head)
	}
	n1 := Server{"n1", l.Addr().String()}
	fresh := &group{T: t, dir: filepath.Dir(dir), nodes: map[string]*Node{}}
	t.Cleanup(func() {
		for _, n := range fresh.nodes {
			n.Close()
		}
	})
	c := fresh.config(n1, l, nil)
	c.Dir = dir
	if fresh.nodes["n1"], err = Open(c); err != nil {
		t.Fatal(err)
	}
	s, err := fresh.leader().Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Jobs[kept] == nil || len(s.Jobs) != 1 || s.Index <= head.Index {
		t.Fatalf("restored jobs: %v at %d", s.Jobs, s.Index)
	}
	fresh.submit("goes on")
	l2 := listen(t, "127.0.0.1:0")
	second := fresh.open(Server{"n2", l2.Addr().String()}, l2, nil)
	if err := fresh.leader().Add(t.Context(), Server{"n2", l2.Addr().String()}); err != nil {
		t.Fatal(err)
	}
	fresh.submit("with two")
	fresh.close("n1")
	l = listen(t, n1.Address)
	c.Listener = l
	if fresh.nodes["n1"], err = Open(c); err != nil {
		t.Fatal(err)
	}
	if s, err = fresh.leader().Read(t.Context()); err != nil || len(s.Jobs) != 3 {
		t.Fatalf("after a restart there are %d jobs, %v", len(s.Jobs), err)
	}
	if members, err := second.Members(); err != nil || len(members) != 2 {
		t.Errorf("n2 knows %v, %v", members, err)
	}
}

func TestABackupIsRestoredIntoANewFolderOnly(t *testing.T) {
	g := newGroup(t, 1)
	g.submit("one")
	backup := g.backup()
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "notes.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(full, "c9", "127.0.0.1:1", bytes.NewReader(backup)); err == nil || !strings.Contains(err.Error(), "notes.txt") {
		t.Errorf("a folder with something in it: %v", err)
	}
	if _, err := Restore(filepath.Join(g.dir, "c1"), "c9", "127.0.0.1:1", bytes.NewReader(backup)); err == nil {
		t.Error("the folder of a running coordinator was taken")
	}
	empty := t.TempDir()
	if err := os.MkdirAll(empty+restoringAside, 0o755); err != nil { // a restore was killed here
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(empty+restoringAside, logFile), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(empty, "c9", "127.0.0.1:1", bytes.NewReader(backup)); err != nil {
		t.Errorf("an empty folder: %v", err)
	}
	if _, err := os.Stat(empty + restoringAside); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something is left aside: %v", err)
	}
}

func TestADamagedBackupIsNamedAndLeavesNothing(t *testing.T) {
	g := newGroup(t, 1)
	g.submit("one")
	whole := g.backup()
	dir := filepath.Join(t.TempDir(), "new")
	refused := func(what string, b []byte) {
		t.Helper()
		_, err := Restore(dir, "c9", "127.0.0.1:1", bytes.NewReader(b))
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, fsm.ErrCorrupt) && !errors.Is(err, fsm.ErrVersion) {
			t.Fatalf("%s: %v", what, err)
		}
		if names, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), "*")); len(names) > 0 {
			t.Fatalf("%s: %v is left", what, names)
		}
	}
	for size := range len(whole) {
		refused("cut short", whole[:size])
	}
	for at := range whole {
		bad := bytes.Clone(whole)
		bad[at] ^= 1
		refused("a flipped bit", bad)
	}
	refused("something behind its end", append(bytes.Clone(whole), 0))
	refused("another backup's snapshot", append(bytes.Clone(whole[:bytes.Index(whole, []byte("SKNS"))]), func() []byte {
		g.submit("two")
		b := g.backup()
		return b[bytes.Index(b, []byte("SKNS")):]
	}()...))
}

func FuzzReadBackup(f *testing.F) {
	f.Add([]byte("SKNB\x01\x00\x00\x00\x02\x00\x00\x00{}\x00\x00\x00\x00"))
	f.Add([]byte("SKNB\x01\x00\x00\x00\xff\xff\xff\xff"))
	var whole bytes.Buffer
	if err := writeBackup(&whole, BackupHead{Cluster: "test", ID: "c1", At: 1}, fsm.New()); err != nil {
		f.Fatal(err)
	}
	f.Add(whole.Bytes())
	f.Add(whole.Bytes()[:whole.Len()-1])
	f.Add(append(whole.Bytes(), whole.Bytes()...))
	f.Fuzz(func(t *testing.T, b []byte) {
		head, s, err := ReadBackup(bytes.NewReader(b))
		if (err == nil) != (s != nil) || err == nil && head.Index != s.Index {
			t.Fatalf("%+v, %v, %v", head, s, err)
		}
	})
}
