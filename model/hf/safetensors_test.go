package hf

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/skein-ml/skein/internal/half"
)

// file makes a safetensors file of a header and so many data bytes.
func file(header string, dataBytes int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, dataBytes)...)
}

func TestEveryTypeThatPythonWritesIsParsed(t *testing.T) {
	raw, err := os.ReadFile("testdata/dtypes.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := readHeader(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, e := range entries {
		got[e.name] = fmt.Sprint(e.dtype, e.shape)
	}
	for name, want := range map[string]string{"bool": "BOOL[2]", "c64": "C64[2]", "f8": "F8_E4M3[3]", "f8b": "F8_E5M2[4]",
		"none": "F32[0 7]", "scalar": "F32[]", "f16": "F16[1 3]", "bf16": "BF16[3 1]", "i64": "I64[2]", "f64": "F64[2]"} {
		if got[name] != want {
			t.Errorf("%s: %s, want %s", name, got[name], want)
		}
	}
	if len(entries) != 14 {
		t.Errorf("%d tensors, want 14", len(entries))
	}
}

func TestHostileHeadersAreRefusedByNameAndOffset(t *testing.T) {
	one := func(meta string) string { return `{"a":` + meta + `}` }
	for _, tc := range []struct {
		name string
		file []byte
		want string
	}{
		{"empty file", nil, "has 0 bytes"},
		{"too short", []byte{1, 2, 3}, "has 3 bytes"},
		{"length beyond the limit", binary.LittleEndian.AppendUint64(nil, 1<<40), "header length 1099511627776"},
		{"length that is negative as int64", binary.LittleEndian.AppendUint64(nil, 1<<63), "header length"},
		{"length beyond the file", binary.LittleEndian.AppendUint64(nil, 64), "truncated"},
		{"header of no JSON", file("[1,2]", 0), "not JSON"},
		{"header cut short", file(`{"a":{"dtype":"F32"`, 0), "ends too early"},
		{"no UTF-8", file("{\"\xff\":1}", 0), "UTF-8"},
		{"tensor twice", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2), `"a" appears twice`},
		{"key twice", file(one(`{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}`), 1), `"dtype" appears twice`},
		{"unknown key", file(one(`{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}`), 1), `"a": unknown key "x"`},
		{"unknown dtype", file(one(`{"dtype":"F31","shape":[1],"data_offsets":[0,4]}`), 4), `dtype "F31"`},
		{"dtype of another case", file(one(`{"Dtype":"F32","shape":[1],"data_offsets":[0,4]}`), 4), `unknown key "Dtype"`},
		{"no shape", file(one(`{"dtype":"F32","data_offsets":[0,4]}`), 4), "are needed"},
		{"null shape", file(one(`{"dtype":"F32","shape":null,"data_offsets":[0,4]}`), 4), "are needed"},
		{"one offset", file(one(`{"dtype":"F32","shape":[1],"data_offsets":[0]}`), 4), "are needed"},
		{"negative size", file(one(`{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}`), 4), "shape: [-1] is not valid"},
		{"fractional size", file(one(`{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}`), 4), "shape: [1.5] is not valid"},
		{"shape overflow", file(one(`{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}`), 0), "overflows"},
		{"shape overflow hidden by zero", file(one(`{"dtype":"F32","shape":[9223372036854775808,0],"data_offsets":[0,0]}`), 0), "overflows"},
		{"too many dimensions", file(one(`{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}`), 1), "17 dimensions"},
		{"length against shape", file(one(`{"dtype":"F32","shape":[2],"data_offsets":[0,4]}`), 4), "hold 4 bytes"},
		{"half a byte", file(one(`{"dtype":"F4","shape":[3],"data_offsets":[0,1]}`), 1), "needs 12 bits"},
		{"backward range", file(one(`{"dtype":"F32","shape":[1],"data_offsets":[4,0]}`), 4), "are no range"},
		{"offset overflow", file(one(`{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551615,0]}`), 1), "are no range"},
		{"hole", file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}`, 3), `"b": begins at offset 2, leaving a hole from 1`},
		{"overlap", file(`{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}`, 3), `"b": begins at offset 1, inside`},
		{"hole at the start", file(one(`{"dtype":"U8","shape":[1],"data_offsets":[1,2]}`), 2), "leaving a hole from 0"},
		{"truncated data", file(one(`{"dtype":"U8","shape":[9],"data_offsets":[0,9]}`), 8), "truncated"},
		{"trailing bytes", file(one(`{"dtype":"U8","shape":[9],"data_offsets":[0,9]}`), 10), "1 bytes follow"},
		{"metadata of no strings", file(`{"__metadata__":{"format":1}}`, 0), `"format" is not a string`},
		{"metadata null", file(`{"__metadata__":{"format":null}}`, 0), `"format" is not a string`},
	} {
		_, err := readHeader(bytes.NewReader(tc.file), int64(len(tc.file)))
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Count(err.Error(), "fetch it again") != 1 {
			t.Errorf("%s: error %v, want one with %q and what to do", tc.name, err, tc.want)
		}
	}
}

func TestZeroSizeTensorsAndSubByteTypesAreLegal(t *testing.T) {
	header := `{"b":{"dtype":"F4","shape":[4],"data_offsets":[0,2]},"a":{"dtype":"F32","shape":[0],"data_offsets":[2,2]},"c":{"dtype":"U8","shape":[],"data_offsets":[2,3]}}   `
	f := file(header, 3)
	entries, err := readHeader(bytes.NewReader(f), int64(len(f)))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 3 || entries[2].name != "c" || entries[2].end != int64(len(f)) {
		t.Errorf("entries: %+v", entries)
	}
}

func TestNumbersConvertAsNumPyAndPyTorchDo(t *testing.T) {
	raw, err := os.ReadFile("testdata/rounding.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		HalfSHA256 string `json:"half_sha256"`
		FP32, BF16 []uint32
	}
	if err := json.Unmarshal(raw, &golden); err != nil {
		t.Fatal(err)
	}
	var wide []byte
	for h := range 1 << 16 {
		if h&0x7c00 != 0x7c00 {
			wide = binary.LittleEndian.AppendUint32(wide, math.Float32bits(half.Float32(uint16(h))))
		}
	}
	sum := sha256.Sum256(wide)
	if got := hex.EncodeToString(sum[:]); got != golden.HalfSHA256 {
		t.Errorf("binary16 widened: sha256 %s, want %s", got, golden.HalfSHA256)
	}
	for i, bits := range golden.FP32 {
		got, err := BF16.encode(nil, []float32{math.Float32frombits(bits)})
		if golden.BF16[i]&0x7f80 == 0x7f80 {
			if err == nil {
				t.Errorf("%#x rounds to an infinity but is written", bits)
			}
			continue
		}
		if err != nil || binary.LittleEndian.Uint16(got) != uint16(golden.BF16[i]) {
			t.Errorf("%#x becomes %x (%v), want %#x", bits, got, err, golden.BF16[i])
		}
	}
}

func TestNaNAndInfinityAreNeverEncoded(t *testing.T) {
	for _, d := range []DType{F32, BF16} {
		for _, bits := range []uint32{0x7f800000, 0xff800000, 0x7f800001, 0x7fffffff, 0xffffffff} {
			if _, err := d.encode(nil, []float32{1, math.Float32frombits(bits)}); err == nil {
				t.Errorf("%s: %#x is written", d, bits)
			}
		}
	}
}

func FuzzHeader(f *testing.F) {
	raw, err := os.ReadFile("testdata/dtypes.safetensors")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(file(`{"b":{"dtype":"F4","shape":[4],"data_offsets":[0,2]},"a":{"dtype":"F32","shape":[0],"data_offsets":[2,2]}}`, 2))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := readHeader(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		next := int64(-1)
		for _, e := range entries {
			if e.begin < prefixBytes || e.end < e.begin || e.end > int64(len(data)) || (next >= 0 && e.begin != next) {
				t.Fatalf("accepted entry %+v of a file of %d bytes, after offset %d", e, len(data), next)
			}
			next = e.end
		}
	})
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"metadata":{"total_size":1},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}`))
	f.Add([]byte(`{"weight_map":{"a":"../x.safetensors"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		fileOf, files, err := parseIndex(data)
		if err != nil {
			return
		}
		for _, name := range files {
			if strings.ContainsAny(name, `/\`) || name == "" || name[0] == '.' {
				t.Fatalf("accepted file name %q", name)
			}
		}
		if len(fileOf) < len(files) {
			t.Fatalf("%d files for %d tensors", len(files), len(fileOf))
		}
	})
}
