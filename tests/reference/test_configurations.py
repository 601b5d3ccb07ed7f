"""Configurations of every family drawn at random, against the model that transformers runs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import tokenizers

import converters
from pyengine import Engine

N_DRAWS = 3
FAMILIES = {
    "Llama": ("attention_bias", "mlp_bias"),
    "Mistral": ("window",),
    "Qwen2": ("late window",),
    "Qwen3": ("attention_bias", "late window"),
    "Gemma2": ("layer window", "caps", "scalar"),
    "Gemma3": ("layer window", "scalar", "two ropes"),
    "Phi3": ("window", "original"),
    "Granite": ("attention_bias", "mlp_bias", "scales"),
    "SmolLM3": ("attention_bias", "mlp_bias", "nope"),
    "Olmo2": ("attention_bias",),
    "Olmo3": ("attention_bias", "layer window", "two ropes"),
    "Ministral3": ("window", "temper"),
    "Mixtral": ("window", "experts"),
    "Qwen3Moe": ("attention_bias", "experts", "used window"),
    "GraniteMoe": ("attention_bias", "experts", "scales"),
    "GraniteMoeShared": ("experts", "scales", "shared"),
    "GptOss": ("attention_bias", "layer window", "experts"),
    "Qwen3_5": ("delta",),
    "Qwen3_5Moe": ("delta", "experts", "shared"),
    "Qwen3Next": ("delta", "experts", "shared"),
    "Gemma4": ("layered",),
}
SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"


def rope(rng: random.Random, family: str, head_dim: int) -> dict[str, Any]:
    base = rng.choice([1e3, 1e4, 5e5])
    kinds = ["default", "linear", "yarn"]
    if family in ("Llama", "Mistral", "Granite", "Ministral3"):
        kinds += ["llama3", "longrope"]
    if family == "Phi3":
        kinds = ["default", "longrope"]
    kind = rng.choice(kinds)
    out: dict[str, Any] = {"rope_type": kind, "rope_theta": base}
    dims = head_dim
    if "delta" in FAMILIES[family]:
        # Half of a head at least: rotated dimensions are even.
        out["partial_rotary_factor"] = rng.choice([0.5, 1.0])
    if family == "Phi3":
        out["partial_rotary_factor"] = rng.choice([0.5, 1.0])
        dims = int(head_dim * out["partial_rotary_factor"])
    if kind in ("linear", "yarn", "llama3"):
        out["factor"] = rng.choice([2.0, 5.5, 16.0])
    if kind in ("yarn", "llama3", "longrope"):
        out["original_max_position_embeddings"] = rng.choice([40, 64, 128])
    if kind == "llama3":
        out |= {"low_freq_factor": 1.0, "high_freq_factor": rng.choice([2.0, 4.0])}
    if kind == "longrope":
        for key in ("long_factor", "short_factor"):
            out[key] = [round(rng.uniform(1, 9), 2) for _ in range(dims // 2)]
    if kind == "yarn":
        out |= rng.choice(
            [
                {},
                {"beta_fast": 16.0, "beta_slow": 2.0},
                {"attention_factor": 0.8},
                {"mscale": 1.0, "mscale_all_dim": 0.7},
                {"truncate": False},
            ]
        )
    return out


def draw(family: str, seed: int) -> dict[str, Any]:
    rng = random.Random(f"{family} {seed}")
    traits = FAMILIES[family]
    heads = rng.choice([2, 4, 6])
    layers = rng.choice([2, 3, 4])
    explicit = family not in ("Qwen2", "Phi3", "Olmo2", "Olmo3", "Granite", "GraniteMoe")
    explicit &= family not in ("GraniteMoeShared", "SmolLM3")
    head_dim = rng.choice([8, 16, 20, 32]) if explicit else rng.choice([8, 16])
    out: dict[str, Any] = {
        "family": family,
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([n for n in (1, 2, 3, 4, 6) if heads % n == 0]),
        "hidden_size": heads * rng.choice([8, 16]) if explicit else heads * head_dim,
        "intermediate_size": rng.choice([40, 64, 96]),
        "num_hidden_layers": layers,
        "tie_word_embeddings": rng.random() < 0.5,
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-3]),
    }
    if explicit:
        out["head_dim"] = head_dim
    window = rng.choice([5, 31, 32, 33, 64, 90])
    types = [rng.choice([SLIDING, FULL]) for _ in range(layers)]
    settings = rope(rng, family, head_dim)
    if "two ropes" in traits:
        local = {"rope_type": "default", "rope_theta": rng.choice([1e3, 1e4])}
        settings = {FULL: settings, SLIDING: local}
    out["rope_parameters"] = settings
    for trait in traits:
        if trait.endswith("_bias"):
            out[trait] = rng.random() < 0.5
    if "window" in traits:
        out["sliding_window"] = rng.choice([None, window])
    if "used window" in traits:
        out |= {"sliding_window": window, "use_sliding_window": rng.random() < 0.5}
    if "late window" in traits:
        out |= {"sliding_window": window, "use_sliding_window": rng.random() < 0.7}
        out |= rng.choice([{"max_window_layers": 1}, {"layer_types": types}])
        if not out["use_sliding_window"]:
            out.pop("layer_types", None)
    if "layer window" in traits:
        out |= {"sliding_window": window} | rng.choice([{}, {"layer_types": types}])
    if "caps" in traits:
        out["attn_logit_softcapping"] = rng.choice([None, 3.0])
    if "caps" in traits:
        out["final_logit_softcapping"] = rng.choice([None, 5.0])
    if "scalar" in traits:
        out["query_pre_attn_scalar"] = rng.choice([head_dim, 11])
    if "original" in traits and settings["rope_type"] == "longrope":
        out["original_max_position_embeddings"] = settings["original_max_position_embeddings"]
    if "scales" in traits:
        out |= {
            "embedding_multiplier": rng.choice([1.0, 5.0]),
            "residual_multiplier": rng.choice([1.0, 0.3]),
            "attention_multiplier": rng.choice([0.1, 0.3]),
            "logits_scaling": rng.choice([1.0, 0.4]),
        }
    if "nope" in traits:
        out |= rng.choice(
            [
                {},
                {"no_rope_layer_interval": 2},
                {"no_rope_layers": [i % 3 % 2 for i in range(layers)]},
            ]
        )
    if "temper" in traits:
        settings.setdefault("original_max_position_embeddings", 50)
        settings["llama_4_scaling_beta"] = rng.choice([0.1, 0.4])
    if "experts" in traits:
        n = rng.choice([2, 5, 8])
        out |= {
            "num_local_experts": n,
            "num_experts_per_tok": rng.choice([k for k in (1, 2, 4) if k <= n]),
            "moe_intermediate_size": rng.choice([24, 64]),
            "norm_topk_prob": rng.random() < 0.5,
        }
        if family in ("Qwen3Moe", "Qwen3_5Moe", "Qwen3Next"):
            out["num_experts"] = out.pop("num_local_experts")
        else:
            del out["moe_intermediate_size"], out["norm_topk_prob"]
    if "layered" in traits:
        out |= draw_layered(rng, heads, types)
    if "delta" in traits:
        n = rng.choice([1, 2, 3])
        types = [rng.choice([FULL, LINEAR]) for _ in range(layers - 1)]
        out |= {
            "layer_types": [*types, FULL] if rng.random() < 0.5 else [FULL, *types],
            "linear_num_key_heads": n,
            "linear_num_value_heads": n * rng.choice([1, 2, 3]),
            "linear_key_head_dim": rng.choice([8, 20, 32]),
            "linear_value_head_dim": rng.choice([8, 20, 72]),
            "linear_conv_kernel_dim": rng.choice([1, 2, 4]),
        }
        out["shared_expert_intermediate_size"] = rng.choice([24, 48])
        if family == "Qwen3_5":
            out.pop("shared_expert_intermediate_size")
        if family == "Qwen3_5Moe":
            out.pop("norm_topk_prob"), out.pop("intermediate_size")
    elif "shared" in traits:
        out["shared_intermediate_size"] = rng.choice([0, 48])
    return out


def draw_layered(rng: random.Random, heads: int, types: list[str]) -> dict[str, Any]:
    """What Gemma 4's layers differ in, and what it has besides."""
    types = [*types[:-1], FULL]
    shared = [n for n in range(len(types)) if set(types[: len(types) - n]) == set(types)]
    experts = rng.random() < 0.5
    out: dict[str, Any] = {
        "layer_types": types,
        "num_kv_shared_layers": rng.choice(shared),
        "use_double_wide_mlp": rng.random() < 0.5,
        "global_head_dim": rng.choice([8, 16, 24, 32]),
        "attention_k_eq_v": rng.random() < 0.5,
        "num_global_key_value_heads": rng.choice([None, 1, heads]),
        "hidden_size_per_layer_input": rng.choice([0, 8, 24]),
        "final_logit_softcapping": rng.choice([None, 5.0]),
        "sliding_window": rng.choice([5, 31, 32, 33, 64]),
        "rope_parameters": {
            FULL: {
                "rope_type": "proportional",
                "partial_rotary_factor": rng.choice([0.25, 0.5, 1.0]),
                "rope_theta": rng.choice([1e3, 1e5]),
            },
            SLIDING: {"rope_type": "default", "rope_theta": rng.choice([1e3, 1e4])},
        },
    }
    if experts:
        out |= {"enable_moe_block": True, "num_experts": 5, "moe_intermediate_size": 24}
        out["top_k_experts"] = rng.choice([1, 2, 5])
    return out


@pytest.mark.parametrize("seed", range(N_DRAWS))
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_at_every_position(tmp_path: Path, family: str, seed: int) -> None:
    variant = draw(family, seed)
    source, out = tmp_path / "checkpoint", tmp_path / "out.gguf"
    checkpoints.save_checkpoint(source, variant, seed=seed)
    converters.convert(source, out, dtype="f32")
    words = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    tokens = words.encode(checkpoints.TEXT).ids[:140]
    expected = checkpoints.reference_logits(checkpoints.load(source), tokens).numpy()
    with Engine(out) as engine:
        found = engine.logits(tokens)
        session = engine.session()
        parts = [tokens[:1], tokens[1:50], *([token] for token in tokens[50:])]
        again = np.concatenate([session.feed(part, logits="all") for part in parts])
    # Random weights make some models ill-conditioned: the bound is of the largest logit.
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5 * np.abs(expected).max())
    assert np.array_equal(found, again)
