package model_test

import (
	"testing"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/eval"
	"github.com/skein-ml/skein/model"
	"github.com/skein-ml/skein/model/modeltest"
)

func TestDecodingTokenByTokenGivesTheLogitsOfOneForward(t *testing.T) {
	eachPath(t, func(t *testing.T, dev device.Device) {
		for _, name := range modeltest.Names(t) { // with windows, biases, tied and untied heads
			t.Run(name, func(t *testing.T) {
				g := modeltest.Load(t, name)
				s := dev.Stream(device.StreamCompute)
				m, err := model.New(dev, g.Config, model.Options{DType: device.F32, SeqLen: g.SeqLen, Sequences: 1, ForwardOnly: true})
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				if err := m.LoadWeights(s, modeltest.Weights{Model: g.Config}); err != nil {
					t.Fatal(err)
				}
				d, err := m.NewDecoder(g.SeqLen)
				if err != nil {
					t.Fatal(err)
				}
				defer d.Close()
				ids, prompt := g.IDs[:g.SeqLen], 5
				want := forwardLogits(t, dev, m, ids)
				got, err := d.Prefill(s, ids[:prompt], eval.Resident{})
				for at := prompt; ; at++ {
					if err != nil {
						t.Fatal(err)
					}
					row := want[(at-1)*g.Config.Vocab : at*g.Config.Vocab]
					if diff := distance(got, row); diff > logitTol {
						t.Fatalf("after %d tokens the logits differ by %.2g of the largest", at, diff)
					}
					if at == len(ids) {
						break
					}
					got, err = d.Decode(s, ids[at], eval.Resident{})
				}
				if !d.Full() {
					t.Error("the cache took every token and is not full")
				}
				if _, err := d.Decode(s, 1, eval.Resident{}); err == nil {
					t.Error("a full cache took one more token")
				}
			})
		}
	})
}

// forwardLogits is the logits of one document, all rows.
func forwardLogits(t *testing.T, dev device.Device, m *model.Model, ids []int32) []float32 {
	t.Helper()
	s := dev.Stream(device.StreamCompute)
	out := alloc(t, dev, len(ids), m.Config().Vocab)
	if err := m.Logits(s, model.Batch{IDs: ids, CuDocs: []int32{0, int32(len(ids))}}, 0, len(ids), out, eval.Resident{}); err != nil {
		t.Fatal(err)
	}
	host := make([]float32, len(ids)*m.Config().Vocab)
	dev.Download(s, device.HostBytes(host), out.Buf)
	if err := s.Record().Wait(); err != nil {
		t.Fatal(err)
	}
	return host
}

func TestABatchThatWouldReadOutsideATableIsRefused(t *testing.T) {
	g := modeltest.Load(t, "llama-tied-gqa")
	dev := genericDevice(t)
	s := dev.Stream(device.StreamCompute)
	m, err := model.New(dev, g.Config, model.Options{DType: device.F32, SeqLen: 8, Sequences: 1, ForwardOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	vocab := int32(g.Config.Vocab)
	for name, b := range map[string]model.Batch{
		"no tokens":                   {CuDocs: []int32{0}},
		"too many tokens":             {IDs: make([]int32, 9), CuDocs: []int32{0, 9}},
		"an id beyond the vocabulary": {IDs: []int32{vocab}, CuDocs: []int32{0, 1}},
		"a negative id":               {IDs: []int32{-1}, CuDocs: []int32{0, 1}},
		"a target beyond":             {IDs: []int32{0}, Targets: []int32{vocab}, CuDocs: []int32{0, 1}},
		"too few targets":             {IDs: []int32{0, 0}, Targets: []int32{0}, CuDocs: []int32{0, 2}},
		"documents that end early":    {IDs: []int32{0, 0}, CuDocs: []int32{0, 1}},
		"documents out of order":      {IDs: []int32{0, 0}, CuDocs: []int32{0, 2, 1, 2}},
	} {
		if err := m.Evaluate(s, b, device.Tensor{}, eval.Resident{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
