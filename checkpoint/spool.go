package checkpoint

import (
	"context"
	"errors"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
)

// spoolBuffers is one block that is read, one that is written, and one between them.
const spoolBuffers = 3

// spool writes objects from a goroutine of its own, which hashes and writes one block
// while the next one is read. All that changes the file system during SavePart
// happens there, in the order in which it was asked for.
type spool struct {
	fsys       vfs.FS
	folder     string
	step       int64
	generation uint64
	through    bool  // the source is read to its end even if nothing can be written any more
	failed     error // why nothing can be

	ctx   context.Context // ends with the caller's, and when writing fails
	group *errgroup.Group
	work  chan spoolWork
	free  chan []byte

	// Of the goroutine until wait has returned.
	order   []*spooled
	open    map[*spooled]bool // of these, what is not closed yet
	objects []Object
	created []string // paths that were not there before
}

// spooled is an object under way.
type spooled struct {
	kind  Kind
	rank  shard.Rank
	elems int64

	// Of the goroutine.
	temp string
	file vfs.File
	w    *objectWriter
	sum  shard.Digest
}

// spoolWork is a block of an object, or its end.
type spoolWork struct {
	object *spooled
	le     []byte
	end    bool
}

// start starts the spool with buffers of at most bytes and at most a block.
func (s *spool) start(ctx context.Context, bytes int64) {
	s.work = make(chan spoolWork, spoolBuffers) // room for every buffer, so that the reader waits for buffers only
	s.free, s.open = make(chan []byte, spoolBuffers), map[*spooled]bool{}
	for range spoolBuffers {
		s.free <- make([]byte, min(bytes, blockBytes))
	}
	s.group, s.ctx = errgroup.WithContext(ctx)
	s.group.Go(s.run)
}

// buffer waits for a free buffer.
func (s *spool) buffer() ([]byte, error) {
	if err := s.ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case b := <-s.free:
		return b[:cap(b)], nil
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

// put hands over what buffer gave, or a part of it, or with end says that there are no more.
func (s *spool) put(w spoolWork) error {
	select {
	case s.work <- w:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// wait ends the goroutine and returns what it wrote. Unless readErr is nil and all
// went well, nothing that it wrote stays.
func (s *spool) wait(readErr error) ([]Object, error) {
	if readErr != nil {
		s.group.Go(func() error { return readErr }) // so that nothing more is written
	}
	close(s.work)
	if err := s.group.Wait(); err != nil {
		s.discard()
		return nil, err
	}
	return s.objects, nil
}

func (s *spool) run() error {
	for w := range s.work {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if s.failed == nil {
			s.failed = s.write(w)
		}
		if s.failed != nil && !s.through {
			return unwritten{s.failed}
		}
		if !w.end {
			s.free <- w.le // never waits: it has room for every buffer
		}
	}
	if s.failed != nil {
		return unwritten{s.failed}
	}
	// Only now, for disks take their time and the source is free again already.
	for _, o := range s.order {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if err := s.end(o); err != nil {
			return unwritten{err}
		}
	}
	return nil
}

func (s *spool) write(w spoolWork) (err error) {
	o := w.object
	if o.file == nil {
		if err := s.begin(o); err != nil {
			return err
		}
	}
	if w.end {
		o.sum, err = o.w.finish()
		return err
	}
	return o.w.data(w.le)
}

func (s *spool) begin(o *spooled) (err error) {
	o.temp = filepath.Join(s.folder, tempName(objectStem(o.kind, o.rank, s.generation)))
	if o.file, err = s.fsys.Create(o.temp); err != nil {
		return err
	}
	s.order, s.open[o] = append(s.order, o), true
	o.w, err = newObjectWriter(o.file, header{kind: o.kind, step: s.step, rank: o.rank, elems: o.elems})
	return err
}

// end makes an object durable and gives it its name.
func (s *spool) end(o *spooled) error {
	if err := o.file.Sync(); err != nil {
		return err // discard closes and removes the file
	}
	delete(s.open, o)
	object := Object{objectName(o.kind, o.rank, s.generation, o.sum), o.kind, o.rank, o.elems, objectBytes(o.elems), o.sum}
	err := o.file.Close()
	if err == nil {
		err = s.place(o.temp, object)
	}
	if err != nil {
		_ = s.fsys.Remove(o.temp) // best effort: the first error is the one to report
		return err
	}
	s.objects = append(s.objects, object)
	return nil
}

// place renames a finished object, unless a whole one of that name is there: a name
// holds the hash of its content, so that one has these bytes. One that was damaged is
// replaced, for the same reason.
func (s *spool) place(temp string, object Object) error {
	path := filepath.Join(s.folder, object.File)
	there, err := vfs.Exists(s.fsys, path)
	if err != nil {
		return err
	}
	if there && isWhole(s.fsys, path, s.step, object) {
		return s.fsys.Remove(temp)
	}
	if err := s.fsys.Rename(temp, path); err != nil {
		return err
	}
	if !there {
		s.created = append(s.created, path)
	}
	return nil
}

// isWhole reads a file and tells whether it is the object: size, header, hash and
// every block's checksum.
func isWhole(fsys vfs.FS, path string, step int64, want Object) bool {
	f, err := fsys.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	o, err := openObject(f)
	return err == nil && o.is(step, want) == nil && o.verify(false) == nil
}

// discard removes what this spool wrote, as well as it can. What stays is named by no
// manifest. An object of generation 0 stays once it has its name: step 0 is imported
// by one worker after the other until one succeeds, and the next one may have found it
// already. In every other generation a rank has one worker.
func (s *spool) discard() {
	for o := range s.open {
		_ = o.file.Close()
		_ = s.fsys.Remove(o.temp)
	}
	if s.generation == 0 {
		return
	}
	for _, path := range s.created {
		_ = s.fsys.Remove(path)
	}
}

// is compares an open object with what a manifest says of it.
func (o *objectReader) is(step int64, want Object) error {
	if o.sum != want.SHA256 || o.head != (header{want.Kind, step, want.Elems, want.Rank}) {
		return errors.New("is not the object that the manifest names")
	}
	return nil
}
