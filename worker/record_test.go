package worker

import (
	"encoding/json"
	"math"
	"slices"
	"testing"

	"github.com/skein-ml/skein/checkpoint"
)

func TestTheRecordOfAnyNumberOfStepsIsTold(t *testing.T) {
	var history []checkpoint.StepRecord
	for step := range int64(25) {
		history = append(history, checkpoint.StepRecord{Step: step + 1, Loss: checkpoint.Number(step), Tokens: 7})
	}
	var told [][]byte
	got, err := passSteps(history, 1, 4, 23, 6, func(_ string, own []byte) ([][]byte, error) {
		told = append(told, own)
		return [][]byte{nil, own}, nil
	})
	if err != nil || !slices.Equal(got, history[4:23]) {
		t.Errorf("who knows them gets %v, %v", got, err)
	}
	n := 0
	got, err = passSteps(nil, 1, 4, 23, 6, func(_ string, own []byte) ([][]byte, error) {
		if own != nil {
			t.Errorf("who knows nothing tells %s", own)
		}
		n++
		return [][]byte{nil, told[n-1]}, nil
	})
	if err != nil || !slices.Equal(got, history[4:23]) || n != 4 {
		t.Errorf("who knows nothing gets %v in %d parts, %v", got, n, err)
	}
	long, err := json.Marshal(checkpoint.StepRecord{Step: math.MaxInt64, Loss: -math.MaxFloat64 / 3, GradNorm: -math.MaxFloat64 / 3, Tokens: math.MaxInt64, Skipped: true})
	if err != nil {
		t.Fatal(err)
	}
	if bytes := (len(long) + 1) * stepsPart; bytes > 64<<20 {
		t.Errorf("a part may have %d bytes, more than a message holds", bytes)
	}
}

func TestMeasurementsAreLearntOnceAndInTheOrderOfTheirSteps(t *testing.T) {
	s := &store{}
	s.lineage.Results = []checkpoint.Result{{Step: 0, Name: lossName, Value: 5}, {Step: 10, Name: lossName, Value: 3}, {Step: 10, Name: tokensName, Value: 900}}
	s.state.Chain = []checkpoint.Link{{Step: 0}, {Step: 5}}
	s.learn([]checkpoint.Result{{Step: 10, Name: lossName, Value: 3}, {Step: 5, Name: tokensName, Value: 450}, {Step: 5, Name: lossName, Value: 4}})
	s.dropUnpublished()
	want := []checkpoint.Result{{Step: 0, Name: lossName, Value: 5}, {Step: 5, Name: tokensName, Value: 450}, {Step: 5, Name: lossName, Value: 4}, {Step: 10, Name: lossName, Value: 3}}
	if !slices.Equal(s.lineage.Results, want) {
		t.Errorf("%v, want %v", s.lineage.Results, want)
	}
}
