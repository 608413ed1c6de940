#!/usr/bin/env bash
# Runs every fuzz target of the repository on so many inputs (default 20000x). A
# count and no time, because a count is never late: with a time, the go command
# now and then fails with "context deadline exceeded" on a busy machine, though
# nothing was found (go.dev/issue/75804).
#
# It starts from the inputs in the package's testdata/fuzz, which go test runs
# too: files that lie in one way each, made by hand and named by what is wrong in
# them, and whatever fuzzing has found. A crasher is written there and is to be
# committed, under a name that says what it is.
set -euo pipefail

cd "$(dirname "$0")/.."
inputs=${1:-20000x}
[[ $inputs =~ ^[0-9]+x$ ]] || { echo "fuzz: say how many inputs, as 20000x; not \"$inputs\"" >&2; exit 2; }
count=0
mkdir -p .cache
while read -r dir; do
	for target in $(grep -rhoE '^func (Fuzz[A-Za-z0-9_]*)' "$dir"/*_test.go | cut -d' ' -f2); do
		echo "fuzz $dir $target $inputs"
		go test -tags invariants -run '^$' -fuzz "^$target\$" -fuzztime "$inputs" -fuzzminimizetime 100x "./$dir" >.cache/fuzz.log 2>&1 || {
			cat .cache/fuzz.log
			echo "fuzz: $target in $dir failed; its input is in $dir/testdata/fuzz/$target"
			exit 1
		}
		count=$((count + 1))
	done
done < <(git ls-files -co --exclude-standard '*_test.go' | xargs grep -l '^func Fuzz' | xargs -n1 dirname | sort -u)
echo "fuzz: $count targets, nothing found"
