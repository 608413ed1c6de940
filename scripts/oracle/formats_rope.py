"""Writes model/config/testdata/rope.json: the rotary frequencies of transformers, as fp32 bits.

    .cache/oracle/bin/python scripts/oracle/formats_rope.py > model/config/testdata/rope.json
"""

import json

from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

BASE = dict(vocab_size=8, hidden_size=64, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)

CASES = [
    dict(head_dim=64, max=8192, theta=100000.0, rope={"rope_type": "default"}),
    dict(head_dim=128, max=2048, theta=10000.0, rope={"rope_type": "default"}),
    dict(head_dim=80, max=4096, theta=1000000.0, rope={"rope_type": "linear", "factor": 3.0}),
    dict(head_dim=64, max=4096, theta=10000.0, rope={"rope_type": "dynamic", "factor": 2.0}),
    dict(head_dim=128, max=131072, theta=500000.0, rope={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}),
    dict(head_dim=64, max=131072, theta=500000.0, rope={
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}),
    dict(head_dim=128, max=131072, theta=1000000.0, rope={
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
    dict(head_dim=64, max=4096, theta=10000.0, rope={
        "rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 256, "beta_fast": 20.0,
        "beta_slow": 2.0, "mscale": 0.707, "mscale_all_dim": 0.9, "truncate": False}),
    dict(head_dim=16, max=64, theta=10000.0, rope={
        "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "attention_factor": 1.25}),
]


def main():
    out = []
    for case in CASES:
        rope = dict(case["rope"], rope_theta=case["theta"])
        config = LlamaConfig(**BASE, head_dim=case["head_dim"], max_position_embeddings=case["max"], rope_parameters=rope)
        module = LlamaRotaryEmbedding(config)
        freq = module.inv_freq.float().contiguous().numpy().view("uint32").tolist()
        out.append({
            "config": dict(BASE, model_type="llama", head_dim=case["head_dim"], max_position_embeddings=case["max"],
                           rope_parameters=rope),
            "attention": float(module.attention_scaling),
            "freq": freq,
        })
    print("[\n" + ",\n".join(json.dumps(c) for c in out) + "\n]")


main()
