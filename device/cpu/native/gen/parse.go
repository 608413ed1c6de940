package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// unit is one C source file.
type unit struct {
	name    string // base name without .c
	path    string
	hash    string // of the file and of the headers beside it
	kernels []kernel
}

// kernel is one function with its argument struct.
type kernel struct {
	name   string // in C
	isa    string
	doc    []string // comment lines above the struct, without slashes
	fields []field
	image         // for the instruction set that it names, of BOTH for AVX-512
	twin   *image // of BOTH, for AVX2
}

// image is machine code that runs wherever it is loaded.
type image struct {
	code   []instruction
	consts []byte // constants, following the code after alignment to 64 bytes
	codeSz int    // bytes of code with that alignment
}

// both is the name of the pair of instruction sets that a kernel may be compiled for.
const both = "BOTH"

// needs says what the machine must have.
func (k kernel) needs() string {
	if k.isa == both {
		return "avx512, or avx2 if isa says so"
	}
	return strings.ToLower(k.isa)
}

type field struct{ name, goType, doc string }

// instruction is a machine instruction and its disassembly.
type instruction struct {
	offset int
	bytes  []byte
	text   string
}

var (
	structRE = regexp.MustCompile(`(?m)((?:^//.*\n)*)^struct (\w+) \{\n((?:[^}\n].*\n|\n)*)^\}`)
	kernelRE = regexp.MustCompile(`(?m)^KERNEL\((\w+), (\w+)\)`)
	fieldRE  = regexp.MustCompile(`^\s*(?:const )?(\w+) (\*?)(\w+);(?:\s*//\s*(.*))?$`)
)

// twins reports whether some kernel is compiled twice.
func (u unit) twins() bool {
	return slices.ContainsFunc(u.kernels, func(k kernel) bool { return k.isa == both })
}

func (u unit) hasPointers() bool {
	for _, k := range u.kernels {
		for _, f := range k.fields {
			if f.goType == "unsafe.Pointer" {
				return true
			}
		}
	}
	return false
}

// goTypes maps the field types a kernel may use; every pointer becomes unsafe.Pointer.
var goTypes = map[string]string{
	"int64_t": "int64", "uint64_t": "uint64", "int32_t": "int32", "uint32_t": "uint32",
	"float": "float32", "double": "float64",
}

var includeRE = regexp.MustCompile(`(?m)^#include "(\w+\.h)"`)

// sourceHash covers a C file and the headers that it includes, themselves included.
func sourceHash(dir, name string) (string, error) {
	files := []string{name + ".c"}
	h := sha256.New()
	for i := 0; i < len(files); i++ {
		b, err := os.ReadFile(filepath.Join(dir, files[i]))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n", files[i], len(b))
		h.Write(b)
		for _, m := range includeRE.FindAllStringSubmatch(string(b), -1) {
			if !slices.Contains(files, m[1]) {
				files = append(files, m[1])
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// parseUnit reads the kernels that a C file declares, in its order.
func parseUnit(dir, name string) (unit, error) {
	u := unit{name: name, path: filepath.Join(dir, name+".c")}
	var err error
	if u.hash, err = sourceHash(dir, name); err != nil {
		return u, err
	}
	src, err := os.ReadFile(u.path)
	if err != nil {
		return u, err
	}
	isa := map[string]string{}
	for _, m := range kernelRE.FindAllStringSubmatch(string(src), -1) {
		isa[m[2]] = m[1]
	}
	for _, m := range structRE.FindAllStringSubmatch(string(src), -1) {
		k := kernel{name: m[2], isa: isa[m[2]]}
		if k.isa == "" {
			continue // some other struct
		}
		delete(isa, k.name)
		for line := range strings.SplitSeq(strings.TrimSpace(m[1]), "\n") {
			k.doc = append(k.doc, strings.TrimSpace(strings.TrimPrefix(line, "//")))
		}
		if k.fields, err = parseFields(m[2], m[3]); err != nil {
			return u, err
		}
		u.kernels = append(u.kernels, k)
	}
	for name := range isa {
		return u, fmt.Errorf("kernel %s has no struct of its name", name)
	}
	if len(u.kernels) == 0 {
		return u, fmt.Errorf("no kernels")
	}
	return u, nil
}

func parseFields(name, body string) (fields []field, err error) {
	for line := range strings.SplitSeq(body, "\n") {
		if comment, ok := strings.CutPrefix(strings.TrimSpace(line), "//"); ok {
			if len(fields) > 0 { // a comment that goes on below its field
				fields[len(fields)-1].doc += " " + strings.TrimSpace(comment)
			}
			continue
		}
		if strings.TrimSpace(line) == "" {
			continue
		}
		m := fieldRE.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf("struct %s: cannot read %q (one field a line)", name, line)
		}
		f := field{name: goName(m[3]), goType: "unsafe.Pointer", doc: m[4]}
		if m[2] == "" {
			if f.goType = goTypes[m[1]]; f.goType == "" {
				return nil, fmt.Errorf("struct %s: type %s has no Go counterpart here", name, m[1])
			}
		}
		fields = append(fields, f)
	}
	return fields, nil
}

// goName turns gemm_f32 into GemmF32; known abbreviations stay in capitals.
func goName(c string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(c, "_") {
		switch part {
		case "fma", "amx", "glu", "ld":
			b.WriteString(strings.ToUpper(part))
		case "":
		default:
			b.WriteString(strings.ToUpper(part[:1]) + part[1:])
		}
	}
	return b.String()
}
