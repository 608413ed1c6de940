"""Writes the small files in model/hf/testdata with transformers and safetensors themselves.

    .cache/oracle/bin/python scripts/oracle/formats_golden.py

Each folder is a random tiny model as save_pretrained leaves it, with the sha256 of every tensor as fp32 in
golden.json; dtypes.safetensors holds one tensor of each type that the safetensors library writes.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

OUT = Path(__file__).parents[2] / "model" / "hf" / "testdata"
SIZES = dict(vocab_size=24, hidden_size=12, intermediate_size=10, num_hidden_layers=2, num_attention_heads=3,
             num_key_value_heads=1, head_dim=4, max_position_embeddings=32, bos_token_id=1, eos_token_id=2)

MODELS = {
    "llama-tied-bf16": (LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)), torch.bfloat16, "50GB"),
    "llama-sharded-f32": (LlamaForCausalLM(LlamaConfig(
        **SIZES, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 16})), torch.float32, "3KB"),
    "mistral-f16": (MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)), torch.float16, "50GB"),
    "qwen2-bf16": (Qwen2ForCausalLM(Qwen2Config(
        **{k: v for k, v in SIZES.items() if k != "head_dim"}, use_sliding_window=True, sliding_window=8,
        max_window_layers=1)), torch.bfloat16, "50GB"),
    "qwen3-bf16": (Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=True)), torch.bfloat16, "50GB"),
    "gpt2-sharded-f32": (GPT2LMHeadModel(GPT2Config(
        vocab_size=24, n_embd=12, n_inner=10, n_layer=2, n_head=3, n_positions=32, bos_token_id=1, eos_token_id=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)), torch.float32, "3KB"),
}


def main():
    generator = torch.Generator().manual_seed(1)
    for name, (model, dtype, shard) in MODELS.items():
        for parameter in model.parameters():
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.3).to(dtype)
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
        sums = {}
        for key, tensor in model.state_dict().items():
            if key == "lm_head.weight" and model.config.tie_word_embeddings:
                continue
            if re.fullmatch(r".*\.(c_attn|c_proj|c_fc)\.weight", key):
                tensor = tensor.T  # Conv1D keeps [in, out], Skein [out, in]
            sums[key] = hashlib.sha256(tensor.float().contiguous().numpy().tobytes()).hexdigest()
        (folder / "golden.json").write_text(json.dumps({"params": sum(p.numel() for p in model.parameters()),
                                                        "sha256": sums}, indent=1) + "\n")

    save_file({
        "bool": torch.tensor([True, False]), "u8": torch.arange(3, dtype=torch.uint8), "i8": -torch.arange(3, dtype=torch.int8),
        "i16": torch.arange(5, dtype=torch.int16), "i32": torch.arange(2, dtype=torch.int32), "i64": torch.arange(2),
        "f64": torch.ones(2, dtype=torch.float64), "f8": torch.ones(3).to(torch.float8_e4m3fn),
        "f8b": torch.ones(4).to(torch.float8_e5m2), "scalar": torch.tensor(1.5), "none": torch.zeros(0, 7),
        "c64": torch.ones(2, dtype=torch.complex64), "f16": torch.ones(1, 3).half(), "bf16": torch.ones(3, 1).bfloat16(),
    }, OUT / "dtypes.safetensors", metadata={"format": "pt", "note": "naïve"})

    # Every binary16 number that is finite, widened by NumPy: sha256 of the fp32 bytes.
    half = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    half = half[np.isfinite(half)].astype(np.float32)
    # fp32 numbers near ties, rounded to bf16 by PyTorch.
    bits = np.array([b << 16 | low for b in (0, 1, 0x3f80, 0x3f81, 0x7f7e, 0x8000, 0xc2f7, 0x0080)
                     for low in (0, 1, 0x7fff, 0x8000, 0x8001, 0xffff)], dtype=np.uint32)
    rounded = torch.from_numpy(bits.view(np.float32)).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    (OUT / "rounding.json").write_text(json.dumps({
        "half_sha256": hashlib.sha256(half.tobytes()).hexdigest(), "fp32": bits.tolist(), "bf16": rounded.tolist()}) + "\n")


main()
