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
const stackMax = 8192

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
	obj, err := c.object(tmp, u, "unit")
	if err != nil {
		return err
	}
	for i := range u.kernels {
		k := &u.kernels[i]
		if k.image, err = c.link(tmp, obj, k.name); err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
	}
	if !u.twins() {
		return nil
	}
	if obj, err = c.object(tmp, u, "twin", "-DSKEIN_AVX2"); err != nil {
		return fmt.Errorf("for AVX2: %w", err)
	}
	for i := range u.kernels {
		k := &u.kernels[i]
		if k.isa != both {
			continue
		}
		twin, err := c.link(tmp, obj, k.name)
		if err == nil {
			err = twin.checkAVX2()
		}
		if err != nil {
			return fmt.Errorf("%s for AVX2: %w", k.name, err)
		}
		k.twin = &twin
	}
	return nil
}

// object compiles a unit and checks what can be checked before linking.
func (c compiler) object(tmp string, u *unit, name string, more ...string) (string, error) {
	obj := filepath.Join(tmp, name+".o")
	args := append(append(append([]string{}, cflags...), more...), "-c", "-o", obj, u.path)
	if _, err := sh(c.gcc, args...); err != nil {
		return "", err
	}
	if err := c.checkObject(obj); err != nil {
		return "", err
	}
	return obj, checkStack(filepath.Join(tmp, name+".su"), u)
}

// wideRE is what a processor without AVX-512 does not know: vectors of 16, registers from 16 on, masks.
var wideRE = regexp.MustCompile(`zmm|\{k|\bk[0-7]\b|[xy]mm(1[6-9]|2\d|3[01])\b|\{1to`)

func (m image) checkAVX2() error {
	for _, in := range m.code {
		if wideRE.MatchString(in.text) {
			return fmt.Errorf("%q at %#x needs AVX-512", in.text, in.offset)
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
func (c compiler) link(tmp, obj, name string) (m image, err error) {
	script := filepath.Join(tmp, name+".ld")
	elf := filepath.Join(tmp, name+".elf")
	if err := os.WriteFile(script, fmt.Appendf(nil, linkScript, name), 0o600); err != nil {
		return m, err
	}
	if _, err := sh(c.ld, "-T", script, "--gc-sections", "--no-undefined", "-e", name, "-o", elf, obj); err != nil {
		return m, err
	}
	if out, err := sh(c.objdump, "-h", elf); err != nil {
		return m, err
	} else if strings.Contains(out, " .data ") {
		return m, fmt.Errorf("it has data that is written to or relocated")
	}
	text, err := c.section(tmp, elf, ".text")
	if err != nil {
		return m, err
	}
	if m.consts, err = c.section(tmp, elf, ".rodata"); err != nil {
		return m, err
	}
	m.codeSz = len(text)
	out, err := sh(c.objdump, "-d", "-w", "-M", "intel", "-j", ".text", elf)
	if err != nil {
		return m, err
	}
	return m, m.disassemble(out, text)
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
func (m *image) disassemble(listing string, text []byte) error {
	next := 0
	for _, line := range instructionRE.FindAllStringSubmatch(listing, -1) {
		off, err := strconv.ParseInt(line[1], 16, 32)
		if err != nil {
			return err
		}
		b, err := hex.DecodeString(strings.ReplaceAll(line[2], " ", ""))
		if err != nil {
			return err
		}
		if int(off) != next || string(text[next:next+len(b)]) != string(b) {
			return fmt.Errorf("disassembly and image differ at %#x", off)
		}
		next += len(b)
		asm := strings.Join(strings.Fields(line[3]), " ")
		if strings.Contains(asm, "(bad)") {
			return fmt.Errorf("cannot disassemble at %#x", off)
		}
		m.code = append(m.code, instruction{int(off), b, asm})
	}
	for ; next < len(text); next++ { // alignment that objdump leaves out
		if text[next] != 0 {
			return fmt.Errorf("code after %#x is not disassembled", next)
		}
		m.code = append(m.code, instruction{next, text[next : next+1], "padding"})
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
