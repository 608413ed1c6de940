package data

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/skein-ml/skein/internal/vfs"
)

// The manifest's identity. A reader refuses what it does not know.
const (
	manifestMagic   = "skein dataset"
	manifestVersion = 1
	manifestName    = "manifest.json"
	// maxManifestBytes holds the manifest of some hundred thousand records, which is tens of gigabytes of packs.
	maxManifestBytes = 64 << 20
)

// Manifest describes a data set. It is written last, so a folder with a manifest is whole.
type Manifest struct {
	Magic       string `json:"magic"`
	Version     int    `json:"version"`
	ContentHash string `json:"contentHash"` // SHA-256 of the packs, whatever the files look like

	SequenceLength int     `json:"sequenceLength"`
	Packing        bool    `json:"packing"`
	TooLong        TooLong `json:"tooLong"`
	Split          string  `json:"split"` // train or validation
	// ValidationShare is the share of the sources' examples that the validation split took, 0…1.
	ValidationShare float64  `json:"validationShare"`
	Sources         []Source `json:"sources"`
	Tokenizer       string   `json:"tokenizer"` // hash
	Template        string   `json:"template"`  // hash
	Vocab           int32    `json:"vocab"`     // token ids lie in [0, Vocab)
	Report          Report   `json:"report"`

	RecordPacks int            `json:"recordPacks"` // packs in each record but the last
	Files       []ManifestFile `json:"files"`

	// Checksum is the SHA-256 of this manifest, written the same way with an empty checksum.
	Checksum string `json:"checksum"`
}

// ManifestFile is one Arrow IPC file.
type ManifestFile struct {
	Name    string           `json:"name"` // base name
	Bytes   int64            `json:"bytes"`
	SHA256  string           `json:"sha256"`
	Records []ManifestRecord `json:"records"`
}

// ManifestRecord is one record message in its file.
type ManifestRecord struct {
	Offset  int64  `json:"offset"`
	Bytes   int64  `json:"bytes"`
	Content string `json:"content"` // SHA-256 of its packs
}

// encode writes the manifest with its checksum.
func (m *Manifest) encode() ([]byte, error) {
	c := *m
	c.Checksum = ""
	b, err := json.MarshalIndent(&c, "", " ")
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	c.Checksum = hex.EncodeToString(sum[:])
	m.Checksum = c.Checksum
	if b, err = json.MarshalIndent(&c, "", " "); err != nil {
		return nil, err
	}
	return append(b, '\n'), nil
}

// decodeManifest reads and checks a manifest. It never panics.
func decodeManifest(b []byte) (*Manifest, error) {
	var head struct {
		Magic   string `json:"magic"`
		Version int    `json:"version"`
	}
	if err := json.Unmarshal(b, &head); err != nil || head.Magic != manifestMagic {
		return nil, errors.New("not the manifest of a Skein data set")
	}
	if head.Version != manifestVersion {
		return nil, fmt.Errorf("data set of version %d, this build reads version %d; prepare the data again", head.Version, manifestVersion)
	}
	var m Manifest
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return nil, fmt.Errorf("damaged manifest: %w", err)
	}
	sum := m.Checksum
	if again, err := m.encode(); err != nil || m.Checksum != sum || !bytes.Equal(again, b) {
		return nil, errors.New("damaged manifest: its checksum does not match; prepare the data again")
	}
	return &m, m.check()
}

// check holds a manifest to what every reader relies on, sizes above all: nothing is allocated by a number not checked here.
func (m *Manifest) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("manifest: "+format, args...)
	}
	if m.SequenceLength < 2 || m.SequenceLength > maxSeqLen {
		return bad("sequence length %d, must be 2 to %d", m.SequenceLength, maxSeqLen)
	}
	if m.RecordPacks != recordPacks(m.SequenceLength) {
		return bad("%d packs a record, want %d", m.RecordPacks, recordPacks(m.SequenceLength))
	}
	if m.Vocab <= 0 || m.Report.Packs <= 0 || m.Report.Packs > 1<<40 {
		return bad("vocabulary %d, %d packs", m.Vocab, m.Report.Packs)
	}
	records := int64(0)
	leaves := sha256.New()
	for _, f := range m.Files {
		if f.Name == "" || f.Name != filepath.Base(f.Name) || f.Name == "." || f.Name == ".." {
			return bad("file name %.80q", f.Name)
		}
		end := int64(0)
		for _, r := range f.Records {
			if r.Offset < end || r.Bytes < 8 || r.Bytes > m.maxRecordBytes() || r.Offset > f.Bytes-r.Bytes {
				return bad("%s: record at %d of %d bytes", f.Name, r.Offset, r.Bytes)
			}
			end = r.Offset + r.Bytes
			leaf, err := hex.DecodeString(r.Content)
			if err != nil || len(leaf) != sha256.Size {
				return bad("%s: record hash %.80q", f.Name, r.Content)
			}
			leaves.Write(leaf)
		}
		records += int64(len(f.Records))
	}
	if want := (m.Report.Packs + int64(m.RecordPacks) - 1) / int64(m.RecordPacks); records != want {
		return bad("%d records for %d packs, want %d", records, m.Report.Packs, want)
	}
	if m.ContentHash != rootHash(m.SequenceLength, m.Report.Packs, leaves.Sum(nil)) {
		return bad("the content hash does not follow from the records")
	}
	return nil
}

// maxRecordBytes is the most that a full record can take: two ints a token, at most one document a token, an offset and a
// padding a pack, and metadata.
func (m *Manifest) maxRecordBytes() int64 {
	return int64(m.RecordPacks)*(12*int64(m.SequenceLength)+8) + 64<<10
}

// rootHash is the content hash of a data set:
//
//	SHA-256( "skein dataset 1\n" | u32 T | u64 packs | SHA-256( record hashes in order ) )
func rootHash(seqLen int, packs int64, leaves []byte) string {
	b := []byte("skein dataset 1\n")
	b = binary.LittleEndian.AppendUint32(b, uint32(seqLen))
	b = binary.LittleEndian.AppendUint64(b, uint64(packs))
	sum := sha256.Sum256(append(b, leaves...))
	return hex.EncodeToString(sum[:])
}

// ReadManifest reads the manifest of the data set in a folder, and nothing else of it.
func ReadManifest(fsys vfs.FS, dir string) (*Manifest, error) {
	name := filepath.Join(dir, manifestName)
	b, err := vfs.ReadFile(fsys, name, maxManifestBytes)
	if err != nil {
		return nil, fmt.Errorf("data set %s: %w", dir, err)
	}
	m, err := decodeManifest(b)
	if err != nil {
		return nil, fmt.Errorf("data set %s: %w", dir, err)
	}
	return m, nil
}
