package native

// ISA chooses between the two forms of a kernel that has two. They give the same bits.
type ISA int64

// What kernels of two forms run on.
const (
	AVX512 ISA = iota
	AVX2
)
