package shard

import "fmt"

// Stage is the ZeRO stage of a job: what is cut over the ranks instead of being
// kept whole by each of them (Rajbhandari et al., arXiv:1910.02054). Stages differ
// in memory and traffic, never in bits.
type Stage int

// The stages. Each also cuts what the ones before it cut.
const (
	StageReplicated Stage = iota // 0: nothing
	StageOptimizer               // 1: master weights and moments
	StageGradients               // 2: gradients
	StageWeights                 // 3: working weights
)

// CheckStage refuses a stage that does not exist.
func CheckStage(s Stage) error {
	switch s {
	case StageReplicated, StageOptimizer, StageGradients, StageWeights:
		return nil
	}
	return fmt.Errorf("ZeRO stage %d does not exist: use 0, 1, 2 or 3", s)
}
