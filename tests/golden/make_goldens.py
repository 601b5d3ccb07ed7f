"""Writes the checkpoints, logits and vectors that tests/python/test_goldens.py compares with,
and test_families.py and test_embed.py beside it.

Run it in the environment of tests/reference/requirements.txt, from the repository's root:

    python tests/golden/make_goldens.py [--families [NAME...]]

Everything is seeded: with the same versions of torch and transformers the same files result.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "reference"))

import checkpoints  # noqa: E402
import embedders  # noqa: E402

N_POSITIONS = 40
N_GREEDY = 24
# Of the families' goldens, which share the first golden's tokenizer; the last of a longer text.
N_FAMILY_POSITIONS = 75
N_FAMILY_ROWS = 6
GOLDENS: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "llama-grouped-tied": (checkpoints.VARIANTS["grouped"], torch.bfloat16),
    "llama3-rope-biases": (
        {
            **checkpoints.VARIANTS["llama3 rope"],
            **checkpoints.VARIANTS["biases"],
            **checkpoints.VARIANTS["wider heads"],
            "tie_word_embeddings": False,
            "hidden_size": 48,
        },
        torch.float32,
    ),
    "mistral-linear-rope": (
        {**checkpoints.VARIANTS["mistral"], **checkpoints.VARIANTS["linear rope"]},
        torch.bfloat16,
    ),
}

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LATENT = {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}
DELTA = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"family": "Qwen2"},
    "qwen3": {"family": "Qwen3", "head_dim": 16, "tie_word_embeddings": False},
    "gemma2": {
        "family": "Gemma2",
        "head_dim": 16,
        "query_pre_attn_scalar": 12,
        "sliding_window": 33,
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 6.0,
    },
    "gemma3": {
        "family": "Gemma3",
        "num_hidden_layers": 3,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 20,
        "layer_types": [SLIDING, FULL, SLIDING],
        "rope_parameters": {
            FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "phi3": {
        "family": "Phi3",
        "original_max_position_embeddings": 32,
        "sliding_window": None,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.75,
            "long_factor": [1.0, 2.0, 5.0],
            "short_factor": [1.0, 1.1, 1.3],
            "original_max_position_embeddings": 32,
        },
    },
    "granite": {
        "family": "Granite",
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.3,
        "logits_scaling": 0.5,
    },
    "smollm3": {"family": "SmolLM3", "no_rope_layers": [1, 0]},
    "olmo2": {"family": "Olmo2"},
    "olmo3": {"family": "Olmo3", "sliding_window": 33, "layer_types": [SLIDING, FULL]},
    "ministral3": {
        "family": "Ministral3",
        "head_dim": 16,
        "rope_parameters": {
            **YARN,
            "rope_theta": 1e4,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.3,
        },
    },
    "mixtral": {"family": "Mixtral", "num_local_experts": 3},
    "qwen3moe": {
        "family": "Qwen3Moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "head_dim": 16,
    },
    "granitemoe": {
        "family": "GraniteMoeShared",
        "num_local_experts": 3,
        "shared_intermediate_size": 32,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.3,
    },
    "gpt-oss": {
        "family": "GptOss",
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "head_dim": 16,
        "sliding_window": 33,
        "rope_parameters": {**YARN, "rope_theta": 1e4, "truncate": False},
    },
    "gemma4": {
        "family": "Gemma4",
        "num_hidden_layers": 4,
        "layer_types": [SLIDING, FULL, SLIDING, FULL],
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "intermediate_size": 64,
        "hidden_size_per_layer_input": 32,
        "head_dim": 16,
        "global_head_dim": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "sliding_window": 33,
        "final_logit_softcapping": 5.0,
    },
    "gemma4-experts": {
        "family": "Gemma4",
        "hidden_size_per_layer_input": 0,
        "head_dim": 16,
        "global_head_dim": 32,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "sliding_window": 20,
        "enable_moe_block": True,
        "num_experts": 3,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
    },
    "lfm2": {
        "family": "Lfm2",
        "num_hidden_layers": 3,
        "layer_types": ["conv", FULL, "conv"],
        "block_multiple_of": 32,
    },
    "deepseek2": {
        "family": "DeepseekV2",
        **LATENT,
        "q_lora_rank": None,
        "n_routed_experts": 6,
        "n_group": 3,
        "topk_group": 2,
        "topk_method": "group_limited_greedy",
        "routed_scaling_factor": 1.3,
        "rope_parameters": {**YARN, "rope_theta": 1e4, "mscale": 0.7, "mscale_all_dim": 0.7},
    },
    "deepseek3": {
        "family": "DeepseekV3",
        **LATENT,
        "q_lora_rank": 32,
        "n_routed_experts": 6,
        "n_group": 3,
        "topk_group": 2,
        "rope_parameters": {**YARN, "rope_theta": 1e4, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "glm4-flash": {
        "family": "Glm4MoeLite",
        **LATENT,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "n_routed_experts": 4,
    },
    "qwen35": {"family": "Qwen3_5", **DELTA, "num_hidden_layers": 4},
    "qwen35moe": {
        "family": "Qwen3_5Moe",
        **DELTA,
        "layer_types": [FULL, LINEAR],
        "linear_num_value_heads": 6,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3next": {
        "family": "Qwen3Next",
        **DELTA,
        "layer_types": [LINEAR, FULL],
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "granitehybrid": {
        "family": "GraniteMoeHybrid",
        "num_hidden_layers": 3,
        "layer_types": ["mamba", "attention", "mamba"],
        "num_local_experts": 3,
        "shared_intermediate_size": 32,
        "mamba_n_heads": 4,
        "mamba_n_groups": 2,
        "mamba_d_state": 24,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.3,
    },
}


def make_family(folder: Path, variant: dict[str, Any], words: tokenizers.Tokenizer) -> None:
    """One family's checkpoint, without a tokenizer, and its logits."""
    shutil.rmtree(folder, ignore_errors=True)
    small = {"hidden_size": 32, "intermediate_size": 32} | variant
    checkpoints.save_checkpoint(folder, small, seed=3, dtype=torch.bfloat16)
    for name in ("tokenizer.json", "generation_config.json"):
        (folder / name).unlink(missing_ok=True)
    tokens = words.encode(checkpoints.TEXT).ids[:N_FAMILY_POSITIONS]
    logits = checkpoints.reference_logits(checkpoints.load(folder), tokens)
    np.save(folder / "logits.npy", logits[-N_FAMILY_ROWS:].numpy())
    (folder / "tokens.json").write_text(json.dumps(tokens) + "\n")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder.name}: {size} bytes, deviation {logits.std():.2f}")


def make_embedder(folder: Path, variant: dict[str, Any]) -> None:
    """The checkpoint of a model that embeds texts, and the hidden states of some."""
    shutil.rmtree(folder, ignore_errors=True)
    small = {"hidden_size": 32, "intermediate_size": 48} | variant
    embedders.save_embedder(folder, small, dtype=torch.bfloat16)
    words = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = [words.encode(text).ids for text in embedders.TEXTS]
    model = embedders.load(folder)
    np.save(
        folder / "hidden.npy",
        np.concatenate([embedders.hidden_states(model, ids) for ids in tokens]),
    )
    texts = {"texts": embedders.TEXTS, "tokens": tokens}
    (folder / "texts.json").write_text(json.dumps(texts) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*"))
    print(f"{folder.name}: {size} bytes")


def main() -> None:
    """Replaces all goldens."""
    for name in ("bert", "gemma", "nomic", "qwen3"):
        make_embedder(HERE / "embedders" / name, embedders.VARIANTS[name])
    if "--embedders" in sys.argv:
        return
    words = checkpoints.tokenizer()
    wanted = sys.argv[sys.argv.index("--families") + 1 :] if "--families" in sys.argv else []
    for name, variant in FAMILIES.items():
        if wanted and name not in wanted:
            continue
        make_family(HERE / "families" / name, variant, words)
    if "--families" in sys.argv:
        return
    for seed, (name, (variant, dtype)) in enumerate(GOLDENS.items()):
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        checkpoints.save_checkpoint(folder, variant, seed=seed, dtype=dtype)
        (folder / "generation_config.json").unlink(missing_ok=True)
        words = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokens = words.encode(checkpoints.TEXT).ids[:N_POSITIONS]
        model = checkpoints.load(folder)
        logits = checkpoints.reference_logits(model, tokens)
        np.save(folder / "logits.npy", logits.numpy())
        greedy: list[int] = []
        smallest_lead = float("inf")
        while len(greedy) < N_GREEDY:
            row = checkpoints.reference_logits(model, tokens + greedy)[-1]
            first, second = row.topk(2).values.tolist()
            smallest_lead = min(smallest_lead, first - second)
            greedy.append(int(row.argmax()))
        expected = {"text": words.decode(tokens), "tokens": tokens, "greedy": greedy}
        (folder / "expected.json").write_text(json.dumps(expected, ensure_ascii=True) + "\n")
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{name}: {size} bytes, smallest lead of a greedy token {smallest_lead:.4f}")


if __name__ == "__main__":
    main()
