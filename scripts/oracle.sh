#!/usr/bin/env bash
# Makes the Python environment that the oracles under scripts/oracle/ run in:
# PyTorch and Hugging Face, pinned, in .cache/oracle. Only `make parity`,
# `make bench` and whoever writes new golden numbers need it; `make test` does not.
set -euo pipefail

cd "$(dirname "$0")/.."
VENV=.cache/oracle
PINS=(torch==2.15.0 transformers==5.23.0 tokenizers==0.23.3 safetensors==0.8.0 jinja2==3.1.6 numpy==2.4.6)

fail() {
	echo "oracle: $*" >&2
	exit 1
}

# complete: whether the environment holds every pin.
complete() {
	[ -x "$VENV/bin/python" ] || return 1
	"$VENV/bin/python" - "${PINS[@]}" <<-'PY'
		import importlib.metadata as metadata, sys
		for pin in sys.argv[1:]:
		    name, version = pin.split("==")
		    try:
		        have = metadata.version(name).split("+")[0]  # torch says 2.15.0+cpu
		    except metadata.PackageNotFoundError:
		        have = "absent"
		    if have != version:
		        sys.exit(f"oracle: {name} is {have}, pinned is {version}")
	PY
}

if complete 2>/dev/null; then
	echo "oracle: $VENV is complete"
	exit 0
fi
command -v python3 >/dev/null || fail "python3 is missing; install it (Debian: apt-get install python3 python3-venv)"
python3 -m venv "$VENV" || fail "python3 cannot make a virtual environment; install it (Debian: apt-get install python3-venv)"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "${PINS[@]}" || fail "pip could not install the pinned packages; check the network and run make oracle again"
complete
echo "oracle: $VENV is complete"
