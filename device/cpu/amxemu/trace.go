//go:build linux && amd64

package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/skein-ml/skein/device/cpu/amxemu/tile"
)

// tracer follows a program and everything that it starts.
type tracer struct {
	main    int
	threads map[int]*thread

	instructions, stops int
}

// thread is one traced thread.
type thread struct {
	tiles tile.State
	code  map[uint64][]tile.Instruction // runs of tile instructions, by address: text does not change
}

func newThread() *thread { return &thread{code: map[uint64][]tile.Instruction{}} }

func newTracer(pid int) *tracer { return &tracer{main: pid, threads: map[int]*thread{}} }

// loop serves stops until the program ends, and returns its exit code.
func (t *tracer) loop() (int, error) {
	for first := true; ; {
		var status unix.WaitStatus
		tid, err := unix.Wait4(-1, &status, unix.WALL, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait: %w", err)
		}
		if status.Exited() || status.Signaled() {
			delete(t.threads, tid)
			if tid != t.main {
				continue
			}
			if status.Signaled() {
				return 128 + int(status.Signal()), nil
			}
			return status.ExitStatus(), nil
		}
		if first {
			first = false
			err = t.begin(tid)
		} else {
			err = t.stopped(tid, status)
		}
		// A thread may be gone by now, killed by another one.
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return 0, err
		}
	}
}

// begin takes over at the program's first instruction.
func (t *tracer) begin(tid int) error {
	const options = unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK |
		unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(tid, options); err != nil {
		return fmt.Errorf("ptrace: %w", err)
	}
	t.threads[tid] = newThread()
	return unix.PtraceCont(tid, 0)
}

// stopped lets a thread go on after one stop.
func (t *tracer) stopped(tid int, status unix.WaitStatus) error {
	t.stops++
	th, known := t.threads[tid]
	if !known {
		th = newThread()
		t.threads[tid] = th
	}
	sig := status.StopSignal()
	switch {
	case sig == unix.SIGTRAP && status.TrapCause() > 0: // clone, fork, exec
		if status.TrapCause() == unix.PTRACE_EVENT_EXEC {
			t.threads[tid] = newThread()
		}
		sig = 0
	case sig == unix.SIGSTOP && !known: // how a new thread begins to be traced
		sig = 0
	case sig == unix.SIGILL:
		n, err := t.emulate(tid, th)
		if err != nil {
			return err
		}
		if n > 0 {
			sig = 0
		}
	}
	return unix.PtraceCont(tid, int(sig))
}

// emulate runs the tile instructions at the thread's program counter and returns how
// many there were.
func (t *tracer) emulate(tid int, th *thread) (n int, err error) {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &regs); err != nil {
		return 0, err
	}
	mem := memory(tid)
	for _, in := range th.run(regs.Rip, mem) {
		addr, stride := operand(in, &regs)
		if err := th.tiles.Run(in, addr, stride, mem); err != nil {
			fmt.Fprintf(os.Stderr, "amxemu: thread %d, %v at %#x: %v\n", tid, in.Op, regs.Rip, err)
			return 0, nil
		}
		regs.Rip += uint64(in.Len)
		n++
	}
	t.instructions += n
	if n == 0 {
		return 0, nil
	}
	return n, unix.PtraceSetRegs(tid, &regs)
}

// run is the tile instructions at addr up to the first other one; none if addr cannot be
// read, for then the signal is the program's own.
func (th *thread) run(addr uint64, mem memory) (list []tile.Instruction) {
	if list, ok := th.code[addr]; ok {
		return list
	}
	code := make([]byte, 64)
	if err := mem.Read(addr, 0, [][]byte{code}); err != nil { // perhaps at the end of a page
		code = code[:16]
		if err := mem.Read(addr, 0, [][]byte{code}); err != nil {
			return nil
		}
	}
	for in, ok := tile.Decode(code); ok; in, ok = tile.Decode(code) {
		list = append(list, in)
		code = code[in.Len:]
	}
	th.code[addr] = list
	return list
}

// operand is the address of a memory operand, and its index as stride.
func operand(in tile.Instruction, regs *unix.PtraceRegs) (addr uint64, stride int64) {
	file := [...]uint64{
		regs.Rax, regs.Rcx, regs.Rdx, regs.Rbx, regs.Rsp, regs.Rbp, regs.Rsi, regs.Rdi,
		regs.R8, regs.R9, regs.R10, regs.R11, regs.R12, regs.R13, regs.R14, regs.R15,
		regs.Rip + uint64(in.Len),
	}
	addr = uint64(in.Disp)
	if in.Base >= 0 {
		addr += file[in.Base]
	}
	if in.Index >= 0 {
		stride = int64(file[in.Index]) * int64(in.Scale)
	}
	switch in.Op {
	case tile.LDTILECFG, tile.STTILECFG: // an ordinary operand: the index counts
		addr += uint64(stride)
	}
	return addr, stride
}

// memory is that of a traced thread.
type memory int

func (m memory) Read(addr uint64, stride int64, rows [][]byte) error {
	return m.move(unix.ProcessVMReadv, addr, stride, rows)
}

func (m memory) Write(addr uint64, stride int64, rows [][]byte) error {
	return m.move(unix.ProcessVMWritev, addr, stride, rows)
}

type mover func(pid int, local []unix.Iovec, remote []unix.RemoteIovec, flags uint) (int, error)

func (m memory) move(f mover, addr uint64, stride int64, rows [][]byte) error {
	local := make([]unix.Iovec, len(rows))
	remote := make([]unix.RemoteIovec, len(rows))
	total := 0
	for i, r := range rows {
		local[i].Base = &r[0]
		local[i].SetLen(len(r))
		remote[i] = unix.RemoteIovec{Base: uintptr(addr + uint64(stride)*uint64(i)), Len: len(r)}
		total += len(r)
	}
	n, err := f(int(m), local, remote, 0)
	if err != nil {
		return fmt.Errorf("memory at %#x: %w", addr, err)
	}
	if n != total {
		return fmt.Errorf("memory at %#x: %w", addr, syscall.EFAULT)
	}
	return nil
}
