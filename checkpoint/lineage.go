package checkpoint

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
)

// Link is one published set of weights in a job's chain.
type Link struct {
	Step    int64        `json:"step"`
	Weights shard.Digest `json:"weights"` // hash of the master weights
	Chain   shard.Digest `json:"chain"`   // of all links up to this one
}

// chainStart is what the first link builds on: it binds a chain to the resolved
// job and its data.
func chainStart(spec, data shard.Digest) shard.Digest {
	h := sha256.New()
	h.Write([]byte("skein lineage 1\n"))
	h.Write(spec[:])
	h.Write(data[:])
	return shard.Digest(h.Sum(nil))
}

// Extend appends a link: chain_k = SHA-256(chain_k−1 | u64 step | weights). The
// first link follows from the hashes of spec and data. The chain given is not
// changed.
func Extend(chain []Link, spec, data shard.Digest, step int64, weights shard.Digest) []Link {
	last := chainStart(spec, data)
	if len(chain) > 0 {
		last = chain[len(chain)-1].Chain
	}
	return append(slices.Clip(chain), link(last, step, weights))
}

// link builds on the chain value before it.
func link(last shard.Digest, step int64, weights shard.Digest) Link {
	h := sha256.New()
	h.Write(last[:])
	h.Write(binary.LittleEndian.AppendUint64(nil, uint64(step)))
	h.Write(weights[:])
	return Link{step, weights, shard.Digest(h.Sum(nil))}
}

// checkChain computes a chain again.
func checkChain(chain []Link, spec, data shard.Digest) error {
	last := chainStart(spec, data)
	for i, l := range chain {
		if l.Step < 0 || i > 0 && l.Step <= chain[i-1].Step {
			return fmt.Errorf("the chain of weights has step %d out of place", l.Step)
		}
		if link(last, l.Step, l.Weights) != l {
			return fmt.Errorf("the chain of weights breaks at step %d", l.Step)
		}
		last = l.Chain
	}
	return nil
}

// Lineage is the record of a job: from what, how and to what it was trained. It is
// written as one readable JSON file.
type Lineage struct {
	Format  string `json:"format"` // lineageFormat
	Version int    `json:"version"`

	Job          string          `json:"job"`
	Program      string          `json:"program"` // version of Skein
	Model        string          `json:"model"`   // name of the base model
	Fingerprint  shard.Digest    `json:"fingerprint"`
	DataHash     shard.Digest    `json:"data_hash"`
	SpecHash     shard.Digest    `json:"spec_hash"`
	Spec         json.RawMessage `json:"spec"` // the job with every default and auto resolved
	NumericClass string          `json:"numeric_class"`
	WorldSize    int             `json:"world_size"`
	ResumedAt    []int64         `json:"resumed_at,omitempty"` // steps at which training was taken up again
	Chain        []Link          `json:"chain"`
	Steps        []StepRecord    `json:"steps"`
	Results      []Result        `json:"results"`
}

// Result is one number that was measured, such as held-out loss.
type Result struct {
	Step  int64  `json:"step"`
	Name  string `json:"name"`
	Value Number `json:"value"`
}

const (
	lineageFormat  = "skein lineage"
	lineageVersion = 1
)

// WriteLineage replaces the file as a whole or not at all, and makes it durable. One
// of another version is not replaced: ErrVersion.
func WriteLineage(fsys vfs.FS, path string, l Lineage) error {
	if _, err := ReadLineage(fsys, path); errors.Is(err, ErrVersion) {
		return err
	}
	l.Format, l.Version = lineageFormat, lineageVersion
	body, err := layout(l)
	if err != nil {
		return fmt.Errorf("lineage: %w", err)
	}
	if err := vfs.ReplaceFile(fsys, path, seal("lineage", body)); err != nil {
		return fmt.Errorf("lineage: %w", err)
	}
	return nil
}

// AdvanceLineage is WriteLineage, but leaves alone what is there if it is of the same
// job and further on: a worker that was given up for dead does not set the record
// back. Where several workers may write it, that is the one to use.
func AdvanceLineage(fsys vfs.FS, path string, l Lineage) error {
	if was, err := ReadLineage(fsys, path); err == nil && was.SpecHash == l.SpecHash && was.DataHash == l.DataHash && was.last() > l.last() {
		return nil
	}
	return WriteLineage(fsys, path, l)
}

// last is the newest step that a lineage tells of.
func (l *Lineage) last() int64 {
	var step int64
	if n := len(l.Steps); n > 0 {
		step = l.Steps[n-1].Step
	}
	if n := len(l.Chain); n > 0 {
		step = max(step, l.Chain[n-1].Step)
	}
	return step
}

// ReadLineage reads what WriteLineage wrote. A file that was damaged or edited is
// refused, and so is a chain that does not follow from its own links.
func ReadLineage(fsys vfs.FS, path string) (Lineage, error) {
	file, err := vfs.ReadFile(fsys, path, manifestBytesMax)
	if err != nil {
		return Lineage{}, fmt.Errorf("lineage: %w", err)
	}
	l, err := decodeLineage(file)
	if err != nil {
		return Lineage{}, fmt.Errorf("lineage %s: %w", path, err)
	}
	return l, nil
}

func decodeLineage(file []byte) (Lineage, error) {
	body, err := unseal("lineage", file)
	if err != nil {
		return Lineage{}, err
	}
	var l Lineage
	if err := checkVersion(body, lineageFormat, lineageVersion); err != nil {
		return Lineage{}, err
	}
	if err := strictJSON(body, &l); err != nil {
		return Lineage{}, err
	}
	return l, checkChain(l.Chain, l.SpecHash, l.DataHash)
}
