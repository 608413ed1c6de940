#!/usr/bin/env bash
# The demo: SmolLM2-135M-Instruct learns how English words are pronounced. Needs
# bin/skein and the fetched files (`make demo` sees to both) and writes demo-out/.
# DEMO_STEPS=8 makes it shorter and worse; the recipe has 24.
set -euo pipefail

cd "$(dirname "$0")/.."
CACHE=.cache/testdata
OUT=demo-out
STEPS=${DEMO_STEPS:-24}
LONG=600 # seconds after which a smaller demo is offered

[[ $STEPS =~ ^[0-9]+$ ]] && [ "$STEPS" -ge 5 ] || {
	echo "demo: DEMO_STEPS is ${STEPS@Q}; give a number from 5 up, the warm-up takes 5" >&2
	exit 2
}
skein() { bin/skein "$@"; }

rm -rf "$OUT"
mkdir -p "$OUT"
skein import "$CACHE/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$OUT/SmolLM2-135M-Instruct"
go run ./examples/pronounce -dict "$CACHE/cmudict/cmudict.dict" -out "$OUT"
cp examples/pronounce/job.yaml "$OUT/job.yaml"
job=(-f "$OUT/job.yaml" --set "train.steps=$STEPS" --cache "$OUT/data")

echo
plan=$(skein plan "${job[@]}" -o json)
step=$(sed -n 's/^ *"stepSeconds": \([0-9.]*\),*$/\1/p' <<<"$plan")
# In units of a step: one measure of the held-out data is 50 sequences forward, so
# 50/4/3; it is taken before, after and every 8 steps. Answers take about 5 in all.
estimate=$(awk -v s="${step:-0}" -v n="$STEPS" 'BEGIN { printf "%d", s * (n + 4.2 * (2 + int((n - 1) / 8)) + 5) + 25 }')
printf 'about %d seconds on this machine: %d steps of %.1f s, held-out loss, answers, checkpoints\n' "$estimate" "$STEPS" "${step:-0}"
if [ "$estimate" -gt "$LONG" ] && [ "$STEPS" -gt 8 ]; then
	echo "that is long; Ctrl-C and 'make demo DEMO_STEPS=8' for a third of it"
fi
echo
SECONDS=0
skein train "${job[@]}"
seconds=$SECONDS

# The lineage holds every measurement of the job.
losses=$(tr -d ' \n' <"$OUT/checkpoints/lineage.json" | grep -oE '"name":"validation_loss","value":[0-9.eE+-]+' | sed 's/.*://')
before=$(head -n 1 <<<"$losses")
after=$(tail -n 1 <<<"$losses")
printf 'demo ok: %s val_loss %.4f -> %.4f (%d steps, %d s)\n' "$OUT/pronounce-smollm2" "$before" "$after" "$STEPS" "$seconds"
