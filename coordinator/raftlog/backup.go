package raftlog

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/internal/vfs"
)

// A backup is a head that says whose it is, and a snapshot. docs/formats/raft.md has the
// diagram.
const (
	backupMagic    = "SKNB"
	backupVersion  = 1
	backupHeadMax  = 4096
	restoredTerm   = 1 // of a log that begins anew
	restoringAside = ".restoring"
)

// BackupHead says whose a backup is.
type BackupHead struct {
	Cluster string `json:"cluster"`
	ID      string `json:"id"`    // of the coordinator that made it
	Index   uint64 `json:"index"` // of the last entry in it
	At      int64  `json:"at"`    // Unix milliseconds
}

// Backup writes the state with everything that was acknowledged before it was called,
// as a file that Restore reads.
func (n *Node) Backup(ctx context.Context, w io.Writer) error {
	s, err := n.Read(ctx)
	if err != nil {
		return err
	}
	return writeBackup(w, BackupHead{Cluster: n.config.Cluster, ID: n.config.ID, Index: s.Index, At: time.Now().UnixMilli()}, s)
}

func writeBackup(w io.Writer, h BackupHead, s *fsm.State) error {
	head, err := json.Marshal(h)
	if err != nil {
		return err
	}
	b := append([]byte(backupMagic), backupVersion, 0, 0, 0)
	b = append(binary.LittleEndian.AppendUint32(b, uint32(len(head))), head...)
	if _, err := w.Write(binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))); err != nil {
		return err
	}
	return s.Snapshot(w)
}

// ReadBackup reads what Backup wrote, to its end.
func ReadBackup(r io.Reader) (BackupHead, *fsm.State, error) {
	head, err := readBackupHead(r)
	if err != nil {
		return BackupHead{}, nil, fmt.Errorf("backup: %w", err)
	}
	s, err := fsm.Restore(r)
	if err != nil {
		return BackupHead{}, nil, fmt.Errorf("backup: %w", err)
	}
	if s.Index != head.Index {
		return BackupHead{}, nil, fmt.Errorf("backup: %w: it says it ends with entry %d, and ends with %d", ErrCorrupt, head.Index, s.Index)
	}
	return head, s, nil
}

func readBackupHead(r io.Reader) (h BackupHead, err error) {
	b := make([]byte, 12, 12+backupHeadMax+4)
	if _, err := io.ReadFull(r, b); err != nil {
		return h, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	n := binary.LittleEndian.Uint32(b[8:])
	switch {
	case string(b[:4]) != backupMagic || b[5]|b[6]|b[7] != 0 || n > backupHeadMax:
		return h, fmt.Errorf("%w: it is not a backup of coordinators", ErrCorrupt)
	case b[4] != backupVersion:
		return h, fmt.Errorf("%w: version %d, this one reads %d", fsm.ErrVersion, b[4], backupVersion)
	}
	b = b[:12+n+4]
	if _, err := io.ReadFull(r, b[12:]); err != nil {
		return h, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if crc32.Checksum(b[:12+n], castagnoli) != binary.LittleEndian.Uint32(b[12+n:]) {
		return h, fmt.Errorf("%w: the checksum of its head differs", ErrCorrupt)
	}
	if err := json.Unmarshal(b[12:12+n], &h); err != nil {
		return h, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return h, nil
}

// Restore makes the folder of a coordinator out of a backup: the only member of a
// cluster of the backup's name, from which others may be added again. The folder must
// not be there, or be empty; it appears whole or not at all. No coordinator of the old
// cluster may run again: to both clusters, the workers are theirs.
func Restore(dir, id, address string, backup io.Reader) (BackupHead, error) {
	head, s, err := ReadBackup(backup)
	if err != nil {
		return head, err
	}
	c := Config{Cluster: head.Cluster, ID: id, Dir: dir + restoringAside, Address: address}
	if id == "" || len(id) > nameBytesMax || address == "" || c.Cluster == "" || len(c.Cluster) > nameBytesMax {
		return head, fmt.Errorf("restore: %q at %q of cluster %q: an id, an address and a cluster are needed", id, address, head.Cluster)
	}
	if err := checkEmpty(dir); err != nil {
		return head, err
	}
	if err := vfs.OS.RemoveAll(c.Dir); err != nil { // of a restore that was killed
		return head, err
	}
	if err := restoreInto(c, s.Restored(time.Now().UnixMilli())); err != nil {
		return head, errors.Join(fmt.Errorf("restore into %s: %w", dir, err), vfs.OS.RemoveAll(c.Dir))
	}
	if err := vfs.OS.RemoveAll(dir); err != nil { // it is empty
		return head, err
	}
	if err := vfs.OS.RenameNew(c.Dir, dir); err != nil {
		return head, err
	}
	return head, vfs.OS.SyncDir(filepath.Dir(dir))
}

// checkEmpty refuses a folder that holds anything.
func checkEmpty(dir string) error {
	there, err := vfs.Exists(vfs.OS, dir)
	if err != nil || !there {
		return err
	}
	names, err := vfs.OS.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return fmt.Errorf("restore: %s holds %s; a backup is restored into a new folder only", dir, names[0])
	}
	return nil
}

// restoreInto writes identity, log and snapshot into a new folder.
func restoreInto(c Config, s *fsm.State) error {
	if err := vfs.OS.MkdirAll(c.Dir); err != nil {
		return err
	}
	d := &disk{path: filepath.Join(c.Dir, logFile)}
	var err error
	if d.bolt, err = raftboltdb.NewBoltStore(d.path); err != nil {
		return err
	}
	if err := errors.Join(d.identify(c), d.bolt.SetUint64([]byte("CurrentTerm"), restoredTerm), d.bolt.Close()); err != nil {
		return err
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(c.Dir, snapshotsKept, hclog.NewNullLogger())
	if err != nil {
		return err
	}
	members := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(c.ID), Address: raft.ServerAddress(c.Address)}}}
	_, encoder := raft.NewInmemTransport("") // writes addresses as they are, as ours does
	sink, err := snapshots.Create(raft.SnapshotVersionMax, s.Index, restoredTerm, members, s.Index, encoder)
	if err != nil {
		return err
	}
	if err := s.Snapshot(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return errors.Join(sink.Close(), vfs.OS.SyncDir(c.Dir))
}
