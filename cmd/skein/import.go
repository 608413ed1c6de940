package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/model/hf"
	"github.com/skein-ml/skein/worker"
)

// importConfig is skein import.
type importConfig struct {
	Model    string // a GGUF file, or a Hugging Face folder to convert
	Dir      string
	DType    jobspec.DType
	MaxShard jobspec.ByteSize
}

// imported is what skein import reports.
type imported struct {
	Dir          string   `json:"dir"`
	Architecture string   `json:"architecture"`
	Parameters   int64    `json:"parameters"`
	Tensors      int      `json:"tensors"`
	DType        string   `json:"dtype"`
	Notices      []string `json:"notices,omitempty"`
}

func newImport(std streams) *cobra.Command {
	var cfg importConfig
	var dtype, maxShard, output string
	c := &cobra.Command{
		Use:   "import MODEL DIR",
		Short: "Turn a GGUF file into a Hugging Face folder",
		Long: `Write the model of a GGUF file (or of a Hugging Face folder, to change its type)
as an ordinary Hugging Face folder DIR: weights, config, tokenizer, chat template.
Types F32, F16, BF16, Q8_0, Q4_0 and Q4_1 are read. DIR must not exist; it appears
whole or not at all.`,
		Example: `  skein import SmolLM2-135M-Instruct.Q4_1.gguf ./SmolLM2-135M-Instruct
  skein import model.gguf ./model-fp32 --dtype fp32`,
		Args: args("MODEL", "DIR"),
		RunE: func(_ *cobra.Command, args []string) error {
			cfg.Model, cfg.Dir = args[0], args[1]
			return runImport(std, cfg, dtype, maxShard, output)
		},
	}
	weightFlags(c, &dtype, &maxShard)
	outputFlag(c, &output)
	return c
}

func runImport(std streams, cfg importConfig, dtype, maxShard, output string) error {
	if err := oneOf("output", output, outputText, outputJSON); err != nil {
		return err
	}
	var err error
	if cfg.DType, cfg.MaxShard, err = parseWeights(dtype, maxShard); err != nil {
		return err
	}
	base, err := worker.OpenBase(cfg.Model)
	if err != nil {
		return err
	}
	defer base.Close()
	options := hf.Options{DType: hf.BF16, ShardBytesMax: int64(cfg.MaxShard), SideFiles: base.Side}
	if cfg.DType == jobspec.DTypeFP32 {
		options.DType = hf.F32
	}
	if err := hf.Export(filepath.Clean(cfg.Dir), base, options); err != nil {
		return err
	}
	c := base.Config()
	r := imported{Dir: cfg.Dir, Architecture: c.Family, Parameters: c.Params(), Tensors: len(c.Tensors()), DType: dtype, Notices: base.Notices}
	return std.report(output, r, r.text())
}

func (r imported) text() string {
	var b strings.Builder
	for _, n := range r.Notices {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	fmt.Fprintf(&b, "imported %s: %s, %s parameters in %d tensors, %s\n", r.Dir, r.Architecture, console.Count(r.Parameters), r.Tensors, r.DType)
	return b.String()
}
