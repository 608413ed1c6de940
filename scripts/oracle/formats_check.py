"""Loads what Skein exports with transformers and safetensors and compares every tensor.

    .cache/oracle/bin/python scripts/oracle/formats_check.py

For each model in model/hf/testdata, package model/hf exports it as bf16, as fp32 and as fp32 shards. Each folder must
load without a missing, unexpected or mismatched key, hold the values of the original (rounded, for bf16), give the
same logits as the original to the bit, and read back through safetensors itself.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "model" / "hf" / "testdata"
# Keys that say how a file is stored, or that only the original or only the export spells out.
STORAGE = {"dtype", "transformers_version", "_name_or_path"}


def load(folder, dtype):
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    bad = {key: value for key, value in report.items() if value}
    assert not bad, f"{folder}: {bad}"
    return model.eval()


def check(original, folder):
    kind = folder.suffix[1:]
    stored = torch.bfloat16 if kind == "bf16" else torch.float32
    reference, model = load(original, torch.float32), load(folder, torch.float32)
    want = {key: value.to(stored) for key, value in reference.state_dict().items()}
    got = model.state_dict()
    assert want.keys() == got.keys(), f"{folder}: {want.keys() ^ got.keys()}"
    for key, value in want.items():
        assert torch.equal(value.float(), got[key]), f"{folder}: {key} differs"
    seen = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            for key in opened.keys():
                tensor = opened.get_tensor(key)
                assert tensor.dtype == stored and torch.equal(tensor, want[key]), f"{file}: {key}"
                seen.add(key)
    assert seen | {"lm_head.weight"} == set(want) | {"lm_head.weight"}, f"{folder}: {seen ^ set(want)}"
    if kind == "sharded":
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == seen and len(set(index["weight_map"].values())) > 1
        assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in model.parameters())
    a = {k: v for k, v in AutoConfig.from_pretrained(original).to_dict().items() if k not in STORAGE}
    b = {k: v for k, v in AutoConfig.from_pretrained(folder).to_dict().items() if k not in STORAGE}
    differing = {k: (a.get(k), b.get(k)) for k in a.keys() | b.keys() if a.get(k) != b.get(k)}
    print(f"{folder.name}: {len(seen)} tensors equal; config differs in {differing or 'nothing'}")
    if kind != "bf16":
        ids = torch.arange(20).remainder(24)[None]
        with torch.no_grad():
            assert torch.equal(reference(ids).logits, model(ids).logits), f"{folder}: logits"


def main():
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(["go", "test", "-count=1", "-run", "TestExportForTheOracle", "./model/hf"], cwd=ROOT, check=True,
                       env=dict(os.environ, SKEIN_EXPORT_TO=out))
        folders = sorted(Path(out).iterdir())
        for folder in folders:
            check(GOLDEN / folder.stem, folder)
        assert len(folders) == 18, folders
        print(f"formats ok: {len(folders)} exports load in transformers")


sys.exit(main())
