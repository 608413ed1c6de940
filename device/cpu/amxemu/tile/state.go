package tile

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Tile is one register: 16 rows of 64 bytes.
type Tile [16][64]byte

func (t *Tile) float(row, i int) float32 {
	return math.Float32frombits(binary.LittleEndian.Uint32(t[row][4*i:]))
}

func (t *Tile) setFloat(row, i int, x float32) {
	binary.LittleEndian.PutUint32(t[row][4*i:], math.Float32bits(x))
}

// State is the tile state of one thread. The zero value is released.
type State struct {
	configured  bool
	config      [64]byte
	rows, bytes [8]int
	tiles       [8]Tile
}

// Memory is what instructions read and write.
type Memory interface {
	// Read fills rows of n bytes, the first at addr, stride bytes apart.
	Read(addr uint64, stride int64, rows [][]byte) error
	Write(addr uint64, stride int64, rows [][]byte) error
}

// Fault is what the hardware would answer with an exception.
type Fault struct{ Reason string }

func (f Fault) Error() string { return f.Reason }

// Configured reports whether there is a configuration that has not been released.
func (s *State) Configured() bool { return s.configured }

// Run executes in; addr and stride are those of its memory operand.
func (s *State) Run(in Instruction, addr uint64, stride int64, m Memory) error {
	switch in.Op {
	case LDTILECFG:
		return s.configure(addr, m)
	case STTILECFG:
		return m.Write(addr, 0, [][]byte{s.config[:]})
	case TILERELEASE:
		*s = State{}
		return nil
	}
	if !s.configured {
		return Fault{"#UD: tiles are not configured"}
	}
	if in.Op == TDPBF16PS {
		return s.dot(in.Dst, in.Src1, in.Src2)
	}
	t := in.Dst
	if s.rows[t] == 0 || s.bytes[t] == 0 {
		return Fault{fmt.Sprintf("#UD: tile %d has no shape", t)}
	}
	rows := make([][]byte, s.rows[t])
	for i := range rows {
		rows[i] = s.tiles[t][i][:s.bytes[t]]
	}
	switch in.Op {
	case TILEZERO:
		s.tiles[t] = Tile{}
	case TILESTORED:
		return m.Write(addr, stride, rows)
	case TILELOADD, TILELOADDT1:
		s.tiles[t] = Tile{} // what lies outside of the shape becomes zero
		return m.Read(addr, stride, rows)
	}
	return nil
}

// configure loads a configuration of palette 1, or releases by palette 0.
func (s *State) configure(addr uint64, m Memory) error {
	var c [64]byte
	if err := m.Read(addr, 0, [][]byte{c[:]}); err != nil {
		return err
	}
	*s = State{}
	switch c[0] {
	case 0:
		return nil
	case 1:
	default:
		return Fault{fmt.Sprintf("#GP: palette %d", c[0])}
	}
	for i := range 14 {
		if c[2+i] != 0 {
			return Fault{"#GP: reserved bytes of the configuration are not zero"}
		}
	}
	for i := range 16 {
		n, rows := int(binary.LittleEndian.Uint16(c[16+2*i:])), int(c[48+i])
		if i >= 8 && (n != 0 || rows != 0) {
			return Fault{fmt.Sprintf("#GP: shape for tile %d of 8", i)}
		}
		if n > 64 || rows > 16 || (n == 0) != (rows == 0) {
			return Fault{fmt.Sprintf("#GP: tile %d of %d rows and %d bytes", i, rows, n)}
		}
		if i < 8 {
			s.rows[i], s.bytes[i] = rows, n
		}
	}
	s.config, s.configured = c, true
	return nil
}

// dot is TDPBF16PS.
func (s *State) dot(dst, a, b int) error {
	ok := s.rows[dst] > 0 && s.rows[a] == s.rows[dst] && s.bytes[a]%4 == 0 && s.bytes[dst]%4 == 0 &&
		s.bytes[a]/4 == s.rows[b] && s.bytes[b] == s.bytes[dst]
	if !ok {
		return Fault{fmt.Sprintf("#UD: shapes of tiles %d, %d and %d do not fit", dst, a, b)}
	}
	product(&s.tiles[dst], &s.tiles[a], &s.tiles[b], s.rows[dst], s.bytes[dst]/4, s.rows[b])
	return nil
}
