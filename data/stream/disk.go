package stream

import (
	"container/list"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/skein-ml/skein/internal/vfs"
)

// disk keeps the messages of records in a folder, each in a file named by the record's content hash, up to a limit of bytes.
// Nothing is synced: a file is only ever as good as its hash, which its reader checks. Processes may share a folder: what one
// throws out the other misses, no more. Safe for concurrent use.
//
//	"SKEINREC" | u32 version | u32 bytes of metadata | u64 bytes of body | metadata | body
type disk struct {
	fsys  vfs.FS
	dir   string
	limit int64
	temps atomic.Int64

	mu     sync.Mutex
	bytes  int64
	recent *list.List // of *diskFile, most recent first
	byName map[string]*list.Element
}

type diskFile struct {
	name  string
	bytes int64
}

const (
	diskMagic  = "SKEINREC"
	diskHead   = 8 + 4 + 4 + 8
	diskSuffix = ".record"
	diskTemp   = ".tmp"
)

// openDisk makes the folder or finds what is in it.
func openDisk(fsys vfs.FS, dir string, limit int64) (*disk, error) {
	d := &disk{fsys: fsys, dir: dir, limit: limit, recent: list.New(), byName: map[string]*list.Element{}}
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("cache of records: %w", err)
	}
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("cache of records: %w", err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, diskTemp) {
			_ = d.fsys.Remove(filepath.Join(dir, name)) // a killed process left it; if not, its writer writes it again another day
			continue
		}
		hash, ok := strings.CutSuffix(name, diskSuffix)
		if _, err := parseHash(hash); !ok || err != nil {
			continue
		}
		if info, err := fsys.Stat(filepath.Join(dir, name)); err == nil {
			d.note(name, info.Size())
		}
	}
	return d, nil
}

func diskName(leaf []byte) string { return hex.EncodeToString(leaf) + diskSuffix }

// note takes a file into account, and removes those unused for longest until all fit.
func (d *disk) note(name string, size int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e, ok := d.byName[name]; ok {
		d.recent.MoveToFront(e)
		return
	}
	d.byName[name] = d.recent.PushFront(&diskFile{name, size})
	d.bytes += size
	for d.bytes > d.limit && d.recent.Len() > 0 {
		d.forget(d.recent.Back())
	}
}

// forget removes a file; d.mu is held.
func (d *disk) forget(e *list.Element) {
	f := d.recent.Remove(e).(*diskFile)
	delete(d.byName, f.name)
	d.bytes -= f.bytes
	_ = d.fsys.Remove(filepath.Join(d.dir, f.name)) // gone already if another process removed it
}

// drop removes a record that turned out to be damaged.
func (d *disk) drop(leaf []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e, ok := d.byName[diskName(leaf)]; ok {
		d.forget(e)
	}
}

// has reports whether get would look for the record.
func (d *disk) has(leaf []byte) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, ok := d.byName[diskName(leaf)]
	if ok {
		d.recent.MoveToFront(e)
	}
	return ok
}

// get reads a record's message of at most bytesMax bytes.
func (d *disk) get(leaf []byte, bytesMax int64) (meta, body []byte, err error) {
	b, err := vfs.ReadFile(d.fsys, filepath.Join(d.dir, diskName(leaf)), bytesMax+diskHead)
	if err != nil {
		return nil, nil, err
	}
	le := binary.LittleEndian
	if len(b) < diskHead || string(b[:8]) != diskMagic || le.Uint32(b[8:]) != formatVersion {
		return nil, nil, errors.New("not a record of this version")
	}
	n, rest := uint64(le.Uint32(b[12:])), b[diskHead:]
	if n > uint64(len(rest)) || le.Uint64(b[16:]) != uint64(len(rest))-n {
		return nil, nil, errors.New("truncated record")
	}
	return rest[:n], rest[n:], nil
}

// put keeps a record's message.
func (d *disk) put(leaf, meta, body []byte) error {
	size := int64(diskHead + len(meta) + len(body))
	if d.has(leaf) || size > d.limit {
		return nil
	}
	le := binary.LittleEndian
	b := append(make([]byte, 0, size), diskMagic...)
	b = le.AppendUint32(b, formatVersion)
	b = le.AppendUint32(b, uint32(len(meta)))
	b = le.AppendUint64(b, uint64(len(body)))
	b = append(append(b, meta...), body...)
	name := diskName(leaf)
	temp := filepath.Join(d.dir, fmt.Sprintf("%s-%d%s", name, d.temps.Add(1), diskTemp))
	f, err := d.fsys.Create(temp)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = d.fsys.Rename(temp, filepath.Join(d.dir, name))
	}
	if err != nil {
		_ = d.fsys.Remove(temp) // the error that counts is the first
		return err
	}
	d.note(name, size)
	return nil
}
