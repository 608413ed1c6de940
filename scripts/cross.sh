#!/usr/bin/env bash
# Other machines than this one: macOS is built and vetted; the arithmetic of the
# generic path is run with GOAMD64=v3, where the compiler may fuse products and sums,
# and as arm64 under QEMU, and must give the hashes that amd64 gave.
#
#   scripts/cross.sh          everything: the tests of all packages of EMULATED too
#   scripts/cross.sh short    what CI runs: macOS on arm64, and the hashes
#
# Without an emulator (Debian's qemu-user-static, fetched without any rights, or
# qemu-aarch64 on the PATH) its part says SKIPPED.
set -euo pipefail

cd "$(dirname "$0")/.."
export CGO_ENABLED=0
SHORT=${1:-}
[[ $SHORT == "" || $SHORT == short ]] || {
	echo "cross: unknown argument ${SHORT@Q}; there is short" >&2
	exit 2
}

# What decides bits, each with hashes written down on amd64: elementary functions, operations, a
# model's weights after training. The rest of the repository moves bytes.
HASHES='TestBitsAreTheSameOnAllMachines|TestAClassKeepsItsBits|TestTheGenericPathHasOneHashOnAllMachines'
HASHED=(./internal/exact ./device/cpu ./worker/trainer)

# Packages whose tests are run under emulation, ten times slower. Left out are those whose tests
# start processes of their own program, which an emulated one cannot, or hold others to
# times, and those without arithmetic or formats.
EMULATED=(./internal/exact ./internal/half ./internal/crc32c ./internal/strictjson ./jobspec ./shard ./optim
	./device/... ./model/... ./eval ./worker/trainer ./checkpoint ./data ./tokenizer/...)

say() { echo "cross: $*"; }

macs=(arm64 amd64)
[ -z "$SHORT" ] || macs=(arm64)
# The operator runs in containers alone, and all that it needs of Kubernetes takes minutes; what
# the program itself needs is built with it.
mapfile -t packages < <(go list ./... | grep -Ev '/k8s/|/cmd/skein-operator$')
for arch in "${macs[@]}"; do
	GOOS=darwin GOARCH=$arch go build -o /dev/null "${packages[@]}"
	GOOS=darwin GOARCH=$arch go vet -tags invariants "${packages[@]}"
	say "darwin/$arch builds and vets"
done

GOAMD64=v3 go test -tags invariants -count=1 -run "$HASHES" "${HASHED[@]}"
say "GOAMD64=v3 gives the hashes of v1"

GOARCH=arm64 go vet -tags invariants ./...
say "linux/arm64 vets"

emulator=()
if [ "$(go env GOHOSTARCH)" != arm64 ]; then
	found=$(command -v qemu-aarch64-static || command -v qemu-aarch64 || true)
	if [ -z "$found" ] && scripts/fetch.sh qemu; then
		found=$PWD/.cache/qemu/qemu-aarch64-static
	fi
	if [ -z "$found" ]; then
		say "SKIPPED: nothing was run as arm64, there is no emulator here"
		exit 0
	fi
	emulator=(-exec "$found")
fi
GOARCH=arm64 go test -tags invariants -count=1 "${emulator[@]}" -run "$HASHES" "${HASHED[@]}"
say "arm64 gives the hashes of amd64"
[ "$SHORT" = short ] || {
	GOARCH=arm64 go test -short -tags invariants -timeout 60m "${emulator[@]}" "${EMULATED[@]}"
	say "arm64 passes its tests"
}
