package checkpoint

import (
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
)

// What is written has the generation of its writer in its name, and the hash of its
// content: a worker that was given up for dead and writes on can hit no file of those
// that replaced it. While a file is written its name is random instead, for the same
// reason.
const (
	manifestName   = "manifest.json"
	manifestSuffix = ".json"
	objectSuffix   = ".obj"
	tempSuffix     = ".tmp"
	// manifestNameMax is the longest that manifestPath gives.
	manifestNameMax = 128
)

// ownName matches what this package writes into a step's folder besides
// manifest.json. Versions before generations wrote names without -g.
var ownName = regexp.MustCompile(`^(?:rank-\d\d-(?:master|m|v)(?:-g(\d{1,20}))?(?:\.tmp|-[0-9a-f]{16}\.(?:obj|tmp))` +
	`|manifest(?:\.json\.tmp|-g(\d{1,20})-(?:[0-9a-f]{64}\.json|[0-9a-f]{16}\.tmp)))$`)

// ofGeneration tells whether a name is ours and of this generation. Names without one
// belong to generation 0.
func ofGeneration(name string, generation uint64) bool {
	m := ownName.FindStringSubmatch(name)
	if m == nil {
		return false
	}
	g := m[1] + m[2]
	return g == strconv.FormatUint(generation, 10) || g == "" && generation == 0
}

func objectStem(kind Kind, rank shard.Rank, generation uint64) string {
	return fmt.Sprintf("rank-%02d-%v-g%d", rank, kind, generation)
}

// objectName holds the first half of the content's hash: the manifest has all of it.
func objectName(kind Kind, rank shard.Rank, generation uint64, sum shard.Digest) string {
	return fmt.Sprintf("%s-%x%s", objectStem(kind, rank, generation), sum[:8], objectSuffix)
}

func manifestStem(generation uint64) string { return fmt.Sprintf("manifest-g%d", generation) }

// tempName is a name that nobody else has.
func tempName(stem string) string { return stem + "-" + vfs.Unique() + tempSuffix }

// manifestPath names a manifest in a store, with slashes: step-00000012/manifest-g3-<sha256>.json.
func manifestPath(step int64, generation uint64, sum shard.Digest) string {
	return path.Join(stepName(step), fmt.Sprintf("%s-%s%s", manifestStem(generation), sum, manifestSuffix))
}

var manifestPattern = regexp.MustCompile(`^(step-\d{8,18})/manifest-g(\d{1,20})-([0-9a-f]{64})\.json$`)

// parseManifestPath reads what manifestPath writes and refuses everything else.
func parseManifestPath(name string) (step int64, generation uint64, sum shard.Digest, err error) {
	fail := func() (int64, uint64, shard.Digest, error) {
		return 0, 0, shard.Digest{}, fmt.Errorf("%.80q is not the name of a manifest, which are like step-00000012/manifest-g3-<sha256>.json", name)
	}
	if len(name) > manifestNameMax {
		return fail()
	}
	m := manifestPattern.FindStringSubmatch(name)
	if m == nil {
		return fail()
	}
	step, ok := parseStep(m[1])
	generation, genErr := strconv.ParseUint(m[2], 10, 64)
	if sumErr := sum.UnmarshalText([]byte(m[3])); !ok || genErr != nil || sumErr != nil || manifestPath(step, generation, sum) != name {
		return fail()
	}
	return step, generation, sum, nil
}

// baseName is the file of a manifest in its step's folder.
func baseName(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }
