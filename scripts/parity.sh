#!/usr/bin/env bash
# Live parity with PyTorch on SmolLM2 and on the demo's recipe: scripts/oracle/parity.py says what is compared.
# Arguments are passed on: --quick leaves out the 24 steps in bf16.
set -euo pipefail
cd "$(dirname "$0")/.."

work=.cache/parity
mkdir -p "$work"
rm -rf "$work/model" # made afresh, so that the importer is part of what is compared
bin/skein import .cache/testdata/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf "$work/model" --dtype fp32
go run ./examples/pronounce -dict .cache/testdata/cmudict/cmudict.dict -out "$work"
exec .cache/oracle/bin/python scripts/oracle/parity.py bin/skein "$work/model" "$work/cmudict-train.jsonl" "$work/cmudict-heldout.jsonl" "$@"
