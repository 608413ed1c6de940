package shard

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A bucket's weights lie on several workers, and its hash can only be computed from
// start to end. So its state is handed on, from the worker of the lower ranks to the
// one of the higher ranks. See docs/formats/checkpoint.md:
//
//	| head 32 B | digests of complete tensors, 32 B each | SHA-256 of the open tensor, 108 B or nothing | CRC-32C |
const (
	stateMagic     = "SKEINWHS"
	stateVersion   = 1
	stateHeadBytes = 32
	stateOpenBytes = 4 + 8*4 + sha256.BlockSize + 8 // as crypto/sha256 marshals it
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// State is what SetState needs elsewhere to go on with a bucket where it stands here.
func (h *WeightsHash) State(bucket int) ([]byte, error) {
	if bucket < 0 || bucket >= len(h.buckets) {
		return nil, fmt.Errorf("weights hash: no bucket %d", bucket)
	}
	b := &h.buckets[bucket]
	var open []byte
	if b.open != nil {
		var err error
		if open, err = b.open.(encoding.BinaryMarshaler).MarshalBinary(); err != nil {
			return nil, fmt.Errorf("weights hash: bucket %q: %w", b.bucket.Name, err)
		}
	}
	le := binary.LittleEndian
	state := append(make([]byte, 0, stateHeadBytes+len(b.digests)+len(open)+4), stateMagic...)
	state = le.AppendUint32(state, stateVersion)
	state = le.AppendUint32(state, uint32(bucket))
	state = le.AppendUint64(state, uint64(b.at))
	state = le.AppendUint32(state, uint32(b.span))
	state = le.AppendUint32(state, uint32(len(open)))
	state = append(append(state, b.digests...), open...)
	return le.AppendUint32(state, crc32.Checksum(state, castagnoli)), nil
}

// SetState makes a bucket stand where State was taken, in a hash over the weights of
// the same model at the same world size. Nothing of the bucket may have been fed
// before. Bytes that State does not give are refused, and then nothing is changed.
func (h *WeightsHash) SetState(bucket int, state []byte) error {
	if bucket < 0 || bucket >= len(h.buckets) {
		return fmt.Errorf("weights hash: no bucket %d", bucket)
	}
	b := &h.buckets[bucket]
	if b.at != 0 {
		return fmt.Errorf("weights hash: bucket %q was begun here: its state cannot be set", b.bucket.Name)
	}
	next, err := decodeState(b.bucket, bucket, state)
	if err != nil {
		return fmt.Errorf("weights hash: the state handed on for bucket %q %w", b.bucket.Name, err)
	}
	*b = next
	return nil
}

// At is the element that a bucket is to be fed from.
func (h *WeightsHash) At(bucket int) int64 { return h.buckets[bucket].at }

// decodeState reads what State writes for a bucket and refuses everything else.
func decodeState(bucket Bucket, index int, state []byte) (bucketHash, error) {
	le := binary.LittleEndian
	switch {
	case len(state) < stateHeadBytes+4 || string(state[:8]) != stateMagic:
		return bucketHash{}, errors.New("is none")
	case crc32.Checksum(state[:len(state)-4], castagnoli) != le.Uint32(state[len(state)-4:]):
		return bucketHash{}, errors.New("has a wrong checksum")
	case le.Uint32(state[8:]) != stateVersion:
		return bucketHash{}, fmt.Errorf("has version %d, this program reads %d: run the same version of Skein on all machines", le.Uint32(state[8:]), stateVersion)
	case le.Uint32(state[12:]) != uint32(index):
		return bucketHash{}, fmt.Errorf("is of bucket %d, not %d", le.Uint32(state[12:]), index)
	case le.Uint64(state[16:]) > uint64(bucket.Padded):
		return bucketHash{}, fmt.Errorf("stands at element %d of %d", le.Uint64(state[16:]), bucket.Padded)
	}
	b := bucketHash{bucket: bucket, at: int64(le.Uint64(state[16:]))}
	for b.span < len(bucket.spans) && bucket.spans[b.span].Bucket.Hi <= b.at {
		b.span++
	}
	openBytes := 0
	if b.inTensor() {
		openBytes = stateOpenBytes
	}
	if le.Uint32(state[24:]) != uint32(b.span) || le.Uint32(state[28:]) != uint32(openBytes) ||
		len(state) != stateHeadBytes+b.span*sha256.Size+openBytes+4 {
		return bucketHash{}, fmt.Errorf("holds %d digests and %d bytes, which element %d cannot have", le.Uint32(state[24:]), len(state), b.at)
	}
	body := state[stateHeadBytes : len(state)-4]
	b.digests = bytes.Clone(body[:b.span*sha256.Size])
	if openBytes > 0 {
		return b, b.resume(body[len(body)-openBytes:])
	}
	return b, nil
}

// inTensor tells whether the next element continues a tensor.
func (b *bucketHash) inTensor() bool {
	return b.span < len(b.bucket.spans) && b.at > b.bucket.spans[b.span].Bucket.Lo
}

// resume takes up the SHA-256 of the tensor that b.at lies in.
func (b *bucketHash) resume(open []byte) error {
	t := b.bucket.spans[b.span]
	fed := uint64(len(tensorHead(t))) + uint64(b.at-t.Bucket.Lo)*4
	if n := binary.BigEndian.Uint64(open[len(open)-8:]); n != fed {
		return fmt.Errorf("has hashed %d bytes of tensor %q, element %d needs %d", n, t.Tensor, b.at-t.Bucket.Lo, fed)
	}
	h := sha256.New()
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(open); err != nil {
		return fmt.Errorf("cannot be taken up: %w", err)
	}
	if again, err := h.(encoding.BinaryMarshaler).MarshalBinary(); err != nil || !bytes.Equal(again, open) {
		return errors.New("has bytes that mean nothing")
	}
	b.open = h
	return nil
}
