package vfs

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"time"
)

// uniqueBytes is the randomness in a name.
const uniqueBytes = 8

// Unique is 16 hexadecimal digits that make a file's name one that nobody else chooses.
func Unique() string {
	var b [uniqueBytes]byte
	rand.Read(b[:]) // documented never to fail
	return hex.EncodeToString(b[:])
}

// Draft is a folder that is written under a passing name and appears at its place whole, or not at all. Several processes may
// draft for one place: each has a folder of its own, and the first to publish wins.
//
//	.NAME.3f9c02d17be45a68.partial   beside NAME
//
// Its writer holds a lock on the folder. A draft that nobody holds was left by a kill, and the next one for the same place
// removes it. Where there are no locks, a draft is left alone for a day.
type Draft struct {
	// Dir is where to write.
	Dir string

	fsys  FS
	final string
	hold  File // nil where there are no locks
}

const (
	draftSuffix = ".partial"
	draftStale  = 24 * time.Hour
	draftTries  = 16
)

// NewDraft makes a folder for what is to become final. End it with Publish or Discard.
func NewDraft(fsys FS, final string) (*Draft, error) {
	sweepDrafts(fsys, final, time.Now())
	for range draftTries {
		d := &Draft{Dir: filepath.Join(filepath.Dir(final), draftPrefix(final)+Unique()+draftSuffix), fsys: fsys, final: final}
		if err := fsys.MkdirAll(d.Dir); err != nil {
			return nil, err
		}
		// Until the lock is held, somebody who sweeps may take the folder for a leftover. Then another name is tried.
		ok, err := d.take()
		if ok {
			return d, nil
		}
		d.Discard()
		if err != nil {
			return nil, err
		}
	}
	return nil, &fs.PathError{Op: "draft", Path: final, Err: errors.New("another process keeps removing what is written beside it")}
}

// take locks the folder; ok is false if somebody was quicker.
func (d *Draft) take() (ok bool, err error) {
	if d.hold, err = d.fsys.Open(d.Dir); err != nil {
		d.hold = nil
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return false, err
	}
	held, err := tryLock(d.hold)
	if err != nil { // no locks here
		err, d.hold = d.hold.Close(), nil
		return err == nil, err
	}
	there, err := Exists(d.fsys, d.Dir)
	return held && there, err
}

// Publish makes the draft appear at its place. If anything is there by now, even an empty folder, the error is fs.ErrExist. The
// files in it must have been synced by their writer.
func (d *Draft) Publish() error {
	err := Publish(d.fsys, d.Dir, d.final)
	if err == nil {
		d.release()
	}
	return err
}

// Discard removes the draft as well as it can. After a Publish that succeeded it does nothing.
func (d *Draft) Discard() {
	_ = d.fsys.RemoveAll(d.Dir) // what stays, the next draft sweeps
	d.release()
}

func (d *Draft) release() {
	if d.hold != nil {
		_ = d.hold.Close() // nothing was written through it
		d.hold = nil
	}
}

func draftPrefix(final string) string { return "." + filepath.Base(final) + "." }

// isDraft tells whether name is one that NewDraft gives for final, and not for another place whose name begins alike.
func isDraft(name, final string) bool {
	middle, ok := strings.CutPrefix(name, draftPrefix(final))
	if !ok {
		return false
	}
	if middle, ok = strings.CutSuffix(middle, draftSuffix); !ok {
		return false
	}
	b, err := hex.DecodeString(middle)
	return err == nil && len(b) == uniqueBytes
}

// sweepDrafts removes what killed writers left. It is housekeeping: whatever fails is tried again by the next.
func sweepDrafts(fsys FS, final string, now time.Time) {
	names, _ := fsys.ReadDir(filepath.Dir(final)) // the writer will see what is wrong there
	for _, name := range names {
		if isDraft(name, final) {
			sweepDraft(fsys, filepath.Join(filepath.Dir(final), name), now)
		}
	}
}

func sweepDraft(fsys FS, dir string, now time.Time) {
	info, err := fsys.Stat(dir)
	if err != nil || !info.IsDir() {
		return
	}
	hold, err := fsys.Open(dir)
	if err != nil {
		return
	}
	defer hold.Close()
	held, err := tryLock(hold)
	if err != nil { // no locks here: its age must tell
		held = !info.ModTime().IsZero() && now.Sub(info.ModTime()) > draftStale
	}
	if held {
		_ = fsys.RemoveAll(dir)
	}
}

// tryLock takes an open file or folder for this process alone, until it is closed; a kill closes it too. held is false if
// somebody else has it. The error says that there are no locks on this file system.
func tryLock(f File) (held bool, err error) {
	file, ok := f.(interface{ Fd() uintptr })
	if !ok {
		return false, errors.ErrUnsupported
	}
	return flock(file.Fd())
}
