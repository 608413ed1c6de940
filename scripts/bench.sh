#!/usr/bin/env bash
# Benchmarks against the libraries people use otherwise, ours and theirs taking
# turns in one run: only such ratios mean something. The argument is a prefix of
# the benchmarks to run; without one, all run, which takes hours. docs/BENCHMARKS.md
# says what each is and what it has shown.
#
#   scripts/bench.sh tokenizer
#   scripts/bench.sh smollm2-bf16-step
#   scripts/bench.sh --quick            # ours alone on little data, to see that it runs
set -euo pipefail

cd "$(dirname "$0")/.."
PYTHON=.cache/oracle/bin/python
SKEIN=bin/skein
export TOKENIZERS_PARALLELISM=false TRANSFORMERS_VERBOSITY=error

quick() {
	"$SKEIN" bench peak
	for workload in gpt2-bf16-step smollm2-f32-step; do
		"$SKEIN" bench "$workload" --quick --steps 1
	done
	"$SKEIN" bench products --quick --steps 1
	"$SKEIN" bench allocations
}

if [ "${1:-}" = --quick ]; then
	quick
	exit 0
fi
prefix=${1:-}
ran=0

# bench NAME COMMAND…: runs the command if NAME begins with the prefix.
bench() {
	local name=$1
	shift
	[[ $name == "$prefix"* ]] || return 0
	echo "== $name"
	"$@"
	ran=$((ran + 1))
}

# Training steps and their memory, products, allocations. Status 3 says that none has the prefix.
status=0
"$PYTHON" scripts/oracle/bench.py "$SKEIN" "$prefix" --rounds "${ROUNDS:-3}" ${SKEIN_CPU_PATH:+--path "$SKEIN_CPU_PATH"} || status=$?
case $status in
0) ran=1 ;;
3) ;;
*) exit $status ;;
esac
bench cluster-smollm2 "$PYTHON" scripts/oracle/bench_cluster.py "$SKEIN"
bench tokenizer "$PYTHON" scripts/oracle/tokenizer_bench.py .cache/testdata
bench ring scripts/bench-ring.sh

[ "$ran" -gt 0 ] || {
	echo "bench: no benchmark begins with ${prefix@Q}; there are: gpt2-, smollm2-, mem-, gemm-, alloc-step, cluster-smollm2, tokenizer, ring" >&2
	exit 2
}
