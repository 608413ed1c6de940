package hf

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skein-ml/skein/internal/strictjson"
)

const (
	singleFile    = "model.safetensors"
	indexFile     = "model.safetensors.index.json"
	indexBytesMax = 64 << 20
	shardsMax     = 4096
)

// parseIndex reads model.safetensors.index.json. It returns the file of each tensor
// and the files' names, sorted. A name that is not that of a safetensors file in the
// same folder is refused.
func parseIndex(data []byte) (fileOf map[string]string, files []string, err error) {
	members, err := strictjson.Object(data)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", indexFile, err)
	}
	var weightMap json.RawMessage
	for _, m := range members {
		if m.Key == "weight_map" {
			weightMap = m.Value
		}
	}
	if weightMap == nil {
		return nil, nil, fmt.Errorf("%s: weight_map is missing", indexFile)
	}
	entries, err := strictjson.Object(weightMap)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: weight_map: %w", indexFile, err)
	}
	fileOf = make(map[string]string, len(entries))
	for _, m := range entries {
		var file string
		if err := json.Unmarshal(m.Value, &file); err != nil {
			return nil, nil, fmt.Errorf("%s: weight_map: the file of %q is not a string", indexFile, m.Key)
		}
		if !isShardName(file) {
			return nil, nil, fmt.Errorf("%s: weight_map: %q points to %q, which is no safetensors file in the model's folder", indexFile, m.Key, file)
		}
		fileOf[m.Key] = file
		files = append(files, file)
	}
	slices.Sort(files)
	files = slices.Compact(files)
	if len(files) == 0 || len(files) > shardsMax {
		return nil, nil, fmt.Errorf("%s: weight_map names %d files; from 1 to %d are read", indexFile, len(files), shardsMax)
	}
	return fileOf, files, nil
}

// isShardName accepts plain file names only: no folder, no parent, nothing hidden.
func isShardName(name string) bool {
	return strings.HasSuffix(name, ".safetensors") && !strings.HasPrefix(name, ".") &&
		!strings.ContainsAny(name, "/\\:\x00") && filepath.IsLocal(name) && len(name) <= 255
}

// shardName is the name of shard i of n, both as transformers counts them, from 1.
func shardName(i, n int) string { return fmt.Sprintf("model-%05d-of-%05d.safetensors", i, n) }
