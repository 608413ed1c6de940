#!/usr/bin/env bash
# Goodput under kill -9 of a worker once a minute in the mean, ours and torchrun's elastic
# restart one after the other. MINUTES of each line, STEPS are the lengths of steps in seconds,
# SEED draws the moments. OURS=only leaves torchrun out.
#
#   MINUTES=10 STEPS="1 11" scripts/bench-recovery.sh
set -euo pipefail

cd "$(dirname "$0")/.."
export TRANSFORMERS_VERBOSITY=error
binary=$(mktemp -d)/recovery.test
trap 'rm -rf "$(dirname "$binary")"' EXIT
go test -c -o "$binary" ./cmd/skein
for step in ${STEPS:-1 11}; do
	(cd cmd/skein && SKEIN_BENCH_RECOVERY=${MINUTES:-10} SKEIN_BENCH_STEP=$step SKEIN_BENCH_SEED=${SEED:-1} "$binary" -test.run 'TestBenchRecovery$' -test.timeout 0) |
		grep -Ev '^(PASS|ok )'
	[ "${OURS:-}" = only ] ||
		.cache/oracle/bin/python scripts/oracle/bench_recovery.py --minutes "${MINUTES:-10}" --step "$step" --seed "${SEED:-1}"
done
