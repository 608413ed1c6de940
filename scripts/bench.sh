#!/usr/bin/env bash
# Benchmarks against the libraries people use otherwise, ours and theirs taking
# turns in one run: only such ratios mean something. The argument is a prefix of
# the benchmarks to run; without one, all run.
#
#   scripts/bench.sh tokenizer
set -euo pipefail

cd "$(dirname "$0")/.."
PYTHON=.cache/oracle/bin/python
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

bench tokenizer "$PYTHON" scripts/oracle/tokenizer_bench.py .cache/testdata
bench ring scripts/bench-ring.sh

[ "$ran" -gt 0 ] || {
	echo "bench: no benchmark begins with ${prefix@Q}; there are: tokenizer, ring" >&2
	exit 2
}
