package raftlog

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/internal/vfs"
)

const (
	identityFile   = "identity.json"
	logFile        = "log.db"
	identityMagic  = "skein coordinator"
	identityBytes  = 4096
	snapshotsKept  = 2
	lockPatience   = 200 * time.Millisecond
	logCacheLength = 512
)

// identity says whose a folder is.
type identity struct {
	Magic   string `json:"magic"`
	Version int    `json:"version"`
	Cluster string `json:"cluster"`
	ID      string `json:"id"`
}

// disk is the folder of a node.
type disk struct {
	bolt      *raftboltdb.BoltStore
	logs      raft.LogStore
	stable    raft.StableStore
	snapshots *raft.FileSnapshotStore
	used      bool   // the folder was not empty
	path      string // of the log
}

// joinAnew is what to do with a folder that is damaged: the others have all that it had.
const joinAnew = "move the folder away, and let the coordinator join anew under another id"

// openDisk opens or makes the folder, and reads all of it once: raft itself panics
// over a damaged log, in the middle of an election.
func openDisk(c Config, logger hclog.Logger) (*disk, error) {
	if err := vfs.OS.MkdirAll(c.Dir); err != nil {
		return nil, fmt.Errorf("coordinator folder: %w", err)
	}
	d := &disk{path: filepath.Join(c.Dir, logFile)}
	err := d.open(c, logger)
	if err != nil {
		_ = d.Close() // the first error counts
		return nil, fmt.Errorf("%s: %w", c.Dir, err)
	}
	return d, nil
}

func (d *disk) open(c Config, logger hclog.Logger) (err error) {
	if err := logMissing(c.Dir); err != nil {
		return err
	}
	if d.bolt, err = openBolt(d.path); errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("%w; %s", err, joinAnew)
	} else if err != nil {
		return err
	}
	// The lock is ours from here on.
	if err := d.identify(c); err != nil {
		return err
	}
	if d.snapshots, err = raft.NewFileSnapshotStoreWithLogger(c.Dir, snapshotsKept, logger); err != nil {
		return fmt.Errorf("snapshots: %w", err)
	}
	checked := checkedStore{d.bolt, sync.OnceValue(func() error { return markBegun(c.Dir) })}
	err = guarded(func() (err error) {
		if err := d.verify(checked); err != nil {
			return err
		}
		if err := d.begun(c.Dir); err != nil {
			return err
		}
		d.used, err = raft.HasExistingState(checked, d.bolt, d.snapshots)
		return err
	})
	if err != nil {
		return fmt.Errorf("%w; %s", err, joinAnew)
	}
	d.stable = d.bolt
	d.logs, err = raft.NewLogCache(logCacheLength, checked)
	return err
}

// logMissing refuses a folder that is somebody's but has lost its log: to begin anew in
// it would be to vote twice.
func logMissing(dir string) error {
	there, err := vfs.Exists(vfs.OS, filepath.Join(dir, identityFile))
	if err != nil || !there {
		return err
	}
	info, err := vfs.OS.Stat(filepath.Join(dir, logFile))
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return fmt.Errorf("%w: %s is gone or empty; %s", ErrCorrupt, logFile, joinAnew)
	}
	return err
}

func openBolt(path string) (store *raftboltdb.BoltStore, err error) {
	if err := lookAt(path); err != nil {
		return nil, err
	}
	err = guarded(func() (err error) {
		store, err = raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{Timeout: lockPatience}})
		return err
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("%w; is another coordinator running on this folder?", ErrInUse)
	case err != nil && !errors.Is(err, ErrCorrupt) && !fromSystem(err): // the database found it itself
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, logFile, err)
	}
	return store, err
}

// lookAt checks a database before it is opened; one that is not there yet is as good.
func lookAt(path string) error {
	f, err := vfs.OS.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return checkBolt(f)
}

// fromSystem tells whether an error is the operating system's: no permission, no
// space, too many open files.
func fromSystem(err error) bool {
	var path *fs.PathError
	var number syscall.Errno
	return errors.As(err, &path) || errors.As(err, &number)
}

// guarded turns the panics of a damaged database, and the faults of one that was cut
// short under its memory map, into errors.
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %s: %v", ErrCorrupt, logFile, p)
		}
	}()
	return f()
}

// identify checks whose folder it is, and makes a new one ours.
func (d *disk) identify(c Config) error {
	path := filepath.Join(c.Dir, identityFile)
	ours := identity{Magic: identityMagic, Version: 1, Cluster: c.Cluster, ID: c.ID}
	there, err := vfs.Exists(vfs.OS, path)
	if err != nil {
		return err
	}
	if !there {
		if last, err := d.bolt.LastIndex(); err != nil || last > 0 {
			return errors.Join(fmt.Errorf("%w: there is a log, but %s is missing", ErrCorrupt, identityFile), err)
		}
		b, err := json.Marshal(ours)
		if err != nil {
			return err
		}
		if err := vfs.WriteFile(vfs.OS, path+".new", append(b, '\n')); err != nil {
			return err
		}
		if err := vfs.OS.Rename(path+".new", path); err != nil {
			return err
		}
		return vfs.OS.SyncDir(c.Dir)
	}
	b, err := vfs.ReadFile(vfs.OS, path, identityBytes)
	if err != nil {
		return err
	}
	var theirs identity
	if err := json.Unmarshal(b, &theirs); err != nil || theirs.Magic != identityMagic {
		return fmt.Errorf("%w: %s cannot be read", ErrCorrupt, identityFile)
	}
	if theirs.Version != ours.Version {
		return fmt.Errorf("%w: %s has version %d", fsm.ErrVersion, identityFile, theirs.Version)
	}
	if theirs != ours {
		return fmt.Errorf("%w: it is %s of cluster %q, not %s of %q; choose another folder", ErrForeign, theirs.ID, theirs.Cluster, c.ID, c.Cluster)
	}
	return nil
}

// verify reads the whole log and the newest snapshot.
func (d *disk) verify(logs raft.LogStore) error {
	first, err := logs.FirstIndex()
	if err != nil {
		return err
	}
	last, err := logs.LastIndex()
	if err != nil {
		return err
	}
	covered, err := d.verifySnapshot()
	if err != nil {
		return err
	}
	if first > covered+1 {
		return fmt.Errorf("%w: the log begins with entry %d, but the newest snapshot ends with %d", ErrCorrupt, first, covered)
	}
	for index := first; index > 0 && index <= last; index++ {
		var l raft.Log
		err := logs.GetLog(index, &l)
		if errors.Is(err, raft.ErrLogNotFound) && index <= covered {
			continue // a snapshot of the leader leaves a hole below itself
		}
		if errors.Is(err, raft.ErrLogNotFound) {
			return fmt.Errorf("%w: entry %d is missing from the log of %d to %d", ErrCorrupt, index, first, last)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// begunFile is there as soon as the log has entries. Such a log never becomes empty again,
// because compaction leaves the newest entries; a damaged page can make it look so.
const begunFile = "begun"

func markBegun(dir string) error { return vfs.ReplaceFile(vfs.OS, filepath.Join(dir, begunFile), nil) }

// begun refuses a log that had entries and has none.
func (d *disk) begun(dir string) error {
	last, err := d.bolt.LastIndex()
	if err != nil {
		return err
	}
	there, err := vfs.Exists(vfs.OS, filepath.Join(dir, begunFile))
	if err == nil && there && last == 0 {
		err = fmt.Errorf("%w: %s has lost its entries", ErrCorrupt, logFile)
	}
	return err
}

// verifySnapshot reads the newest snapshot and returns the index that it covers.
func (d *disk) verifySnapshot() (uint64, error) {
	metas, err := d.snapshots.List()
	if err != nil || len(metas) == 0 {
		return 0, err
	}
	meta, r, err := d.snapshots.Open(metas[0].ID) // checks its checksum
	if err != nil {
		return 0, fmt.Errorf("%w: snapshot %s: %w", ErrCorrupt, metas[0].ID, err)
	}
	defer r.Close()
	if _, err := fsm.Restore(r); err != nil {
		return 0, fmt.Errorf("%w: snapshot %s: %w", ErrCorrupt, metas[0].ID, err)
	}
	return meta.Index, nil
}

// sizes tells how much the log and the newest snapshot take; 0 for what cannot be seen.
func (d *disk) sizes() (log, snapshot int64) {
	if info, err := vfs.OS.Stat(d.path); err == nil {
		log = info.Size()
	}
	if metas, err := d.snapshots.List(); err == nil && len(metas) > 0 {
		snapshot = metas[0].Size
	}
	return log, snapshot
}

// Close closes the log.
func (d *disk) Close() error {
	if d.bolt == nil {
		return nil
	}
	return d.bolt.Close()
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkedStore keeps a checksum behind the data of every log entry. The database has
// checksums for its root pages alone.
type checkedStore struct {
	*raftboltdb.BoltStore
	begun func() error // marks the folder, once
}

// StoreLog implements raft.LogStore.
func (s checkedStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (s checkedStore) StoreLogs(logs []*raft.Log) error {
	sealed := make([]*raft.Log, len(logs))
	for i, l := range logs {
		c := *l // raft keeps using its own
		c.Data = binary.LittleEndian.AppendUint32(append([]byte(nil), l.Data...), sum(l, l.Data))
		sealed[i] = &c
	}
	if err := s.BoltStore.StoreLogs(sealed); err != nil {
		return err
	}
	return s.begun()
}

// GetLog implements raft.LogStore.
func (s checkedStore) GetLog(index uint64, l *raft.Log) error {
	err := s.BoltStore.GetLog(index, l)
	if errors.Is(err, raft.ErrLogNotFound) {
		return err
	}
	n := len(l.Data) - 4
	if err != nil || n < 0 || l.Index != index || sum(l, l.Data[:n]) != binary.LittleEndian.Uint32(l.Data[n:]) {
		return fmt.Errorf("%w: entry %d of %s", ErrCorrupt, index, logFile)
	}
	l.Data = l.Data[:n:n]
	return nil
}

// sum is the checksum of all that an entry means.
func sum(l *raft.Log, data []byte) uint32 {
	b := binary.LittleEndian.AppendUint64(nil, l.Index)
	b = binary.LittleEndian.AppendUint64(b, l.Term)
	b = append(b, byte(l.Type))
	c := crc32.Update(crc32.Checksum(b, castagnoli), castagnoli, data)
	return crc32.Update(c, castagnoli, l.Extensions)
}
