#!/usr/bin/env bash
# The ring beside Gloo: all-reduce of 64 MiB and 4 KiB between two and four hosts, at
# the speed of this machine and shaped to 1 Gbit/s, ours in plain text and over TLS.
# The hosts are network namespaces on a bridge in a namespace of its own: nothing of
# the machine's network is touched, and all is removed at the end. Needs root.
#
#   scripts/bench-ring.sh [ROUNDS]
#
# ours and peer are bus bandwidth, 2(n-1)/n bytes over time, in Gbit/s for 64 MiB, and
# the time in µs for 4 KiB: the best of all rounds, Gloo and we taking turns. ratio is
# how much better we are. step is ours with the vote and the decision record that a
# training step has between reduce and gather.
set -euo pipefail

cd "$(dirname "$0")/.."
PYTHON=.cache/oracle/bin/python
ROUNDS=${1:-2}
SECONDS_EACH=1.5
LARGE=67108864
SMALL=4096
HOSTS=4

[ "$(id -u)" -eq 0 ] || {
	echo "bench: the ring's hosts are network namespaces, which need root; run it in a container" >&2
	exit 0
}
for tool in ip tc openssl; do
	command -v $tool >/dev/null || {
		echo "bench: the ring's hosts need $tool (iproute2, openssl)" >&2
		exit 0
	}
done

id=skb$$
work=$(mktemp -d)
cleanup() {
	for h in $(seq 0 $((HOSTS - 1))); do ip netns del "$id-$h" 2>/dev/null || true; done
	ip netns del "$id-br" 2>/dev/null || true
	rm -rf "$work"
}
trap cleanup EXIT

# hosts: four namespaces, 10.77.0.1 to .4, joined by a bridge in a fifth.
hosts() {
	ip netns add "$id-br"
	ip -n "$id-br" link add br0 type bridge
	ip -n "$id-br" link set br0 up
	for h in $(seq 0 $((HOSTS - 1))); do
		ip netns add "$id-$h"
		ip -n "$id-$h" link add eth0 type veth peer name "port$h" netns "$id-br"
		ip -n "$id-br" link set "port$h" master br0 up
		ip -n "$id-$h" addr add "10.77.0.$((h + 1))/24" dev eth0
		ip -n "$id-$h" link set eth0 up
		ip -n "$id-$h" link set lo up
	done
}

# shape RATE: what a host sends is limited to RATE; "unshaped" lifts the limit.
shape() {
	for h in $(seq 0 $((HOSTS - 1))); do
		tc -n "$id-$h" qdisc del dev eth0 root 2>/dev/null || true
		[ "$1" = unshaped ] || tc -n "$id-$h" qdisc add dev eth0 root tbf rate "$1" burst 256kb latency 50ms
	done
}

# certificates: one for all hosts, of a CA made for this run.
certificates() {
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj "/CN=bench CA" \
		-keyout "$work/ca.key" -out "$work/ca.crt" 2>/dev/null
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=host" -keyout "$work/tls.key" -out "$work/tls.csr" 2>/dev/null
	printf 'subjectAltName=IP:10.77.0.1,IP:10.77.0.2,IP:10.77.0.3,IP:10.77.0.4\nextendedKeyUsage=serverAuth,clientAuth\n' >"$work/ext"
	openssl x509 -req -in "$work/tls.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial -days 1 -extfile "$work/ext" \
		-out "$work/tls.crt" 2>/dev/null
}

export TORCH_CPP_LOG_LEVEL=ERROR # Gloo looks for host names that the namespaces do not have
port=7400

# ours WORLD [FLAG…]: prints "bytes ring step" in seconds for each size.
ours() {
	local world=$1 list="" pids=() h
	shift
	port=$((port + 1))
	for h in $(seq 1 "$world"); do list+="${list:+,}10.77.0.$h:$port"; done
	for h in $(seq 1 $((world - 1))); do
		ip netns exec "$id-$h" "$work/ringbench" -worker "$h" -addresses "$list" -bytes "$LARGE,$SMALL" -seconds "$SECONDS_EACH" "$@" &
		pids+=($!)
	done
	ip netns exec "$id-0" "$work/ringbench" -worker 0 -addresses "$list" -bytes "$LARGE,$SMALL" -seconds "$SECONDS_EACH" "$@"
	wait "${pids[@]}"
}

# gloo WORLD: prints "bytes time" in seconds for each size.
gloo() {
	local world=$1 pids=() h
	port=$((port + 1))
	for h in $(seq 1 $((world - 1))); do
		GLOO_SOCKET_IFNAME=eth0 ip netns exec "$id-$h" "$PYTHON" scripts/oracle/gloo_bench.py "$h" "$world" 10.77.0.1 "$port" "$SECONDS_EACH" "$LARGE" "$SMALL" &
		pids+=($!)
	done
	GLOO_SOCKET_IFNAME=eth0 ip netns exec "$id-0" "$PYTHON" scripts/oracle/gloo_bench.py 0 "$world" 10.77.0.1 "$port" "$SECONDS_EACH" "$LARGE" "$SMALL"
	wait "${pids[@]}"
}

# best FILE BYTES COLUMN: the smallest time of all rounds.
best() { awk -v b="$2" -v c="$3" '$1 == b && (m == "" || $c < m) { m = $c } END { print m }' "$1"; }

# lines WORLD SHAPE: the report of one setting.
lines() {
	local world=$1 shape=$2 name file peer
	for file in plain tls; do
		name=w$world-$shape
		[ $file = plain ] || name+=-tls
		awk -v name="$name" -v n="$world" -v bytes="$LARGE" -v ours="$(best "$work/$file" $LARGE 2)" -v step="$(best "$work/$file" $LARGE 3)" \
			-v peer="$(best "$work/gloo" $LARGE 2)" 'BEGIN { k = 2 * (n - 1) / n * bytes * 8 / 1e9
			printf "bench ring-64MiB-%s ours=%.2f peer=%.2f unit=Gbit/s ratio=%.2f step=%.2f\n", name, k / ours, k / peer, peer / ours, k / step }'
		awk -v name="$name" -v ours="$(best "$work/$file" $SMALL 2)" -v step="$(best "$work/$file" $SMALL 3)" -v peer="$(best "$work/gloo" $SMALL 2)" \
			'BEGIN { printf "bench ring-4KiB-%s ours=%.0f peer=%.0f unit=µs ratio=%.2f step=%.0f\n", name, ours * 1e6, peer * 1e6, peer / ours, step * 1e6 }'
	done
}

CGO_ENABLED=0 go build -o "$work/ringbench" ./cmd/ringbench
certificates
hosts
for shape in unshaped 1gbit; do
	shape $shape
	for world in 2 4; do
		rm -f "$work"/{plain,tls,gloo}
		for _ in $(seq "$ROUNDS"); do
			gloo "$world" >>"$work/gloo"
			ours "$world" >>"$work/plain"
			ours "$world" -certs "$work" >>"$work/tls"
		done
		lines "$world" $shape
	done
done
