#!/usr/bin/env bash
# The demo: SmolLM2-135M-Instruct learns how English words are pronounced, on a cluster
# of three coordinators and four workers, each a process of its own. Needs bin/skein
# and the fetched files (`make demo` sees to both) and writes demo-out/.
# DEMO_STEPS=8 makes it shorter and worse; the recipe has 24.
# `scripts/demo.sh check` trains the same job in one process, without a cluster, and
# compares the weights that both have come to.
set -euo pipefail

cd "$(dirname "$0")/.."
CACHE=.cache/testdata
OUT=demo-out
RUN=$OUT/cluster # folders and logs of the processes
STEPS=${DEMO_STEPS:-24}
LONG=600 # seconds after which a smaller demo is offered

[[ $STEPS =~ ^[0-9]+$ ]] && [ "$STEPS" -ge 5 ] || {
	echo "demo: DEMO_STEPS is ${STEPS@Q}; give a number from 5 up, the warm-up takes 5" >&2
	exit 2
}
fail() {
	echo "demo: $*" >&2
	exit 1
}
skein() { bin/skein "$@" 9>&-; }
field() { grep -oE "\"$1\":(\"[^\"]*\"|[0-9.eE+-]+)" | head -n 1 | sed 's/^[^:]*://; s/"//g'; }
job=(-f "$OUT/job.yaml" --set "train.steps=$STEPS")

if [ "${1:-}" = check ]; then
	[ -f "$OUT/job.yaml" ] && [ -f "$OUT/weights" ] || fail "no demo has run here; make demo first"
	read -r STEPS want <"$OUT/weights"
	rm -rf "$OUT/check"
	bin/skein train -f "$OUT/job.yaml" --set "train.steps=$STEPS" --set checkpoint.store=./check/checkpoints --set output.export=./check/model \
		--cache "$OUT/data"
	got=$(tr -d ' \n' <"$OUT/check/checkpoints/lineage.json" | grep -oE '"weights":"[0-9a-f]{64}"' | tail -n 1 | grep -oE '[0-9a-f]{64}')
	[ "$got" = "$want" ] || fail "one process came to weights $got after $STEPS steps, the cluster to $want"
	echo "demo-check ok: $STEPS steps in one process and on the cluster end on the same weights, $got"
	exit 0
fi

rm -rf "$OUT"
mkdir -p "$RUN"
skein import "$CACHE/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$OUT/SmolLM2-135M-Instruct"
go run ./examples/pronounce -dict "$CACHE/cmudict/cmudict.dict" -out "$OUT"
cp examples/pronounce/job.yaml "$OUT/job.yaml"

echo
plan=$(skein plan "${job[@]}" --cache "$OUT/data" -o json)
step=$(field stepSeconds <<<"${plan//: /:}")
# In units of a step: one measure of the held-out data is 50 sequences forward, so
# 50/4/3; it is taken before, after and every 8 steps. Answers take about 5 in all.
estimate=$(awk -v s="${step:-0}" -v n="$STEPS" 'BEGIN { printf "%d", s * (n + 4.2 * (2 + int((n - 1) / 8)) + 5) + 25 }')
printf 'about %d seconds on this machine: %d steps of %.1f s, held-out loss, answers, checkpoints\n' "$estimate" "$STEPS" "${step:-0}"
if [ "$estimate" -gt "$LONG" ] && [ "$STEPS" -gt 8 ]; then
	echo "that is long; Ctrl-C and 'make demo DEMO_STEPS=8' for a third of it"
fi
echo

# Every process of the cluster reads from a pipe that this script holds open, and ends
# when it is closed: with the script, however that ends.
mkfifo "$RUN/life"
exec 9<>"$RUN/life"
pids=()
finish() {
	trap - EXIT
	((${#pids[@]} == 0)) || kill -TERM "${pids[@]}" 2>/dev/null || true
	exec 9>&- # whoever has not ended yet does so now
	wait
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# free prints ports of this machine that nobody listens on, below those that systems
# give away by themselves.
free() {
	local port found=0
	while [ "$found" -lt "$1" ]; do
		port=$((20000 + RANDOM % 10000))
		if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
			echo "$port"
			found=$((found + 1))
		fi
	done
}
mapfile -t ports < <(free 3 | sort -u)
[ "${#ports[@]}" = 3 ] || fail "no three free ports; run it again"
members= addresses=
for i in 1 2 3; do
	members+="${members:+,}c$i=127.0.0.1:${ports[i - 1]}"
	addresses+="${addresses:+,}127.0.0.1:${ports[i - 1]}"
done
export SKEIN_COORDINATOR=$addresses
unset SKEIN_TLS

begin() { # NAME COMMAND…: a process of the cluster
	local name=$1
	shift
	bin/skein "$@" --until-stdin-ends <"$RUN/life" >"$RUN/$name.log" 2>&1 9>&- &
	pids+=($!)
}
for i in 1 2 3; do
	begin "c$i" coordinator --id "c$i" --listen "127.0.0.1:${ports[i - 1]}" --members "$members" --dir "$RUN/c$i"
done
for i in 1 2 3 4; do
	begin "w$i" worker --name "w$i" --threads 1 --dir "$RUN/w$i"
done
for ((tries = 0; ; tries++)); do
	nodes=$(skein nodes -o json --connect-timeout 5s 2>/dev/null || true)
	[ "$(grep -o '"state":"free"' <<<"$nodes" | wc -l)" = 4 ] && break
	[ "$tries" -lt 60 ] || {
		tail -n 3 "$RUN"/*.log >&2
		fail "the cluster has not come up; its logs are in $RUN"
	}
	sleep 0.5
done
skein nodes
echo

SECONDS=0
skein submit "${job[@]}" --watch --until-stdin-ends <"$RUN/life"
seconds=$SECONDS

result=$(skein describe pronounce -o json)
weights=$(field weightsHash <<<"$result")
class=$(field numericClass <<<"$result")
before=$(field lossBefore <<<"$result")
after=$(field lossAfter <<<"$result")
waited=$(field dataWaitShare <<<"$result")
[ -n "$weights" ] && [ -n "$after" ] || fail "the job is done and its result is not there: $result"
echo "$STEPS $weights" >"$OUT/weights"

echo
answer=$(skein generate "$OUT/pronounce-smollm2" "Pronounce: skein" --max-new-tokens 40)
[ -n "$answer" ] || fail "$OUT/pronounce-smollm2 says nothing"
awk -v w="${waited:-0}" 'BEGIN { printf "of its last steps, %.2f %% of the time was spent waiting for data\n", 100 * w }'
echo "the exported folder says: Pronounce: skein → $answer"
recorded=$(awk -v c="$class" -v n="$STEPS" -F '\t' '$1 == c && $2 == n { print $3 }' scripts/demo.weights)
if [ -z "$recorded" ]; then
	echo "weights $weights (none are recorded for $class after $STEPS steps; 'make demo-check' compares with one process)"
elif [ "$recorded" = "$weights" ]; then
	echo "weights $weights: as skein train has them in one process ($class, recorded in scripts/demo.weights)"
else
	fail "weights are $weights, and skein train had $recorded ($class, scripts/demo.weights); 'make demo-check' compares here"
fi
printf 'demo ok: %s val_loss %.4f -> %.4f (%d steps, %d s)\n' "$OUT/pronounce-smollm2" "$before" "$after" "$STEPS" "$seconds"
