package shard

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"

	"github.com/skein-ml/skein/internal/invariant"
)

// The weights hash is the identity of a set of master weights. Its definition is
// fixed, for it stands in lineages and golden tests:
//
//	tensor digest = SHA-256( "skein tensor 1\n" | u32 len(name) | name | u64 elements | fp32 elements )
//	weights hash  = SHA-256( "skein weights 1\n" | tensor digests in the order of the table )
//
// All numbers are little-endian, elements are the fp32 master weights in the
// layout of record, padding is left out. So the hash depends neither on the world
// size nor on how the bytes were cut while they were fed in.

// WeightsHash computes the weights hash from stretches of buckets. Each bucket
// must be fed from its start to its end; different buckets may be fed in any
// order, and from different goroutines. Where a bucket lies on several workers, each
// feeds what it has and hands State on to the next.
type WeightsHash struct {
	buckets []bucketHash
}

type bucketHash struct {
	bucket  Bucket
	at      int64 // next element, padding included
	span    int   // the tensor that at lies in
	open    hash.Hash
	digests []byte // of the tensors that are complete, one after the other
}

// NewWeightsHash starts a hash over the weights of a table.
func NewWeightsHash(t Table) *WeightsHash {
	h := &WeightsHash{buckets: make([]bucketHash, t.Buckets())}
	for i := range h.buckets {
		h.buckets[i].bucket = t.Bucket(i)
	}
	return h
}

// Write feeds elements [lo, lo+len(le)/4) of a bucket as little-endian fp32. lo
// must be where the bucket's last Write ended, and the stretch must lie inside
// the bucket; what lies in the padding is ignored.
func (h *WeightsHash) Write(bucket int, lo int64, le []byte) error {
	if bucket < 0 || bucket >= len(h.buckets) {
		return fmt.Errorf("weights hash: no bucket %d", bucket)
	}
	return h.buckets[bucket].write(lo, le)
}

func (b *bucketHash) write(lo int64, le []byte) error {
	n := int64(len(le) / 4)
	if len(le)%4 != 0 || lo != b.at || n > b.bucket.Padded-lo {
		return fmt.Errorf("weights hash: bucket %q stands at element %d of %d, got %d bytes for element %d",
			b.bucket.Name, b.at, b.bucket.Padded, len(le), lo)
	}
	for _, s := range b.bucket.Spans(lo, lo+n) {
		if b.open == nil {
			b.begin()
		}
		b.open.Write(le[(s.Bucket.Lo-lo)*4 : (s.Bucket.Hi-lo)*4])
		if s.Bucket.Hi == b.bucket.spans[b.span].Bucket.Hi {
			b.digests = b.open.Sum(b.digests)
			b.open = nil
			b.span++
		}
	}
	b.at += n
	return nil
}

// begin opens the digest of tensor b.span.
func (b *bucketHash) begin() {
	b.open = sha256.New()
	b.open.Write(tensorHead(b.bucket.spans[b.span]))
}

// tensorHead is what a tensor's digest begins with.
func tensorHead(t Span) []byte {
	head := []byte("skein tensor 1\n")
	head = binary.LittleEndian.AppendUint32(head, uint32(len(t.Tensor)))
	head = append(head, t.Tensor...)
	return binary.LittleEndian.AppendUint64(head, uint64(t.Bucket.Len()))
}

// Sum is the weights hash. Every real element must have been fed.
func (h *WeightsHash) Sum() (Digest, error) {
	root := sha256.New()
	root.Write([]byte("skein weights 1\n"))
	for i := range h.buckets {
		b := &h.buckets[i]
		if b.at < b.bucket.Elems {
			return Digest{}, fmt.Errorf("weights hash: bucket %q ends at element %d of %d", b.bucket.Name, b.at, b.bucket.Elems)
		}
		invariant.Check(len(b.digests) == sha256.Size*len(b.bucket.spans), "bucket %q: a tensor was not closed", b.bucket.Name)
		root.Write(b.digests)
	}
	return Digest(root.Sum(nil)), nil
}
