package hf

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"unicode/utf8"

	"github.com/skein-ml/skein/internal/strictjson"
)

// A safetensors file:
//
//	| n: u64 LE (8B) | JSON header, padded with spaces (n B) | tensor data |
//
// The header maps a tensor's name to its dtype, shape and [begin, end) in the data.
const (
	headerBytesMax = 100_000_000 // the limit of the format
	prefixBytes    = 8
	dimsMax        = 16
)

// entry is one tensor in a safetensors file.
type entry struct {
	name       string
	dtype      DType
	shape      []int64
	begin, end int64 // in the file
}

// readHeader reads and checks the header of the safetensors file of size bytes. The
// tensors' ranges are inside the file, agree with their shapes, and tile the data
// without hole, overlap or remainder. Errors name the tensor and the offset.
func readHeader(r io.ReaderAt, size int64) ([]entry, error) {
	var prefix [prefixBytes]byte
	if size < prefixBytes {
		return nil, fmt.Errorf("has %d bytes, too few for a safetensors file; fetch it again", size)
	}
	if _, err := r.ReadAt(prefix[:], 0); err != nil {
		return nil, fmt.Errorf("read header length: %w", err)
	}
	n := binary.LittleEndian.Uint64(prefix[:])
	if n < 2 || n > headerBytesMax {
		return nil, fmt.Errorf("offset 0: header length %d is not from 2 to %d; this is no safetensors file, fetch it again", n, headerBytesMax)
	}
	if int64(n) > size-prefixBytes {
		return nil, fmt.Errorf("offset 0: header length %d exceeds the file's %d bytes; the file is truncated, fetch it again", n, size)
	}
	header := make([]byte, n)
	if _, err := r.ReadAt(header, prefixBytes); err != nil {
		return nil, fmt.Errorf("read header: %w", err)
	}
	entries, err := parseHeader(header, size-prefixBytes-int64(n))
	if err != nil {
		return nil, fmt.Errorf("%w; the file is damaged, or was made by a faulty program: fetch it again", err)
	}
	return entries, nil
}

// parseHeader checks a header against the number of bytes that follow it.
func parseHeader(header []byte, dataBytes int64) ([]entry, error) {
	if header[0] != '{' || !utf8.Valid(header) {
		return nil, fmt.Errorf("offset %d: the header is not JSON in UTF-8; this is no safetensors file", prefixBytes)
	}
	members, err := strictjson.Object(header)
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	entries := make([]entry, 0, len(members))
	for _, m := range members {
		if m.Key == "__metadata__" {
			if err := checkMetadata(m.Value); err != nil {
				return nil, err
			}
			continue
		}
		e, err := parseEntry(m.Key, m.Value)
		if err != nil {
			return nil, fmt.Errorf("tensor %q: %w", m.Key, err)
		}
		entries = append(entries, e)
	}
	if err := checkTiling(entries, dataBytes); err != nil {
		return nil, err
	}
	for i := range entries {
		entries[i].begin += prefixBytes + int64(len(header))
		entries[i].end += prefixBytes + int64(len(header))
	}
	return entries, nil
}

func checkMetadata(raw json.RawMessage) error {
	members, err := strictjson.Object(raw)
	if err != nil {
		return fmt.Errorf("__metadata__: %w", err)
	}
	for _, m := range members {
		var s *string
		if err := json.Unmarshal(m.Value, &s); err != nil || s == nil {
			return fmt.Errorf("__metadata__: %q is not a string", m.Key)
		}
	}
	return nil
}

// parseEntry reads {"dtype", "shape", "data_offsets"} and checks that the range has
// the length that type and shape ask for. Offsets still count from the data's start.
func parseEntry(name string, raw json.RawMessage) (entry, error) {
	members, err := strictjson.Object(raw)
	if err != nil {
		return entry{}, err
	}
	var dtype *DType
	var shape, offsets *[]uint64
	for _, m := range members {
		var err error
		switch m.Key {
		case "dtype":
			err = json.Unmarshal(m.Value, &dtype)
		case "shape":
			err = json.Unmarshal(m.Value, &shape)
		case "data_offsets":
			err = json.Unmarshal(m.Value, &offsets)
		default:
			return entry{}, fmt.Errorf("unknown key %q", m.Key)
		}
		if err != nil {
			return entry{}, fmt.Errorf("%s: %s is not valid", m.Key, clip(m.Value))
		}
	}
	if dtype == nil || shape == nil || offsets == nil || len(*offsets) != 2 {
		return entry{}, fmt.Errorf("dtype, shape and two data_offsets are needed")
	}
	width, known := bitsOf[*dtype]
	if !known {
		return entry{}, fmt.Errorf("dtype %q is unknown", string(*dtype))
	}
	if len(*shape) > dimsMax {
		return entry{}, fmt.Errorf("shape has %d dimensions; at most %d are read", len(*shape), dimsMax)
	}
	total := width
	for _, dim := range *shape {
		high, low := bits.Mul64(total, dim)
		if high != 0 || low >= 1<<62 || dim >= 1<<62 {
			return entry{}, fmt.Errorf("shape %v overflows", *shape)
		}
		total = low
	}
	begin, end := (*offsets)[0], (*offsets)[1]
	if begin > end || end >= 1<<62 {
		return entry{}, fmt.Errorf("data_offsets [%d, %d) are no range", begin, end)
	}
	if total%8 != 0 || end-begin != total/8 {
		return entry{}, fmt.Errorf("data_offsets [%d, %d) hold %d bytes, but shape %v of %s needs %d bits",
			begin, end, end-begin, *shape, *dtype, total)
	}
	e := entry{name: name, dtype: *dtype, shape: make([]int64, len(*shape)), begin: int64(begin), end: int64(end)}
	for i, dim := range *shape {
		e.shape[i] = int64(dim)
	}
	return e, nil
}

// checkTiling sorts entries by offset and checks that they cover the data exactly once.
func checkTiling(entries []entry, dataBytes int64) error {
	slices.SortFunc(entries, func(a, b entry) int {
		if a.begin != b.begin {
			return int(min(max(a.begin-b.begin, -1), 1))
		}
		return int(min(max(a.end-b.end, -1), 1))
	})
	next := int64(0)
	for _, e := range entries {
		switch {
		case e.begin > next:
			return fmt.Errorf("tensor %q: begins at offset %d, leaving a hole from %d", e.name, e.begin, next)
		case e.begin < next:
			return fmt.Errorf("tensor %q: begins at offset %d, inside the tensor that ends at %d", e.name, e.begin, next)
		}
		next = e.end
		if next > dataBytes {
			return fmt.Errorf("tensor %q: ends at offset %d of the data, but the file has only %d: it is truncated", e.name, next, dataBytes)
		}
	}
	if next != dataBytes {
		return fmt.Errorf("%d bytes follow the last tensor, which ends at offset %d of the data", dataBytes-next, next)
	}
	return nil
}

// clip makes raw JSON fit on an error's line.
func clip(raw []byte) string {
	if len(raw) > 40 {
		return string(raw[:37]) + "..."
	}
	return string(raw)
}
