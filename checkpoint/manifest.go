package checkpoint

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/skein-ml/skein/internal/strictjson"
	"github.com/skein-ml/skein/shard"
)

// Manifest says what a checkpoint is and where every number of it lies. It maps
// tensors to byte ranges of objects, so a checkpoint can be read at any world size
// and ZeRO stage. There is no clock in it: the same training, published at the same
// steps, gives the same bytes. A stop on request publishes the step that it ends at;
// its link stays in the chains of all later manifests, and so in their bytes. Weights
// and moments do not know of it.
type Manifest struct {
	Format  string `json:"format"` // manifestFormat
	Version int    `json:"version"`

	State
	WorldSize   int           `json:"world_size"`  // that the objects were cut for
	Fingerprint shard.Digest  `json:"fingerprint"` // of the model's shape
	Weights     shard.Digest  `json:"weights"`     // hash of the master weights
	Objects     []Object      `json:"objects"`
	Tensors     []TensorEntry `json:"tensors"`
}

// State is what a checkpoint knows besides weights and moments. The data cursor
// is the step itself.
type State struct {
	Job          string            `json:"job"`
	Model        string            `json:"model"`         // name of the base model, for people
	Spec         shard.Digest      `json:"spec"`          // hash of the resolved job
	Data         shard.Digest      `json:"data"`          // content hash of the training data
	NumericClass string            `json:"numeric_class"` // such as "avx512 r1"
	Step         int64             `json:"step"`          // decided steps; 0 is the imported model
	Taken        int64             `json:"taken"`         // steps taken, not skipped: Adam's t
	Seeds        map[string]uint64 `json:"seeds"`         // of every random stream, by name
	History      []StepRecord      `json:"history"`       // one entry for each step so far
	Chain        []Link            `json:"chain"`         // of the published checkpoints, this one last
}

// StepRecord is what a step's decision record said.
type StepRecord struct {
	Step     int64  `json:"step"`
	Loss     Number `json:"loss"`
	GradNorm Number `json:"grad_norm"`
	Tokens   int64  `json:"tokens"`
	Skipped  bool   `json:"skipped,omitempty"`
}

// Number is a float64 that may be NaN or infinite: those are null in JSON and read
// back as NaN. Everything else is exact.
type Number float64

// MarshalJSON writes the shortest text that reads back as the same number.
func (n Number) MarshalJSON() ([]byte, error) {
	if x := float64(n); math.IsNaN(x) || math.IsInf(x, 0) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(n))
}

// UnmarshalJSON reads a number or null.
func (n *Number) UnmarshalJSON(text []byte) error {
	if string(text) == "null" {
		*n = Number(math.NaN())
		return nil
	}
	return json.Unmarshal(text, (*float64)(n))
}

// Object is one file of a checkpoint.
type Object struct {
	File   string       `json:"file"` // in the folder of the manifest
	Kind   Kind         `json:"kind"`
	Rank   shard.Rank   `json:"rank"` // whose segment it is
	Elems  int64        `json:"elems"`
	Bytes  int64        `json:"bytes"` // size of the file
	SHA256 shard.Digest `json:"sha256"`
}

// TensorEntry is one tensor: its elements, in order, are the concatenation of the
// ranges of each kind.
type TensorEntry struct {
	Name   string  `json:"name"`
	Elems  int64   `json:"elems"`
	Master []Range `json:"master"`
	M      []Range `json:"m"`
	V      []Range `json:"v"`
}

// Range is a stretch of an object file.
type Range struct {
	Object int   `json:"object"` // index into Manifest.Objects
	Offset int64 `json:"offset"` // bytes from the start of the file
	Length int64 `json:"length"` // bytes
}

func (t *TensorEntry) ranges(k Kind) *[]Range {
	return [...]*[]Range{&t.Master, &t.M, &t.V}[k]
}

const (
	manifestFormat  = "skein checkpoint"
	manifestVersion = 1
	// manifestBytesMax bounds what is read into memory: room for three million
	// steps of history.
	manifestBytesMax = 256 << 20
)

// encode is the manifest file: the manifest and a checksum of its exact bytes.
func (m Manifest) encode() ([]byte, error) {
	body, err := layout(m)
	if err != nil {
		return nil, err
	}
	return seal("manifest", body), nil
}

// layout writes a struct as JSON for people: one line for each member, and for
// each element of a member that is a list.
func layout(v any) ([]byte, error) {
	compact, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	members, err := strictjson.Object(compact)
	if err != nil {
		return nil, err
	}
	out := []byte("{")
	for i, m := range members {
		if i > 0 {
			out = append(out, ',')
		}
		out = fmt.Appendf(out, "\n  %q: ", m.Key)
		var list []json.RawMessage
		switch {
		case m.Value[0] == '[' && json.Unmarshal(m.Value, &list) == nil && len(list) > 0:
			for j, x := range list {
				out = fmt.Appendf(out, "%c\n    %s", "[,"[min(j, 1)], x)
			}
			out = append(out, "\n  ]"...)
		default:
			var indented bytes.Buffer
			if err := json.Indent(&indented, m.Value, "  ", "  "); err != nil {
				return nil, err
			}
			out = append(out, indented.Bytes()...)
		}
	}
	return append(out, "\n}"...), nil
}

// seal wraps a JSON value together with the SHA-256 of its bytes.
func seal(name string, body []byte) []byte {
	return fmt.Appendf(nil, "{\n%q: %s,\n\"sha256\": \"%x\"\n}\n", name, body, sha256.Sum256(body))
}

// unseal checks what seal wrote and gives the value back.
func unseal(name string, file []byte) (json.RawMessage, error) {
	members, err := strictjson.Object(file)
	if err != nil {
		return nil, fmt.Errorf("cannot be read as JSON: %w", err)
	}
	var sum shard.Digest
	if len(members) != 2 || members[0].Key != name || members[1].Key != "sha256" || json.Unmarshal(members[1].Value, &sum) != nil {
		return nil, fmt.Errorf("is not a sealed %s", name)
	}
	if sum != sha256.Sum256(members[0].Value) {
		return nil, errors.New("its checksum differs: the file was damaged or edited")
	}
	return members[0].Value, nil
}

// checkVersion compares what a sealed value says of itself, before anything else of
// it is read: another version may have other members.
func checkVersion(body json.RawMessage, format string, version int) error {
	var is struct {
		Format  string
		Version int
	}
	if err := json.Unmarshal(body, &is); err != nil {
		return fmt.Errorf("cannot be read as JSON: %w", err)
	}
	if is.Format != format || is.Version != version {
		return fmt.Errorf("is %q version %d, an %w: this program reads %q version %d; use the program that wrote it, or set checkpoint.store to another folder",
			is.Format, is.Version, ErrVersion, format, version)
	}
	return nil
}

// strictJSON reads exactly one value and refuses unknown keys.
func strictJSON(text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("cannot be read as JSON: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("has something after its end")
	}
	return nil
}

// DecodeManifest reads a manifest file and checks everything that can be checked
// without the objects: a manifest that passes can be used without bounds checks.
func DecodeManifest(file []byte) (Manifest, error) {
	body, err := unseal("manifest", file)
	if err != nil {
		return Manifest{}, err
	}
	if err := checkVersion(body, manifestFormat, manifestVersion); err != nil {
		return Manifest{}, err
	}
	var m Manifest
	if err := strictJSON(body, &m); err != nil {
		return Manifest{}, err
	}
	return m, m.validate()
}

// validate checks all that reading relies on.
func (m *Manifest) validate() error {
	if err := shard.CheckWorldSize(m.WorldSize); err != nil {
		return err
	}
	if m.Step < 0 || m.Taken < 0 || m.Taken > m.Step {
		return fmt.Errorf("%d of %d steps taken is impossible", m.Taken, m.Step)
	}
	for i := range m.History {
		if m.History[i].Step < 1 || m.History[i].Step > m.Step || i > 0 && m.History[i].Step <= m.History[i-1].Step {
			return fmt.Errorf("its history has step %d out of place", m.History[i].Step)
		}
	}
	if err := checkChain(m.Chain, m.Spec, m.Data); err != nil {
		return err
	}
	if n := len(m.Chain); n == 0 || m.Chain[n-1].Step != m.Step || m.Chain[n-1].Weights != m.Weights {
		return errors.New("its chain of weights does not end at its own step")
	}
	if err := m.validateObjects(); err != nil {
		return err
	}
	return m.validateTensors()
}

func (m *Manifest) validateObjects() error {
	files := map[string]bool{}
	for _, o := range m.Objects {
		switch {
		case !safeName(o.File):
			return fmt.Errorf("object name %q is not allowed", o.File)
		case files[o.File]:
			return fmt.Errorf("object %q is listed twice", o.File)
		case o.Rank < 0 || int(o.Rank) >= m.WorldSize:
			return fmt.Errorf("object %q belongs to rank %d of %d", o.File, o.Rank, m.WorldSize)
		case o.Elems < 0 || o.Elems > elemsMax || o.Bytes != objectBytes(o.Elems):
			return fmt.Errorf("object %q has an impossible size: %d elements in %d bytes", o.File, o.Elems, o.Bytes)
		}
		files[o.File] = true
	}
	return nil
}

// safeName keeps object names inside the folder of the manifest.
func safeName(name string) bool {
	if len(name) > 128 || !strings.HasSuffix(name, objectSuffix) || strings.HasPrefix(name, ".") {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.')
	})
}

// validateTensors checks that the ranges make up each tensor, and that together
// they tile the objects: no number is missing, shared or left over.
func (m *Manifest) validateTensors() error {
	names := map[string]bool{}
	used := make([][]Range, len(m.Objects))
	for i := range m.Tensors {
		t := &m.Tensors[i]
		if t.Name == "" || names[t.Name] || t.Elems <= 0 || t.Elems > elemsMax {
			return fmt.Errorf("tensor %q with %d elements is nameless, listed twice or of impossible size", t.Name, t.Elems)
		}
		names[t.Name] = true
		for k := range kindCount {
			left := t.Elems * 4
			for _, r := range *t.ranges(k) {
				if r.Object < 0 || r.Object >= len(m.Objects) || m.Objects[r.Object].Kind != k {
					return fmt.Errorf("tensor %q: %v lies in object %d, which is none of that kind", t.Name, k, r.Object)
				}
				end := headerBytes + m.Objects[r.Object].Elems*4
				if r.Length <= 0 || r.Length > left || r.Length%4 != 0 || r.Offset < headerBytes || r.Offset > end-r.Length || r.Offset%4 != 0 {
					return fmt.Errorf("tensor %q: %v has an impossible range of %d bytes at %d", t.Name, k, r.Length, r.Offset)
				}
				left -= r.Length
				used[r.Object] = append(used[r.Object], r)
			}
			if left != 0 {
				return fmt.Errorf("tensor %q: %v lacks %d bytes", t.Name, k, left)
			}
		}
	}
	for i, ranges := range used {
		slices.SortFunc(ranges, func(a, b Range) int { return int(max(-1, min(1, a.Offset-b.Offset))) })
		at := int64(headerBytes)
		for _, r := range ranges {
			if r.Offset != at {
				return fmt.Errorf("object %q: byte %d is shared by two ranges or belongs to none", m.Objects[i].File, at)
			}
			at += r.Length
		}
		if at != headerBytes+m.Objects[i].Elems*4 {
			return fmt.Errorf("object %q: the bytes from %d on belong to no tensor", m.Objects[i].File, at)
		}
	}
	return nil
}
