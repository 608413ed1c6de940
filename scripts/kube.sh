#!/usr/bin/env bash
# Build a real API server of Kubernetes and its store, once, from the versions that
# tools/kube pins, into .cache/kube/VERSIONS; tests of k8s/ use them and say so where they
# are missing. About eight minutes of one core with nothing cached, 2.3 GB at its peak.
#
#   scripts/kube.sh          build what is missing, print the folder
#   scripts/kube.sh --where  print the folder
set -euo pipefail

cd "$(dirname "$0")/.."
export CGO_ENABLED=0 GOFLAGS=-mod=readonly

key=$(cat tools/kube/*/go.sum tools/kube/*/main.go | sha256sum | cut -c1-12)
dir=$PWD/.cache/kube/$key
if [ "${1:-}" = --where ]; then
	echo "$dir"
	exit
fi
mkdir -p "$dir"
for program in etcd apiserver; do
	out=$dir/${program/apiserver/kube-apiserver}
	[ ! -x "$out" ] || continue
	echo "kube: building $program, once" >&2
	stamp=
	if [ "$program" = apiserver ]; then
		v=$(cd tools/kube/apiserver && go list -m -f '{{.Version}}' k8s.io/kubernetes)
		p=k8s.io/component-base/version # a server without it says v0.0.0 and is taken for an old one
		stamp="-X $p.gitVersion=$v -X $p.gitMajor=1 -X $p.gitMinor=$(cut -d. -f2 <<<"$v") -X $p.gitTreeState=clean"
	fi
	(cd "tools/kube/$program" && go build -trimpath -ldflags "-s -w $stamp" -o "$out.new" .)
	mv "$out.new" "$out"
done
echo "$dir"
