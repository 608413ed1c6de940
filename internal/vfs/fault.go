package vfs

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"syscall"
)

// Op is one kind of operation, or several as a mask.
type Op uint

// Operations that Fault counts. OpWrite covers Write and WriteAt.
const (
	OpCreate Op = 1 << iota
	OpOpen
	OpWrite
	OpSync
	OpClose
	OpRename
	OpRemove
	OpMkdir
	OpSyncDir
	OpRead

	// OpChange is every operation that changes the file system or decides what survives a crash.
	OpChange = OpCreate | OpWrite | OpSync | OpRename | OpRemove | OpMkdir | OpSyncDir
	// OpAny is everything.
	OpAny = OpChange | OpOpen | OpClose | OpRead
)

var opNames = map[Op]string{OpCreate: "create", OpOpen: "open", OpWrite: "write", OpSync: "sync", OpClose: "close",
	OpRename: "rename", OpRemove: "remove", OpMkdir: "mkdir", OpSyncDir: "syncdir", OpRead: "read"}

// String names a single operation.
func (o Op) String() string {
	if s, ok := opNames[o]; ok {
		return s
	}
	return fmt.Sprintf("op(%#x)", uint(o))
}

// ErrInjected is the error of a rule that names none.
var ErrInjected = errors.New("injected fault")

// ErrCrashed is what every operation returns after a crash rule struck.
var ErrCrashed = errors.New("injected crash: the process is gone")

// Rule is one planned fault. The zero value of each field is the common case.
type Rule struct {
	// Ops that the rule counts; 0 means OpChange.
	Ops Op
	// Path, if set, restricts the rule to names that contain it.
	Path string
	// Nth matching operation that fails, from 1.
	Nth int
	// Err it fails with; nil means ErrInjected.
	Err error
	// Torn is how many bytes of a failing write still reach the file.
	Torn int
	// Sticky makes every later matching operation fail too.
	Sticky bool
	// Crash makes every later operation of any kind fail with ErrCrashed. A write that crashes is torn by Torn.
	Crash bool
	// Do, if set, makes the operation wait for it and then go ahead instead of failing: what others do to the file system at
	// that moment.
	Do func()

	seen int
}

// FailNth fails the nth operation of these kinds with err.
func FailNth(ops Op, nth int, err error) Rule { return Rule{Ops: ops, Nth: nth, Err: err} }

// TearWrite lets only the first bytes of the nth write through, then fails it.
func TearWrite(nth, bytes int) Rule { return Rule{Ops: OpWrite, Nth: nth, Torn: bytes} }

// CrashAt fails the nth changing operation and everything after it, as a kill at that moment would.
func CrashAt(nth int) Rule { return Rule{Ops: OpChange, Nth: nth, Err: ErrCrashed, Crash: true} }

// Fault wraps an FS and misbehaves by its rules. It is safe for concurrent use.
type Fault struct {
	fs FS

	mu       sync.Mutex
	rules    []Rule
	crashed  bool
	changes  int
	space    int64
	hasSpace bool
	log      []string
}

// NewFault wraps fs with rules. Without rules it only counts.
func NewFault(fs FS, rules ...Rule) *Fault {
	return &Fault{fs: fs, rules: append([]Rule(nil), rules...)}
}

// LimitSpace makes writes fail with ENOSPC once so many bytes more have been written. The write that hits the limit is torn
// there, as on a real disk; removing files gives nothing back.
func (f *Fault) LimitSpace(bytes int64) *Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.space, f.hasSpace = bytes, true
	return f
}

// Changes is the number of changing operations asked for so far: a test that crashes at each n in 1…Changes() of an
// undisturbed run has tried every moment.
func (f *Fault) Changes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changes
}

// Log lists the changing operations so far, as "op name".
func (f *Fault) Log() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.log...)
}

// step counts one operation and says how it fails, if it does, and how many of n bytes to let through.
func (f *Fault) step(op Op, name string, n int) (allow int, err error) {
	allow, do, err := f.judge(op, name, n)
	if do != nil {
		do() // not under the lock: it may use f, and other operations need not wait for it
	}
	return allow, err
}

func (f *Fault) judge(op Op, name string, n int) (allow int, do func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.crashed {
		return 0, nil, &fs.PathError{Op: op.String(), Path: name, Err: ErrCrashed}
	}
	if op&OpChange != 0 {
		f.changes++
		f.log = append(f.log, op.String()+" "+name)
	}
	for i := range f.rules {
		r := &f.rules[i]
		if !r.strikes(op, name) {
			continue
		}
		if r.Do != nil {
			return n, r.Do, nil
		}
		f.crashed = f.crashed || r.Crash
		cause := r.Err
		if cause == nil {
			cause = ErrInjected
		}
		return min(r.Torn, n), nil, &fs.PathError{Op: op.String(), Path: name, Err: cause}
	}
	if op == OpWrite && f.hasSpace {
		if int64(n) > f.space {
			allow = int(f.space)
			f.space = 0
			return allow, nil, &fs.PathError{Op: "write", Path: name, Err: syscall.ENOSPC}
		}
		f.space -= int64(n)
	}
	return n, nil, nil
}

// strikes counts a matching operation and says whether it is the one to fail.
func (r *Rule) strikes(op Op, name string) bool {
	ops := r.Ops
	if ops == 0 {
		ops = OpChange
	}
	if ops&op == 0 || !strings.Contains(name, r.Path) {
		return false
	}
	r.seen++
	return r.seen == r.Nth || (r.Sticky && r.seen > r.Nth)
}

// Create implements FS.
func (f *Fault) Create(name string) (File, error) {
	return f.file(OpCreate, name, f.fs.Create)
}

// Open implements FS.
func (f *Fault) Open(name string) (File, error) { return f.file(OpOpen, name, f.fs.Open) }

// OpenReadWrite implements FS.
func (f *Fault) OpenReadWrite(name string) (File, error) {
	return f.file(OpOpen, name, f.fs.OpenReadWrite)
}

func (f *Fault) file(op Op, name string, open func(string) (File, error)) (File, error) {
	if _, err := f.step(op, name, 0); err != nil {
		return nil, err
	}
	file, err := open(name)
	if err != nil {
		return nil, err
	}
	return &faultFile{File: file, fault: f}, nil
}

// Rename implements FS.
func (f *Fault) Rename(oldname, newname string) error {
	if _, err := f.step(OpRename, newname, 0); err != nil {
		return err
	}
	return f.fs.Rename(oldname, newname)
}

// RenameNew implements FS.
func (f *Fault) RenameNew(oldname, newname string) error {
	if _, err := f.step(OpRename, newname, 0); err != nil {
		return err
	}
	return f.fs.RenameNew(oldname, newname)
}

// Remove implements FS.
func (f *Fault) Remove(name string) error {
	if _, err := f.step(OpRemove, name, 0); err != nil {
		return err
	}
	return f.fs.Remove(name)
}

// RemoveAll implements FS; it counts as one operation.
func (f *Fault) RemoveAll(name string) error {
	if _, err := f.step(OpRemove, name, 0); err != nil {
		return err
	}
	return f.fs.RemoveAll(name)
}

// MkdirAll implements FS.
func (f *Fault) MkdirAll(name string) error {
	if _, err := f.step(OpMkdir, name, 0); err != nil {
		return err
	}
	return f.fs.MkdirAll(name)
}

// SyncDir implements FS.
func (f *Fault) SyncDir(name string) error {
	if _, err := f.step(OpSyncDir, name, 0); err != nil {
		return err
	}
	return f.fs.SyncDir(name)
}

// Stat implements FS.
func (f *Fault) Stat(name string) (fs.FileInfo, error) {
	if _, err := f.step(OpRead, name, 0); err != nil {
		return nil, err
	}
	return f.fs.Stat(name)
}

// ReadDir implements FS.
func (f *Fault) ReadDir(name string) ([]string, error) {
	if _, err := f.step(OpRead, name, 0); err != nil {
		return nil, err
	}
	return f.fs.ReadDir(name)
}

type faultFile struct {
	File
	fault *Fault
}

func (f *faultFile) Read(p []byte) (int, error) {
	if _, err := f.fault.step(OpRead, f.Name(), 0); err != nil {
		return 0, err
	}
	return f.File.Read(p)
}

func (f *faultFile) ReadAt(p []byte, off int64) (int, error) {
	if _, err := f.fault.step(OpRead, f.Name(), 0); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *faultFile) Write(p []byte) (int, error) {
	return f.write(p, f.File.Write)
}

func (f *faultFile) WriteAt(p []byte, off int64) (int, error) {
	return f.write(p, func(q []byte) (int, error) { return f.File.WriteAt(q, off) })
}

func (f *faultFile) write(p []byte, to func([]byte) (int, error)) (int, error) {
	allow, err := f.fault.step(OpWrite, f.Name(), len(p))
	if err == nil {
		return to(p)
	}
	if allow == 0 {
		return 0, err
	}
	n, werr := to(p[:allow])
	if werr != nil {
		return n, werr
	}
	return n, err
}

func (f *faultFile) Sync() error {
	if _, err := f.fault.step(OpSync, f.Name(), 0); err != nil {
		return err
	}
	return f.File.Sync()
}

// Close always closes the file below, so that a test that crashes leaks no descriptor.
func (f *faultFile) Close() error {
	_, err := f.fault.step(OpClose, f.Name(), 0)
	if cerr := f.File.Close(); err == nil {
		err = cerr
	}
	return err
}
