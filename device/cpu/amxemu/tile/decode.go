// Package tile is a model of AMX tiles: it decodes the tile instructions that our
// kernels use and computes what they compute, bit for bit as Intel documents it.
// Tests compare the kernels with it, and device/cpu/amxemu runs them by it.
package tile

import "encoding/binary"

// Op is a tile instruction.
type Op uint8

// The instructions known here.
const (
	LDTILECFG Op = iota + 1
	STTILECFG
	TILERELEASE
	TILEZERO
	TILELOADD
	TILELOADDT1
	TILESTORED
	TDPBF16PS
)

// String is the mnemonic, as disassemblers write it.
func (o Op) String() string {
	names := [...]string{"", "ldtilecfg", "sttilecfg", "tilerelease", "tilezero", "tileloadd", "tileloaddt1", "tilestored", "tdpbf16ps"}
	return names[o]
}

// Instruction is a decoded one. Registers of the general file have their hardware
// numbers, −1 is none, and ripBase means that addresses count from the next instruction.
type Instruction struct {
	Op              Op
	Len             int
	Dst, Src1, Src2 int // tiles

	Base, Index int
	Scale       int
	Disp        int64
}

// RIPBase is the Base of an operand that is addressed from the next instruction.
const RIPBase = 16

// Decode reads the instruction at the start of code. It reports false for all but
// the tile instructions above.
func Decode(code []byte) (in Instruction, ok bool) {
	// All are VEX.128.0F38.W0: C4, then R̄X̄B̄ and the map, then W, vvvv, L and pp.
	if len(code) < 5 || code[0] != 0xc4 || code[1]&0x1f != 2 || code[2]&0x84 != 0 {
		return in, false
	}
	pp, opcode, modrm := code[2]&3, code[3], code[4]
	mod, reg, rm := modrm>>6, int(modrm>>3&7), int(modrm&7)
	vvvv := int(^code[2] >> 3 & 15)
	in = Instruction{Len: 5, Dst: reg, Base: -1, Index: -1}
	registers := mod == 3
	switch {
	case opcode == 0x49 && pp == 0 && modrm == 0xc0:
		in.Op = TILERELEASE
	case opcode == 0x49 && pp == 3 && registers && rm == 0:
		in.Op = TILEZERO
	case opcode == 0x49 && pp == 0 && !registers && reg == 0:
		in.Op = LDTILECFG
	case opcode == 0x49 && pp == 1 && !registers && reg == 0:
		in.Op = STTILECFG
	case opcode == 0x4b && pp == 3 && !registers && rm == 4:
		in.Op = TILELOADD
	case opcode == 0x4b && pp == 1 && !registers && rm == 4:
		in.Op = TILELOADDT1
	case opcode == 0x4b && pp == 2 && !registers && rm == 4:
		in.Op = TILESTORED
	case opcode == 0x5c && pp == 2 && registers:
		in.Op, in.Src1, in.Src2 = TDPBF16PS, rm, vvvv
		// Three different tiles below 8, or the instruction faults.
		return in, vvvv < 8 && in.Dst != rm && in.Dst != vvvv && rm != vvvv
	default:
		return in, false
	}
	if registers {
		return in, true
	}
	return in, in.memory(code, mod, rm)
}

// memory decodes a memory operand.
func (in *Instruction) memory(code []byte, mod byte, rm int) bool {
	high := func(bit byte) int { return int(^code[1]>>bit&1) << 3 }
	switch {
	case rm == 4:
		if len(code) < 6 {
			return false
		}
		sib := code[5]
		in.Len++
		in.Base, in.Scale = int(sib&7)|high(5), 1<<(sib>>6)
		if in.Index = int(sib>>3&7) | high(6); in.Index == 4 {
			in.Index = -1
		}
		if sib&7 == 5 && mod == 0 {
			in.Base, mod = -1, 2
		}
	case rm == 5 && mod == 0:
		in.Base, mod = RIPBase, 2
	default:
		in.Base = rm | high(5)
	}
	switch mod {
	case 1:
		if len(code) < in.Len+1 {
			return false
		}
		in.Disp = int64(int8(code[in.Len]))
		in.Len++
	case 2:
		if len(code) < in.Len+4 {
			return false
		}
		in.Disp = int64(int32(binary.LittleEndian.Uint32(code[in.Len:])))
		in.Len += 4
	}
	return true
}
