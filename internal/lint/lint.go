// Package lint holds the checks on the source itself: who may import whom, how
// long a function and a file may grow, what may not be called where, which words
// are left over, whether links lead anywhere. They run with every `go test`, so
// a broken rule is a failing test and never a review comment.
//
// The package has no code to import; its tests walk the tree.
package lint
