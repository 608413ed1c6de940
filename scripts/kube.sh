#!/usr/bin/env bash
# Build Kubernetes, once, from the versions that tools/kube pins, into .cache/kube/VERSIONS.
# Tests use what is there and say so where it is missing.
#
#   scripts/kube.sh                 a real API server and its store, for the tests of k8s/:
#                                   about eight minutes of one core with nothing cached, 2.3 GB at its peak
#   scripts/kube.sh nodes           also what make e2e runs nodes with: kubelet, containerd, scheduler,
#                                   controllers, DNS, kubectl; some ten minutes more, 3 GB at its peak
#   scripts/kube.sh [nodes] --where print the folder and build nothing
set -euo pipefail

cd "$(dirname "$0")/.."
export CGO_ENABLED=0 GOFLAGS=-mod=readonly

of() { # PART... : a folder for these modules, named by what they are built from
	local files=() part
	for part in "$@"; do files+=("tools/kube/$part/go.sum"); done
	for part in "$@"; do [ "$part" = containerd ] || files+=("tools/kube/$part/main.go"); done
	echo "$PWD/.cache/kube/$(cat "${files[@]}" | sha256sum | cut -c1-12)"
}
server=$(of apiserver etcd)
nodes=$(of nodes containerd dns)
what=server
if [ "${1:-}" = nodes ]; then
	what=nodes
	shift
fi
dir=${!what}
if [ "${1:-}" = --where ]; then
	echo "$dir"
	exit
fi

stamp() { # linker's flags; a program without them says v0.0.0 and is taken for an old one
	local v p=k8s.io/component-base/version
	v=$(cd "tools/kube/$1" && go list -m -f '{{.Version}}' k8s.io/kubernetes)
	echo "-X $p.gitVersion=$v -X $p.gitMajor=1 -X $p.gitMinor=$(cut -d. -f2 <<<"$v") -X $p.gitTreeState=clean"
}
build() { # OUT MODULE PACKAGE [FLAGS OF THE LINKER]; what an interrupted build leaves is not taken for a program
	[ ! -x "$1" ] || return 0
	echo "kube: building ${1##*/}, once" >&2
	mkdir -p "$(dirname "$1")"
	(cd "tools/kube/$2" && go build -trimpath -ldflags "-s -w ${4:-}" -o "$1.new" "$3")
	mv "$1.new" "$1"
}

build "$server/etcd" etcd .
build "$server/kube-apiserver" apiserver . "$(stamp apiserver)"
if [ "$what" = nodes ]; then
	build "$nodes/kube" nodes . "$(stamp nodes)"
	for part in kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do ln -sfn kube "$nodes/$part"; done
	for part in containerd containerd-shim-runc-v2 ctr; do build "$nodes/$part" containerd "github.com/containerd/containerd/v2/cmd/$part"; done
	for part in main/bridge main/loopback ipam/host-local; do
		build "$nodes/cni/${part#*/}" containerd "github.com/containernetworking/plugins/plugins/$part"
	done
	build "$nodes/coredns" dns .
	build "$nodes/pause" nodes ./pause
	go run ./scripts/image --name localhost/pause:1 --binary "$nodes/pause" --out "$nodes/pause.tar"
	for part in etcd kube-apiserver; do ln -sfn "../${server##*/}/$part" "$nodes/$part"; done # last: it is whole
fi
echo "$dir"
