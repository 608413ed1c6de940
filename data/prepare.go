package data

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/apache/arrow/go/v17/arrow/memory"

	"github.com/skein-ml/skein/internal/vfs"
)

// Spec says what to prepare.
type Spec struct {
	Train []string // JSONL files: paths or globs
	// Validation names files of their own, ValidationShare takes a share 0 < share < 1 of Train's examples by the hash of
	// what they say; at most one of the two is given.
	Validation      []string
	ValidationShare float64

	SequenceLength int     // T
	Packing        bool    // several documents in a pack, or one
	TooLong        TooLong // what becomes of longer examples; "" is split
	MaxBadLines    int     // bad lines that are skipped before preparation stops; 0: the first one stops it

	// CacheDir holds prepared data sets, each in a folder named by what it was made of.
	CacheDir string
	// Threads that tokenize; 0: one for each processor. They change the speed and nothing else.
	Threads int
	// Progress, if not nil, is told how many bytes of the sources have been read; from one goroutine.
	Progress func(read, total int64)
}

// EnsureDefaults fills in what was left out.
func (s *Spec) EnsureDefaults() {
	if s.TooLong == "" {
		s.TooLong = Split
	}
	if s.Threads <= 0 {
		s.Threads = runtime.GOMAXPROCS(0)
	}
}

// Validate names the first conflict.
func (s *Spec) Validate() error {
	switch {
	case len(s.Train) == 0:
		return errors.New("data.train names no file")
	case s.SequenceLength < 2 || s.SequenceLength > maxSeqLen:
		return fmt.Errorf("data.sequenceLength is %d, must be 2 to %d", s.SequenceLength, maxSeqLen)
	case !(s.ValidationShare >= 0 && s.ValidationShare < 1): // NaN too
		return fmt.Errorf("data.validation takes a share of %v, must be above 0 and below 1", s.ValidationShare)
	case s.ValidationShare > 0 && len(s.Validation) > 0:
		return errors.New("data.validation is both a share and files; choose one")
	case s.MaxBadLines < 0:
		return fmt.Errorf("data.maxBadLines is %d, must not be negative", s.MaxBadLines)
	case s.CacheDir == "":
		return errors.New("no folder for prepared data")
	}
	return s.TooLong.validate()
}

// Prepared is what Prepare made, or found.
type Prepared struct {
	Train, Validation string    // folders for Open; Validation is "" where there is none
	TrainManifest     *Manifest // what Train holds
	// ValidationManifest is what Validation holds, or nil.
	ValidationManifest *Manifest
	Cached             bool // it was there already
}

// The folders of one preparation.
const (
	trainName      = "train"
	validationName = "validation"
	tempPrefix     = ".preparing-"
)

// Prepare turns the sources into data sets for training and validation, or finds that it has done so before. The result
// appears whole or not at all. Errors name file and line, or the option that is at odds with the data.
func Prepare(ctx context.Context, fsys vfs.FS, spec Spec, enc Encoder) (*Prepared, error) {
	return prepare(ctx, fsys, spec, enc, memory.DefaultAllocator)
}

func prepare(ctx context.Context, fsys vfs.FS, spec Spec, enc Encoder, mem memory.Allocator) (*Prepared, error) {
	spec.EnsureDefaults()
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	j := &job{fsys: fsys, spec: spec, enc: enc, info: enc.Info(), mem: mem}
	var err error
	if j.train, err = openSources(ctx, fsys, spec.Train); err != nil {
		return nil, fmt.Errorf("data.train: %w", err)
	}
	if len(spec.Validation) > 0 {
		if j.validation, err = openSources(ctx, fsys, spec.Validation); err != nil {
			return nil, fmt.Errorf("data.validation: %w", err)
		}
	}
	final := filepath.Join(spec.CacheDir, j.key())
	if p, err := j.load(final); err == nil {
		p.Cached = true
		return p, nil
	}
	if err := j.make(ctx, final); err != nil {
		return nil, err
	}
	return j.load(final)
}

// job is one preparation.
type job struct {
	fsys              vfs.FS
	spec              Spec
	enc               Encoder
	info              EncoderInfo
	mem               memory.Allocator
	train, validation []Source
	read, total       int64 // bytes, for Progress
}

// key names a preparation by everything that its result depends on. The recipe's number goes up with every change of this
// package that makes other packs of the same input.
func (j *job) key() string {
	const recipe = 1
	sums := func(sources []Source) (sums []string) {
		for _, s := range sources {
			sums = append(sums, s.SHA256)
		}
		return sums
	}
	b, err := json.Marshal(map[string]any{ // a map is written with sorted keys
		"format": manifestVersion, "recipe": recipe, "train": sums(j.train), "validation": sums(j.validation), "share": j.spec.ValidationShare,
		"sequenceLength": j.spec.SequenceLength, "packing": j.spec.Packing, "tooLong": j.spec.TooLong, "maxBadLines": j.spec.MaxBadLines,
		"encoder": j.info,
	})
	if err != nil {
		panic(err) // strings and numbers; a NaN share was refused
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// load checks what lies in a folder.
func (j *job) load(dir string) (*Prepared, error) {
	p := &Prepared{Train: filepath.Join(dir, trainName)}
	var err error
	if p.TrainManifest, err = j.verify(p.Train); err != nil {
		return nil, err
	}
	if j.spec.ValidationShare > 0 || len(j.validation) > 0 {
		p.Validation = filepath.Join(dir, validationName)
		if p.ValidationManifest, err = j.verify(p.Validation); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (j *job) verify(dir string) (*Manifest, error) {
	m, err := ReadManifest(j.fsys, dir)
	if err != nil {
		return nil, err
	}
	d, err := open(j.fsys, dir, m, j.mem, verifyFile)
	if err != nil {
		return nil, err
	}
	return m, d.Close()
}

// make prepares in a folder beside the final one, and renames it when it is whole.
func (j *job) make(ctx context.Context, final string) (err error) {
	if err := j.fsys.MkdirAll(j.spec.CacheDir); err != nil {
		return fmt.Errorf("data: %w", err)
	}
	j.sweep()
	temp := filepath.Join(j.spec.CacheDir, tempPrefix+rand.Text())
	defer func() {
		if err != nil {
			_ = j.fsys.RemoveAll(temp) // the error that led here is the one to report
		}
	}()
	if err := j.fill(ctx, temp); err != nil {
		return err
	}
	if err := j.fsys.SyncDir(filepath.Join(temp, trainName)); err != nil {
		return err
	}
	if j.spec.ValidationShare > 0 || len(j.validation) > 0 {
		if err := j.fsys.SyncDir(filepath.Join(temp, validationName)); err != nil {
			return err
		}
	}
	err = vfs.Publish(j.fsys, temp, final)
	if err == nil {
		return nil
	}
	// Somebody else has published the same meanwhile, or what lies there is damaged.
	if _, loadErr := j.load(final); loadErr == nil {
		return j.fsys.RemoveAll(temp)
	}
	if rmErr := j.fsys.RemoveAll(final); rmErr != nil {
		return err
	}
	return vfs.Publish(j.fsys, temp, final)
}

// sweep removes what killed preparations left behind. A day is longer than any lasts.
func (j *job) sweep() {
	names, err := j.fsys.ReadDir(j.spec.CacheDir)
	if err != nil {
		return
	}
	for _, name := range names {
		dir := filepath.Join(j.spec.CacheDir, name)
		if !strings.HasPrefix(name, tempPrefix) {
			continue
		}
		if info, err := j.fsys.Stat(dir); err == nil && time.Since(info.ModTime()) > 24*time.Hour {
			_ = j.fsys.RemoveAll(dir) // housekeeping; the next preparation tries again
		}
	}
}

// fill writes both splits below temp.
func (j *job) fill(ctx context.Context, temp string) error {
	for _, s := range append(append([]Source(nil), j.train...), j.validation...) {
		j.total += s.Bytes
	}
	train, err := j.newSplit(temp, trainName, j.train)
	if err != nil {
		return err
	}
	defer train.release()
	held := train // where the examples go that the share takes; nowhere without one
	if j.spec.ValidationShare > 0 || len(j.validation) > 0 {
		sources := j.validation
		if sources == nil {
			sources = j.train
		}
		if held, err = j.newSplit(temp, validationName, sources); err != nil {
			return err
		}
		defer held.release()
	}
	if err := j.encodeAll(ctx, j.train, train, held, j.spec.ValidationShare); err != nil {
		return err
	}
	if len(j.validation) > 0 {
		if err := j.encodeAll(ctx, j.validation, held, held, 0); err != nil {
			return err
		}
	}
	if held != train {
		if err := held.finish(j.spec.ValidationShare); err != nil {
			return err
		}
	}
	return train.finish(j.spec.ValidationShare)
}

// split is one data set being made.
type split struct {
	name   string
	m      *Manifest
	w      *writer
	packer *packer
}

func (j *job) newSplit(temp, name string, sources []Source) (*split, error) {
	dir := filepath.Join(temp, name)
	if err := j.fsys.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("data: %w", err)
	}
	m := &Manifest{SequenceLength: j.spec.SequenceLength, Packing: j.spec.Packing, TooLong: j.spec.TooLong, Split: name,
		ValidationShare: j.spec.ValidationShare, Sources: sources, Tokenizer: j.info.TokenizerHash,
		Template: j.info.TemplateHash, Vocab: j.info.Vocab}
	s := &split{name: name, m: m, w: newWriter(j.fsys, dir, m, j.mem)}
	s.packer = newPacker(m.SequenceLength, m.Packing, &m.Report, s.w.append)
	return s, nil
}

func (s *split) release() { s.w.release() }

// finish closes the last pack and writes the manifest; a split with nothing in it is refused with the reason.
func (s *split) finish(share float64) error {
	if err := s.packer.flush(); err != nil {
		return err
	}
	if s.m.Report.Packs == 0 {
		return s.empty(share)
	}
	return s.w.finish()
}

// empty says why there is nothing.
func (s *split) empty(share float64) error {
	r := s.m.Report
	switch {
	case r.Examples == 0 && r.BadLines > 0:
		return fmt.Errorf("data.%s: all %s lines are bad; the first: %s", s.name, group(r.BadLines), r.BadLineErrors[0])
	case r.Examples == 0 && share > 0 && s.name == validationName:
		return fmt.Errorf("data.validation: a share of %g %% took none of the examples; name validation files or take more", 100*share)
	case r.Examples == 0:
		return fmt.Errorf("data.%s: the files hold no examples", s.name)
	case r.Dropped == r.Examples:
		return fmt.Errorf("data.%s: all %s examples are longer than %d tokens and data.tooLong is drop; choose split or truncate, or a longer sequence",
			s.name, group(r.Examples), s.m.SequenceLength)
	}
	return fmt.Errorf("data.%s: nothing can be learnt from any of the %s examples (%s); does the assistant say anything, with a weight other than 0, within data.sequenceLength?",
		s.name, group(r.Examples), r)
}
