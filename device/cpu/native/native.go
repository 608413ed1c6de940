// Package native holds the kernels that need vector instructions: C intrinsics in
// src, compiled ahead of time into the committed Go assembly files beside this one
// (see README.md). Nothing here checks bounds or CPU features; callers do.
package native

//go:generate go run ./gen
