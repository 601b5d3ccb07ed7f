"""A small Llama in checkpoints that are quantized already."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packers
from packers import Array, Stored

GOLDEN = Path(__file__).parent.parent / "golden"
Json = dict[str, Any]
Packer = Callable[[np.random.Generator, int, int], tuple[Stored, Array]]

WIDTH, FFN, HEADS, KV_HEADS, LAYERS, VOCAB = 128, 256, 4, 2, 2, 320
CONFIG: Json = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SHAPES = {
    "self_attn.q_proj": ("attn_q", WIDTH, WIDTH),
    "self_attn.k_proj": ("attn_k", WIDTH // 2, WIDTH),
    "self_attn.v_proj": ("attn_v", WIDTH // 2, WIDTH),
    "self_attn.o_proj": ("attn_output", WIDTH, WIDTH),
    "mlp.gate_proj": ("ffn_gate", FFN, WIDTH),
    "mlp.up_proj": ("ffn_up", FFN, WIDTH),
    "mlp.down_proj": ("ffn_down", WIDTH, FFN),
}
Q_PROJ = "model.layers.0.self_attn.q_proj."
COMPRESSED: Json = {"quant_method": "compressed-tensors"}
GPTQ: Json = {"quant_method": "gptq", "bits": 4, "group_size": 128}
AWQ: Json = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}
BNB: Json = {"quant_method": "bitsandbytes", "load_in_4bit": True}
FP8: Json = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def groups_of(form: str, **weights: object) -> Json:
    group = {"targets": ["Linear"], "weights": weights}
    return {**COMPRESSED, "format": form, "config_groups": {"group_0": group}}


def packing(name: str, **options: Any) -> Packer:
    packer = getattr(packers, name)
    return lambda rng, rows, columns: packer(rng, rows, columns, **options)


class Source:
    """A small Llama whose layers' matrices a packer has made.

    Attributes:
        stored: What model.safetensors holds; a test may spoil it before it saves.
        weights: The matrices by GGUF's names, rows as GGUF has them.
    """

    def __init__(self, config: Json, packer: Packer, seed: int = 5) -> None:
        rng = np.random.default_rng(seed)
        self.config = {**CONFIG, "quantization_config": config}
        self.stored: Stored = {}
        self.weights: dict[str, Array] = {}

        def plain(name: str, values: Array) -> None:
            bits = np.ascontiguousarray(values, np.float32).view(np.uint32) & 0xFFFF0000
            self.stored[name] = packers.bf16(bits.view(np.float32))

        plain("model.embed_tokens.weight", rng.normal(0, np.sqrt(WIDTH), (VOCAB, WIDTH)))
        plain("model.norm.weight", rng.normal(1, 0.1, WIDTH))
        plain("lm_head.weight", rng.normal(0, 2 / np.sqrt(WIDTH), (VOCAB, WIDTH)))
        for layer in range(LAYERS):
            at = f"model.layers.{layer}."
            plain(at + "input_layernorm.weight", rng.normal(1, 0.1, WIDTH))
            plain(at + "post_attention_layernorm.weight", rng.normal(1, 0.1, WIDTH))
            for module, (target, rows, columns) in SHAPES.items():
                stored, weights = packer(rng, rows, columns)
                self.stored |= {f"{at}{module}.{name}": part for name, part in stored.items()}
                if target in ("attn_q", "attn_k"):
                    weights = paired(weights)
                self.weights[f"blk.{layer}.{target}.weight"] = weights

    def save(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        shutil.copy(GOLDEN / "llama-grouped-tied" / "tokenizer.json", folder)
        (folder / "model.safetensors").write_bytes(packers.safetensors(self.stored))
        return folder


def paired(rows: Array) -> Array:
    """Row 2 i + j of each head out of its row i + 16 j."""
    order = [h * 32 + j * 16 + i for h in range(len(rows) // 32) for i in range(16) for j in (0, 1)]
    return rows[order]
