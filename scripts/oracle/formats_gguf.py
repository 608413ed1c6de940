"""Writes model/gguf/testdata/tiny.gguf and tiny.json: a random tiny Llama in every tensor type that Skein reads.

    .cache/oracle/bin/python scripts/oracle/formats_gguf.py

The file is packed here from the format's description, Q and K permuted as llama.cpp's converter does; tiny.json has
the sha256 of every tensor as fp32 under its Hugging Face name, expanded by NumPy. Where the gguf package of llama.cpp
is importable, its reader and its dequantizer must agree.
"""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np

OUT = Path(__file__).parents[2] / "model" / "gguf" / "testdata"
D, HEADS, KV, HEAD, F, V, LAYERS = 64, 3, 1, 32, 96, 40, 2
U32, I32, F32, BOOL, STR, ARR = 4, 5, 6, 7, 8, 9
rng = np.random.default_rng(7)


def text(s):
    raw = s.encode()
    return struct.pack("<Q", len(raw)) + raw


def f16(n, scale):
    return (rng.standard_normal(n) * scale).astype("<f2")


def make(kind, shape):
    """Random stored bytes of the kind and the fp32 values they mean."""
    n = int(np.prod(shape))
    if kind == "F32":
        x = rng.standard_normal(n).astype("<f4")
        return x.tobytes(), x
    if kind == "F16":
        x = f16(n, 0.5)
        return x.tobytes(), x.astype(np.float32)
    if kind == "BF16":
        bits = (rng.standard_normal(n).astype("<f4").view("<u4") >> 16).astype("<u2")
        return bits.tobytes(), (bits.astype("<u4") << 16).view("<f4")
    b = n // 32
    d = f16(b, 0.1)
    wide = d.astype(np.float32)[:, None]
    if kind == "Q8_0":
        q = rng.integers(-128, 128, (b, 32)).astype(np.int8)
        return np.concatenate([d.view(np.uint8).reshape(b, 2), q.view(np.uint8)], 1).tobytes(), wide * q.astype(np.float32)
    packed = rng.integers(0, 256, (b, 16)).astype(np.uint8)
    q = np.concatenate([packed & 15, packed >> 4], 1).astype(np.float32)
    if kind == "Q4_0":
        return np.concatenate([d.view(np.uint8).reshape(b, 2), packed], 1).tobytes(), wide * (q - 8)
    m = f16(b, 0.3)
    head = np.concatenate([d.view(np.uint8).reshape(b, 2), m.view(np.uint8).reshape(b, 2)], 1)
    return np.concatenate([head, packed], 1).tobytes(), wide * q + m.astype(np.float32)[:, None]


KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "BF16": 30}


def tensors():
    q, kv = HEADS * HEAD, KV * HEAD
    yield "token_embd.weight", "model.embed_tokens.weight", "Q8_0", (V, D), 0
    for i in range(LAYERS):
        # Layer 0 and 1 store the same tensors in different types.
        pick = lambda *kinds: kinds[i]
        b, h = f"blk.{i}.", f"model.layers.{i}."
        yield b + "attn_norm.weight", h + "input_layernorm.weight", "F32", (D,), 0
        yield b + "attn_q.weight", h + "self_attn.q_proj.weight", pick("Q4_1", "Q8_0"), (q, D), HEADS
        yield b + "attn_k.weight", h + "self_attn.k_proj.weight", pick("Q4_0", "F32"), (kv, D), KV
        yield b + "attn_v.weight", h + "self_attn.v_proj.weight", pick("F16", "BF16"), (kv, D), 0
        yield b + "attn_q.bias", h + "self_attn.q_proj.bias", "F32", (q,), HEADS
        yield b + "attn_k.bias", h + "self_attn.k_proj.bias", pick("F32", "F16"), (kv,), KV
        yield b + "attn_v.bias", h + "self_attn.v_proj.bias", "F32", (kv,), 0
        yield b + "attn_output.weight", h + "self_attn.o_proj.weight", pick("BF16", "F16"), (D, q), 0
        yield b + "attn_output.bias", h + "self_attn.o_proj.bias", pick("F16", "F32"), (D,), 0
        yield b + "ffn_norm.weight", h + "post_attention_layernorm.weight", "F32", (D,), 0
        yield b + "ffn_gate.weight", h + "mlp.gate_proj.weight", pick("Q4_0", "Q4_1"), (F, D), 0
        yield b + "ffn_up.weight", h + "mlp.up_proj.weight", pick("Q4_1", "Q4_0"), (F, D), 0
        yield b + "ffn_down.weight", h + "mlp.down_proj.weight", pick("Q8_0", "Q4_0"), (D, F), 0
    yield "output_norm.weight", "model.norm.weight", "F32", (D,), 0
    yield "output.weight", "lm_head.weight", "F16", (V, D), 0


def meta():
    def kv(key, kind, value):
        return text(key) + struct.pack("<I", kind) + value

    u32 = lambda key, n: kv(key, U32, struct.pack("<I", n))
    f32 = lambda key, x: kv(key, F32, struct.pack("<f", x))
    string = lambda key, s: kv(key, STR, text(s))
    strings = lambda key, list_: kv(key, ARR, struct.pack("<IQ", STR, len(list_)) + b"".join(map(text, list_)))
    tokens = [f"t{i}" for i in range(V - 2)]
    return [
        string("general.architecture", "llama"), string("general.name", "tiny"), u32("general.alignment", 64),
        u32("llama.block_count", LAYERS), u32("llama.context_length", 128), u32("llama.embedding_length", D),
        u32("llama.feed_forward_length", F), u32("llama.attention.head_count", HEADS),
        u32("llama.attention.head_count_kv", KV), u32("llama.attention.key_length", HEAD),
        u32("llama.attention.value_length", HEAD), u32("llama.rope.dimension_count", HEAD),
        f32("llama.rope.freq_base", 50000.0), f32("llama.attention.layer_norm_rms_epsilon", 1e-5),
        string("tokenizer.ggml.model", "gpt2"), string("tokenizer.ggml.pre", "smollm"),
        strings("tokenizer.ggml.tokens", tokens), strings("tokenizer.ggml.merges", ["t 1", "t 2"]),
        kv("tokenizer.ggml.token_type", ARR, struct.pack(f"<IQ{len(tokens)}i", I32, len(tokens), *[1 + i % 6 for i in range(len(tokens))])),
        u32("tokenizer.ggml.bos_token_id", 1), u32("tokenizer.ggml.eos_token_id", 2), u32("tokenizer.ggml.eot_token_id", 3),
        kv("tokenizer.ggml.add_bos_token", BOOL, b"\1"), string("tokenizer.chat_template", "{{ messages }}"),
    ]


def main():
    align = 64
    pairs, infos, data, golden, stored = meta(), b"", b"", {}, {}
    all_tensors = list(tensors())
    for name, hf, kind, shape, heads in all_tensors:
        raw, values = make(kind, shape)
        values = values.astype("<f4").reshape(shape)
        stored[name] = values
        if heads:  # the inverse of the converter's reshape(h, 2, D/2, in).swapaxes(1, 2)
            values = values.reshape(heads, HEAD // 2, 2, -1).swapaxes(1, 2).reshape(shape)
        golden[hf] = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
        infos += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in reversed(shape))
        infos += struct.pack("<IQ", KINDS[kind], len(data))
        data += raw + b"\0" * (-len(raw) % align)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(all_tensors), len(pairs)) + b"".join(pairs) + infos
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "tiny.gguf").write_bytes(head + b"\0" * (-len(head) % align) + data)
    (OUT / "tiny.json").write_text(json.dumps(golden, indent=1) + "\n")
    cross_check(stored)


def cross_check(stored):
    try:
        import gguf
    except ImportError:
        print("written; the gguf package is absent, so llama.cpp's own reader was not asked")
        return
    reader = gguf.GGUFReader(OUT / "tiny.gguf")
    assert len(reader.tensors) == len(stored)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        assert np.array_equal(values.reshape(stored[tensor.name].shape), stored[tensor.name]), tensor.name
    print(f"written; the gguf package reads all {len(stored)} tensors alike")


main()
