//go:build !amd64

package native

// Features reports that there are no native kernels here.
func Features() Set { return Set{} }
