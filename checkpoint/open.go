package checkpoint

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
)

// ErrNone is returned when a folder holds no published checkpoint.
var ErrNone = errors.New("no published checkpoint")

// ErrDamaged is returned for a published checkpoint whose files are not what its
// manifest says. The message names the file.
var ErrDamaged = errors.New("damaged checkpoint")

// ErrVersion is returned for a manifest, an object or a lineage that another version
// of the program wrote. It is not damage: it is never passed over, written over or
// removed.
var ErrVersion = errors.New("unknown format version")

// Checkpoint is a published checkpoint, open for reading. It is not safe for
// concurrent use; open it once more for that. It keeps one block of each kind in
// memory, and its objects' files open until Close.
type Checkpoint struct {
	Manifest Manifest

	fsys    vfs.FS
	folder  string
	file    string                   // of the manifest in folder
	objects []*objectReader          // by index, nil until used
	last    [kindCount]*objectReader // of each kind, the object that has a block in memory
	tensors map[string]int
}

// Published lists the steps that have a manifest in dir, ascending. leftovers are
// the folders of steps that have none: saves that did not end. Folders of the same
// name that hold nothing of ours are neither.
func Published(fsys vfs.FS, dir string) (steps, leftovers []int64, err error) {
	names, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("checkpoints: %w", err)
	}
	for _, name := range names {
		step, ok := parseStep(name)
		if !ok {
			continue
		}
		kind, err := kindOf(fsys, filepath.Join(dir, name))
		if err != nil {
			return nil, nil, fmt.Errorf("checkpoints: %w", err)
		}
		switch kind {
		case published:
			steps = append(steps, step)
		case unfinished:
			leftovers = append(leftovers, step)
		}
	}
	slices.Sort(steps)
	slices.Sort(leftovers)
	return steps, leftovers, nil
}

var stepPattern = regexp.MustCompile(`^step-\d{8,18}$`)

func parseStep(name string) (int64, bool) {
	if !stepPattern.MatchString(name) {
		return 0, false
	}
	step, err := strconv.ParseInt(name[len("step-"):], 10, 64)
	return step, err == nil && stepName(step) == name
}

// Open opens the checkpoint of a step and checks its manifest. The objects are
// checked as they are read, or all at once by Verify.
func Open(fsys vfs.FS, dir string, step int64) (*Checkpoint, error) {
	c := &Checkpoint{fsys: fsys, folder: filepath.Join(dir, stepName(step)), file: manifestName}
	file, err := vfs.ReadFile(fsys, c.path(), manifestBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("checkpoint of step %d in %s: %w", step, dir, ErrNone)
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	return c.decode(file, step)
}

// OpenNamed opens exactly the manifest that WriteManifest gave this name, whether it
// is committed or not. A file whose bytes are not those that the name says is damaged.
func OpenNamed(fsys vfs.FS, dir, name string) (*Checkpoint, error) {
	c, _, err := openNamed(fsys, dir, name)
	return c, err
}

// openNamed also returns the manifest's bytes.
func openNamed(fsys vfs.FS, dir, name string) (*Checkpoint, []byte, error) {
	step, _, sum, err := parseManifestPath(name)
	if err != nil {
		return nil, nil, fmt.Errorf("checkpoint: %w", err)
	}
	c := &Checkpoint{fsys: fsys, folder: filepath.Join(dir, stepName(step)), file: baseName(name)}
	file, err := vfs.ReadFile(fsys, c.path(), manifestBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%w: %s is missing; checkpoint.store must be one folder that all machines see", ErrDamaged, c.path())
	}
	if err != nil {
		return nil, nil, fmt.Errorf("checkpoint: %w", err)
	}
	if sha256.Sum256(file) != sum {
		return nil, nil, fmt.Errorf("%w: %s does not have the SHA-256 of its name", ErrDamaged, c.path())
	}
	c, err = c.decode(file, step)
	return c, file, err
}

// path is where the manifest lies.
func (c *Checkpoint) path() string { return filepath.Join(c.folder, c.file) }

// decode takes up a manifest's bytes.
func (c *Checkpoint) decode(file []byte, step int64) (*Checkpoint, error) {
	var err error
	if c.Manifest, err = DecodeManifest(file); err != nil {
		return nil, c.unreadable(err)
	}
	if c.Manifest.Step != step {
		return nil, fmt.Errorf("%w: %s says step %d", ErrDamaged, c.path(), c.Manifest.Step)
	}
	c.objects = make([]*objectReader, len(c.Manifest.Objects))
	c.tensors = make(map[string]int, len(c.Manifest.Tensors))
	for i, t := range c.Manifest.Tensors {
		c.tensors[t.Name] = i
	}
	return c, nil
}

// unreadable says what is wrong with a manifest that does not decode.
func (c *Checkpoint) unreadable(err error) error {
	path := c.path()
	if errors.Is(err, ErrVersion) {
		return fmt.Errorf("checkpoint: %s %w", path, err)
	}
	kind, kindErr := kindOf(c.fsys, c.folder)
	if kindErr != nil {
		return fmt.Errorf("checkpoint: %w", kindErr)
	}
	if kind == foreign {
		return fmt.Errorf("%s is of another program: %w", path, ErrNone)
	}
	return fmt.Errorf("%w: %s %w", ErrDamaged, path, err)
}

// Latest opens the newest published checkpoint of dir and verifies all of it. A
// damaged one is an error that names the file, unless fallback is set: then the one
// before is taken. One of another version is always an error, ErrVersion: to pass it
// over would train again, over it, what is there. notices says, one line each, what was passed over. With nothing
// published the error is ErrNone.
func Latest(fsys vfs.FS, dir string, fallback bool) (c *Checkpoint, notices []string, err error) {
	steps, leftovers, err := Published(fsys, dir)
	if err != nil {
		return nil, nil, err
	}
	for _, step := range leftovers {
		notices = append(notices, fmt.Sprintf("%s was not finished: passed over", filepath.Join(dir, stepName(step))))
	}
	for _, step := range slices.Backward(steps) {
		c, err := openVerified(fsys, dir, step)
		if err == nil {
			return c, notices, nil
		}
		if !errors.Is(err, ErrDamaged) || !fallback {
			return nil, notices, err
		}
		notices = append(notices, err.Error()+": passed over")
	}
	return nil, notices, fmt.Errorf("%s: %w", dir, ErrNone)
}

func openVerified(fsys vfs.FS, dir string, step int64) (*Checkpoint, error) {
	c, err := Open(fsys, dir, step)
	if err != nil {
		return nil, err
	}
	if err := c.Verify(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close closes the objects' files.
func (c *Checkpoint) Close() error {
	var errs []error
	for i, o := range c.objects {
		if o != nil {
			errs = append(errs, o.file.Close())
			c.objects[i] = nil
		}
	}
	c.last = [kindCount]*objectReader{}
	return errors.Join(errs...)
}

// Folder is where the checkpoint lies.
func (c *Checkpoint) Folder() string { return c.folder }

// damaged says which object is wrong. Errors of the file system that say nothing
// about the content stay what they are.
func (c *Checkpoint) damaged(object int, err error) error {
	path := filepath.Join(c.folder, c.Manifest.Objects[object].File)
	var system *fs.PathError
	if errors.As(err, &system) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("checkpoint: %w", err) // which names the file
	}
	if errors.Is(err, ErrVersion) {
		return fmt.Errorf("checkpoint: %s %w", path, err)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.New("is missing")
	}
	return fmt.Errorf("%w of step %d: %s %w", ErrDamaged, c.Manifest.Step, path, err)
}

// object opens an object at its first use and compares it with the manifest.
func (c *Checkpoint) object(i int) (*objectReader, error) {
	if c.objects[i] != nil {
		return c.objects[i], nil
	}
	want := c.Manifest.Objects[i]
	f, err := c.fsys.Open(filepath.Join(c.folder, want.File))
	if err != nil {
		return nil, c.damaged(i, err)
	}
	o, err := openObject(f)
	if err == nil {
		err = o.is(c.Manifest.Step, want)
	}
	if err != nil {
		return nil, errors.Join(c.damaged(i, err), f.Close())
	}
	c.objects[i] = o
	return o, nil
}

// Verify reads every object and compares sizes, checksums and SHA-256 with the
// manifest. An error names the file.
func (c *Checkpoint) Verify() error { return c.verify(true) }

func (c *Checkpoint) verify(deep bool) error {
	var last *objectReader
	for i := range c.objects {
		o, err := c.object(i)
		if err != nil {
			return err
		}
		if last != nil {
			last.handOver(o)
		}
		if err := o.verify(deep); err != nil {
			return c.damaged(i, err)
		}
		last = o
	}
	if last != nil {
		last.cache, last.at = nil, -1
	}
	c.last = [kindCount]*objectReader{}
	return nil
}

// ReadRange fills dst with elements from elemOff on of a tensor's weights or
// moments. What it gives is verified block by block.
func (c *Checkpoint) ReadRange(tensor string, kind Kind, elemOff int64, dst []float32) error {
	var buf [4096]byte
	for len(dst) > 0 {
		le := buf[:min(len(buf), len(dst)*4)]
		if err := c.ReadBytes(tensor, kind, elemOff, le); err != nil {
			return err
		}
		n := len(le) / 4
		for i := range n {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(le[i*4:]))
		}
		dst, elemOff = dst[n:], elemOff+int64(n)
	}
	return nil
}

// ReadBytes is ReadRange for little-endian fp32 bytes.
func (c *Checkpoint) ReadBytes(tensor string, kind Kind, elemOff int64, le []byte) error {
	i, ok := c.tensors[tensor]
	if !ok || kind >= kindCount {
		return fmt.Errorf("checkpoint %s: it has no %v of tensor %q", c.folder, kind, tensor)
	}
	t := &c.Manifest.Tensors[i]
	if elemOff < 0 || len(le)%4 != 0 || elemOff > t.Elems-int64(len(le)/4) {
		return fmt.Errorf("checkpoint %s: %d bytes from element %d of tensor %q, which has %d elements", c.folder, len(le), elemOff, tensor, t.Elems)
	}
	skip := elemOff * 4
	for _, r := range *t.ranges(kind) {
		if skip >= r.Length {
			skip -= r.Length
			continue
		}
		n := min(r.Length-skip, int64(len(le)))
		if n == 0 {
			break
		}
		o, err := c.object(r.Object)
		if err != nil {
			return err
		}
		if last := c.last[kind]; last != nil && last != o {
			last.handOver(o)
		}
		c.last[kind] = o
		if err := o.read(le[:n], r.Offset-headerBytes+skip); err != nil {
			return c.damaged(r.Object, err)
		}
		le, skip = le[n:], 0
	}
	return nil
}

// Source reads the checkpoint as the layout of a table, which may be of any world
// size; padding reads as zeros. It fails with ErrForeign for another model's table.
// So a checkpoint can be loaded by pieces, and saved again for another world size.
func (c *Checkpoint) Source(table shard.Table) (Source, error) {
	if table.Fingerprint() != c.Manifest.Fingerprint {
		return nil, fmt.Errorf("%w: %s holds %q with other tensors than the model to be loaded", ErrForeign, c.folder, c.Manifest.Model)
	}
	for i := range table.Buckets() {
		for _, t := range table.Bucket(i).Tensors() {
			if j, ok := c.tensors[t.Tensor]; !ok || c.Manifest.Tensors[j].Elems != t.Bucket.Len() {
				return nil, fmt.Errorf("%w: %s has no tensor %q of %d elements", ErrDamaged, c.folder, t.Tensor, t.Bucket.Len())
			}
		}
	}
	return laidOut{c, table}, nil
}

// laidOut is a checkpoint in the layout of a table.
type laidOut struct {
	c     *Checkpoint
	table shard.Table
}

// ReadState implements Source.
func (s laidOut) ReadState(kind Kind, bucket int, lo int64, le []byte) error {
	clear(le)
	for _, span := range s.table.SpansOf(bucket, lo, lo+int64(len(le)/4)) {
		part := le[(span.Bucket.Lo-lo)*4 : (span.Bucket.Hi-lo)*4]
		if err := s.c.ReadBytes(span.Tensor, kind, span.Lo, part); err != nil {
			return err
		}
	}
	return nil
}

// Want is what a job expects of a checkpoint that it goes on from.
type Want struct {
	Job, Model  string       // names, for the message
	Fingerprint shard.Digest // of the model's shape
	Spec        shard.Digest // of the resolved job
	Data        shard.Digest // content hash of the training data
}

// Check refuses a checkpoint of another model, spec or data set with ErrForeign.
func (c *Checkpoint) Check(w Want) error {
	if err := w.check(c.Manifest); err != nil {
		return fmt.Errorf("%s: %w", c.folder, err)
	}
	return nil
}

func (w Want) check(m Manifest) error {
	const remedy = "set checkpoint.store to another folder, or go on with the job that made it"
	if m.Fingerprint != w.Fingerprint {
		return fmt.Errorf("%w: it is of model %q (job %q), this is model %q (job %q); %s", ErrForeign, m.Model, m.Job, w.Model, w.Job, remedy)
	}
	if m.Spec != w.Spec {
		return fmt.Errorf("%w: it is of job %q (spec %s), this is job %q (spec %s); %s", ErrForeign, m.Job, m.Spec.Short(), w.Job, w.Spec.Short(), remedy)
	}
	if m.Data != w.Data {
		return fmt.Errorf("%w: job %q was trained on data %s, the data now is %s; bring the old data back, or set checkpoint.store to another folder",
			ErrForeign, m.Job, m.Data.Short(), w.Data.Short())
	}
	return nil
}
