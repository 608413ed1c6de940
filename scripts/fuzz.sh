#!/usr/bin/env bash
# Runs every fuzz target of the repository for the given time (default 5s).
# A crasher is written to the package's testdata/fuzz and is to be committed.
set -euo pipefail

cd "$(dirname "$0")/.."
seconds=${1:-5s}
count=0
while read -r dir; do
	for target in $(grep -rhoE '^func (Fuzz[A-Za-z0-9_]*)' "$dir"/*_test.go | cut -d' ' -f2); do
		echo "fuzz $dir $target $seconds"
		go test -tags invariants -run '^$' -fuzz "^$target\$" -fuzztime "$seconds" -fuzzminimizetime 100x "./$dir" >.cache/fuzz.log 2>&1 || {
			cat .cache/fuzz.log
			echo "fuzz: $target in $dir failed; its input is in $dir/testdata/fuzz/$target"
			exit 1
		}
		count=$((count + 1))
	done
done < <(git ls-files -co --exclude-standard '*_test.go' | xargs grep -l '^func Fuzz' | xargs -n1 dirname | sort -u)
echo "fuzz: $count targets, nothing found"
