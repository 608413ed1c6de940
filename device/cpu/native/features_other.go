//go:build !amd64

package native

// absent is what kernels panic with here.
const absent = "native: no kernels for this architecture"

// Features reports that there are no native kernels here.
func Features() Set { return Set{} }
