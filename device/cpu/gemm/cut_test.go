package gemm

import "testing"

// The head asks for the scratch of a whole block and then multiplies only the rows
// that have a target, so scratch for many rows has to do for fewer.
func TestScratchForManyRowsDoesForFewer(t *testing.T) {
	shapes := [][2]int{{49152, 576}, {576, 49152}, {576, 576}, {3072, 576}, {576, 1536}, {67, 39}, {8192, 2048}, {33, 5000}}
	for name, e := range map[string]engine{"f32": vector{}, "bf16 as f32": vector{bf16: true}, "tiles": tiles{}} {
		for _, workers := range []int{1, 2, 3, 4, 8, 16} {
			for _, s := range shapes {
				n, k := s[0], s[1]
				const rowsMax = 512
				products := scratchBound(e, rowsMax, n, k, workers)
				gradients := scratchBound(e, n, k, rowsMax, workers)
				for rows := 1; rows <= rowsMax; rows++ {
					if need := newCut(e, rows, n, k, workers).bytes(workers); need > products {
						t.Fatalf("%s, %d workers: [%d, %d]·[%d, %d] needs %d bytes, %d rows are given %d",
							name, workers, rows, k, k, n, need, rowsMax, products)
					}
					if need := newCut(e, n, k, rows, workers).bytes(workers); need > gradients {
						t.Fatalf("%s, %d workers: a gradient [%d, %d] over %d rows needs %d bytes, %d rows are given %d",
							name, workers, n, k, rows, need, rowsMax, gradients)
					}
				}
			}
		}
	}
}
