package main

import (
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// stackMax is what a kernel may use of the trampoline's frame.
const stackMax = 4096

// cflags: position-independent code with no run-time support. The base
// instruction set is AVX2; functions name what more they need. Contraction is
// off because every product must round by itself unless the source says fma.
var cflags = []string{
	"-O3", "-march=x86-64-v3", "-std=gnu11", "-Wall", "-Wextra", "-Werror",
	"-ffreestanding", "-fPIC", "-fvisibility=hidden", "-ffunction-sections",
	"-ffp-contract=off", "-fno-math-errno",
	"-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none",
	"-mno-red-zone", "-fstack-usage",
	"-fno-tree-loop-distribute-patterns", // or gcc invents calls of memset and memcpy
}

// linkScript puts one kernel first, whatever it needs behind it, constants last.
const linkScript = `SECTIONS {
  . = 0;
  .text : { *(.text.%s) *(.text .text.*) . = ALIGN(64); }
  .rodata : { *(.rodata .rodata.*) }
  .data : { *(.data .data.* .got .got.* .bss .bss.* COMMON) }
  /DISCARD/ : { *(.comment) *(.note*) *(.eh_frame) }
}`

type compiler struct{ gcc, ld, objdump, objcopy, version string }

// findCompiler looks for the pinned versions.
func findCompiler() (compiler, error) {
	var c compiler
	for _, t := range []struct {
		path *string
		name string
		want string
	}{
		{&c.gcc, "gcc", pinnedGCC}, {&c.ld, "ld", pinnedBinutils},
		{&c.objdump, "objdump", pinnedBinutils}, {&c.objcopy, "objcopy", pinnedBinutils},
	} {
		path, err := exec.LookPath(t.name)
		if err != nil {
			return c, fmt.Errorf("%w: no %s; it takes gcc %s and binutils %s", errNoCompiler, t.name, pinnedGCC, pinnedBinutils)
		}
		out, err := exec.Command(path, "--version").Output()
		if err != nil {
			return c, err
		}
		first, _, _ := strings.Cut(string(out), "\n")
		if !strings.HasSuffix(first, t.want) {
			return c, fmt.Errorf("%w: %q is not %s", errNoCompiler, first, t.want)
		}
		*t.path = path
		if c.version != "" && t.name != "ld" {
			continue
		}
		c.version = strings.TrimPrefix(c.version+", "+first, ", ")
	}
	return c, nil
}

// compile fills in the machine code of every kernel of u.
func (c compiler) compile(u *unit) error {
	tmp, err := os.MkdirTemp("", "skein-gen-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }() // what is left is the system's temporary folder
	obj := filepath.Join(tmp, "unit.o")
	if _, err := sh(c.gcc, append(append([]string{}, cflags...), "-c", "-o", obj, u.path)...); err != nil {
		return err
	}
	if err := c.checkObject(obj); err != nil {
		return err
	}
	if err := checkStack(strings.TrimSuffix(obj, ".o")+".su", u); err != nil {
		return err
	}
	for i := range u.kernels {
		if err := c.link(tmp, obj, &u.kernels[i]); err != nil {
			return fmt.Errorf("%s: %w", u.kernels[i].name, err)
		}
	}
	return nil
}

var relocRE = regexp.MustCompile(`(?m)^[0-9a-f]+ (R_X86_64_\w+)\s+(\S+)`)

// checkObject refuses what could not work at an unknown address without a loader.
func (c compiler) checkObject(obj string) error {
	out, err := sh(c.objdump, "-r", obj)
	if err != nil {
		return err
	}
	for _, m := range relocRE.FindAllStringSubmatch(out, -1) {
		if m[1] != "R_X86_64_PC32" && m[1] != "R_X86_64_PLT32" {
			return fmt.Errorf("relocation %s of %s would need a loader", m[1], m[2])
		}
	}
	return nil
}

// checkStack adds the frames of helpers that were not inlined to the largest kernel's.
func checkStack(path string, u *unit) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	largest, helpers := 0, 0
	for line := range strings.SplitSeq(strings.TrimSpace(string(b)), "\n") {
		cols := strings.Split(line, "\t")
		if len(cols) != 3 {
			return fmt.Errorf("cannot read stack usage %q", line)
		}
		if cols[2] == "dynamic" {
			return fmt.Errorf("%s: stack use has no bound", cols[0])
		}
		n, err := strconv.Atoi(cols[1])
		if err != nil {
			return err
		}
		fn := cols[0][strings.LastIndex(cols[0], ":")+1:]
		isKernel := false
		for _, k := range u.kernels {
			isKernel = isKernel || k.name == fn
		}
		if isKernel {
			largest = max(largest, n)
		} else {
			helpers += n + 8
		}
	}
	if largest+helpers > stackMax {
		return fmt.Errorf("kernels use %d bytes of stack, %d are allowed", largest+helpers, stackMax)
	}
	return nil
}

// link makes one kernel's flat image and disassembles it.
func (c compiler) link(tmp, obj string, k *kernel) error {
	script := filepath.Join(tmp, k.name+".ld")
	elf := filepath.Join(tmp, k.name+".elf")
	if err := os.WriteFile(script, fmt.Appendf(nil, linkScript, k.name), 0o600); err != nil {
		return err
	}
	if _, err := sh(c.ld, "-T", script, "--gc-sections", "--no-undefined", "-e", k.name, "-o", elf, obj); err != nil {
		return err
	}
	if out, err := sh(c.objdump, "-h", elf); err != nil {
		return err
	} else if strings.Contains(out, " .data ") {
		return fmt.Errorf("it has data that is written to or relocated")
	}
	text, err := c.section(tmp, elf, ".text")
	if err != nil {
		return err
	}
	if k.consts, err = c.section(tmp, elf, ".rodata"); err != nil {
		return err
	}
	k.codeSz = len(text)
	out, err := sh(c.objdump, "-d", "-w", "-M", "intel", "-j", ".text", elf)
	if err != nil {
		return err
	}
	return k.disassemble(out, text)
}

func (c compiler) section(tmp, elf, name string) ([]byte, error) {
	bin := filepath.Join(tmp, "section.bin")
	if _, err := sh(c.objcopy, "-O", "binary", "-j", name, elf, bin); err != nil {
		return nil, err
	}
	return os.ReadFile(bin)
}

var instructionRE = regexp.MustCompile(`(?m)^\s*([0-9a-f]+):\t((?:[0-9a-f]{2} )+)\s*\t?(.*)$`)

// disassemble splits the code by what objdump says and checks that nothing is lost.
func (k *kernel) disassemble(listing string, text []byte) error {
	next := 0
	for _, m := range instructionRE.FindAllStringSubmatch(listing, -1) {
		off, err := strconv.ParseInt(m[1], 16, 32)
		if err != nil {
			return err
		}
		b, err := hex.DecodeString(strings.ReplaceAll(m[2], " ", ""))
		if err != nil {
			return err
		}
		if int(off) != next || string(text[next:next+len(b)]) != string(b) {
			return fmt.Errorf("disassembly and image differ at %#x", off)
		}
		next += len(b)
		asm := strings.Join(strings.Fields(m[3]), " ")
		if strings.Contains(asm, "(bad)") {
			return fmt.Errorf("cannot disassemble at %#x", off)
		}
		k.code = append(k.code, instruction{int(off), b, asm})
	}
	for ; next < len(text); next++ { // alignment that objdump leaves out
		if text[next] != 0 {
			return fmt.Errorf("code after %#x is not disassembled", next)
		}
		k.code = append(k.code, instruction{next, text[next : next+1], "padding"})
	}
	return nil
}

func sh(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", filepath.Base(name), err, out)
	}
	return string(out), nil
}
