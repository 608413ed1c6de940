package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/jobspec"
)

func newExport(std streams, eng engine) *cobra.Command {
	var cfg exportConfig
	var cluster clusterFlags
	var dtype, maxShard, output string
	c := &cobra.Command{
		Use:   "export STORE|JOB DIR",
		Short: "Write a checkpoint as a Hugging Face folder",
		Long: `Write the newest checkpoint, or the one of --step, as an ordinary Hugging Face
folder DIR, which must not exist. It appears whole or not at all. Where there is a
folder STORE, it is the store of skein train; else JOB is a job of a cluster, whose
store must be reached from here: an id, the beginning of one, or a name that only one
active job has.`,
		Example: `  skein export ./checkpoints ./pronounce-step-16 --step 16
  skein export ./checkpoints ./pronounce-fp32 --dtype fp32
  skein export pronounce-7f3a ./pronounce --coordinator 10.0.0.1:7401`,
		Args: args("STORE|JOB", "DIR"),
		RunE: func(c *cobra.Command, args []string) error {
			cfg.Store, cfg.Dir = args[0], args[1]
			return runExport(c.Context(), std, eng, cfg, cluster, dtype, maxShard, output)
		},
	}
	cluster.add(c)
	c.Flags().Int64Var(&cfg.Step, "step", newest, "which checkpoint; -1 is the newest, 0 the imported model")
	weightFlags(c, &dtype, &maxShard)
	outputFlag(c, &output)
	return c
}

// newest is the step that stands for the newest checkpoint.
const newest = -1

// exported is what skein export reports.
type exported struct {
	Dir  string `json:"dir"`
	Step int64  `json:"step"`
}

// weightFlags adds the flags of commands that write a model.
func weightFlags(c *cobra.Command, dtype, maxShard *string) {
	c.Flags().StringVar(dtype, "dtype", string(jobspec.DTypeBF16), "type of the written weights: bf16 or fp32")
	c.Flags().StringVar(maxShard, "max-shard", "5GB", "largest safetensors file")
}

// parseWeights reads the flags of weightFlags.
func parseWeights(dtype, maxShard string) (jobspec.DType, jobspec.ByteSize, error) {
	if err := oneOf("dtype", dtype, string(jobspec.DTypeBF16), string(jobspec.DTypeFP32)); err != nil {
		return "", 0, err
	}
	var size jobspec.ByteSize
	if err := size.UnmarshalText([]byte(maxShard)); err != nil || size < 1<<20 {
		return "", 0, usageError{fmt.Errorf("--max-shard is %q; give a size from 1MiB up, such as 5GB", maxShard)}
	}
	return jobspec.DType(dtype), size, nil
}

func runExport(ctx context.Context, std streams, eng engine, cfg exportConfig, cluster clusterFlags, dtype, maxShard, output string) error {
	if err := oneOf("output", output, outputText, outputJSON); err != nil {
		return err
	}
	if cfg.Step < newest {
		return usageError{fmt.Errorf("--step is %d; -1 is the newest checkpoint", cfg.Step)}
	}
	var err error
	if cfg.DType, cfg.MaxShard, err = parseWeights(dtype, maxShard); err != nil {
		return err
	}
	if !isStore(cfg.Store, cluster) {
		if cfg.Store, err = storeOf(ctx, std, cluster, cfg.Store); err != nil {
			return err
		}
	}
	step, err := eng.Export(ctx, cfg)
	if err != nil {
		return err
	}
	return std.report(output, exported{cfg.Dir, step}, fmt.Sprintf("exported %s: the weights of step %d, %s\n", cfg.Dir, step, dtype))
}

// isStore tells whether a word is meant as a folder: it looks like one, is one, or no
// cluster is named that could have a job of that name.
func isStore(word string, cluster clusterFlags) bool {
	info, err := os.Stat(word)
	named := cluster.kube.on || len(addresses(cluster.coordinators, os.Getenv(coordinatorVariable))) > 0
	return strings.ContainsAny(word, "/\\.") || err == nil && info.IsDir() || !named
}

// storeOf is the folder of a job's checkpoints, in which the newest that the log has
// published can be found.
func storeOf(ctx context.Context, std streams, cluster clusterFlags, word string) (dir string, err error) {
	err = cluster.with(ctx, std, func(ctx context.Context, c *client.Client) error {
		dir, err = c.StoreOf(ctx, vfs.OS, word)
		return err
	})
	return dir, err
}
