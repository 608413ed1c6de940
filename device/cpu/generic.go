package cpu

import (
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// genericTable is plain Go for every entry: the specification.
func genericTable() kernel.Table {
	const f, b = device.F32, device.BF16
	return kernel.Table{
		Scratch: int64(unsafe.Sizeof(tileScratch{})),

		RMSNorm:     [2]func(*kernel.RMSNorm, int, int){f: rmsNorm(f), b: rmsNorm(b)},
		RMSNormGrad: [2]func(*kernel.RMSNormGrad, int, int, unsafe.Pointer){f: rmsNormGrad(f), b: rmsNormGrad(b)},
		Rope:        [2]func(*kernel.Rope, int, int){f: rope(f), b: rope(b)},
		GLU:         [2]func(*kernel.GLU, int, int){f: glu(f), b: glu(b)},
		GLUGrad:     [2]func(*kernel.GLUGrad, int, int){f: gluGrad(f), b: gluGrad(b)},

		LayerNorm:     [2]func(*kernel.LayerNorm, int, int){f: layerNorm(f), b: layerNorm(b)},
		LayerNormGrad: [2]func(*kernel.LayerNormGrad, int, int, unsafe.Pointer){f: layerNormGrad(f), b: layerNormGrad(b)},
		Activate:      [2]func(y, x unsafe.Pointer, n int, act device.Act){f: activate(f), b: activate(b)},
		ActivateGrad:  [2]func(dx, dy, x unsafe.Pointer, n int, act device.Act){f: activateGrad(f), b: activateGrad(b)},

		Add:  [2]func(dst, a, b unsafe.Pointer, n int){f: addElements(f), b: addElements(b)},
		Cast: [2]func(dst, src unsafe.Pointer, n int){f: castElements(f), b: castElements(b)},

		Attention:       [2]func(*kernel.Attention, kernel.Tile, unsafe.Pointer){f: attention(f), b: attention(b)},
		AttentionDelta:  [2]func(*kernel.AttentionGrad, int, int){f: attentionDelta(f), b: attentionDelta(b)},
		AttentionGrad:   [2]func(*kernel.AttentionGrad, kernel.Pair, unsafe.Pointer){f: attentionGrad(f), b: attentionGrad(b)},
		AttentionDecode: [2]func(*kernel.AttentionDecode, int, unsafe.Pointer){f: attentionDecode(f), b: attentionDecode(b)},

		CrossEntropy: [2]func(*kernel.CrossEntropy, int, int){f: crossEntropy(f), b: crossEntropy(b)},
		ColumnSum:    [2]func(*kernel.ColumnSum, int, int){f: columnSum(f), b: columnSum(b)},
		EmbedGrad:    [2]func(*kernel.EmbedGrad, int, int, unsafe.Pointer){f: embedGradSlots(f), b: embedGradSlots(b)},

		AdamW:  [2]func(*kernel.AdamW, int, int){f: adamW(f), b: adamW(b)},
		SqNorm: sumSquares64,
	}
}
