#!/usr/bin/env bash
# The pinned compiler of the kernels (device/cpu/native/README.md). It is Debian 12's: where that
# system lacks it and we may install, it is installed; anywhere else this says what to do.
set -euo pipefail

GCC=12.2.0
BINUTILS=2.40

pinned() {
	[[ "$(gcc --version 2>/dev/null | head -1)" == *" $GCC" && "$(ld --version 2>/dev/null | head -1)" == *" $BINUTILS" ]]
}

if ! pinned && [[ $EUID == 0 ]] && grep -q '^VERSION_CODENAME=bookworm' /etc/os-release 2>/dev/null; then
	apt-get update -q
	apt-get install -qy --no-install-recommends gcc binutils
fi
if ! pinned; then
	echo "the kernels are compiled with gcc $GCC and binutils $BINUTILS, as Debian 12 has them; run this there" >&2
	exit 1
fi
