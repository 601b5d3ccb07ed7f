"""Tiny random checkpoints, made and saved by transformers itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

TEXT = """Once upon a time there was a little cat who lived in a small house by the sea.
Every day the cat sat at the window and watched the boats. "One day I will go to the sea, too,"
said the cat. In the year 1999 a café opened at the harbour; it cost 5 € to get in, and 日本語 was
written on the door. The cat didn't mind. It was happy there, and it's happy still.
"""

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500000.0,
}
_YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
_LONG = {
    "rope_type": "longrope",
    "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0],
    "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.5],
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
_LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
_WINDOW = {"use_sliding_window": True, "sliding_window": 37}
_SLIDING, _FULL, _LINEAR_LAYER = "sliding_attention", "full_attention", "linear_attention"
_GEMMA4_ROPE = {
    _FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e5},
    _SLIDING: {"rope_type": "default", "rope_theta": 1e4},
}
_DELTA = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
}

_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 24,
    "v_head_dim": 20,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 40,
    "tie_word_embeddings": False,
}

_LITE = {
    "family": "DeepseekV2",
    **_LATENT,
    "q_lora_rank": None,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "rope_parameters": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
}

# What each checkpoint differs in from the smallest grouped-query Llama.
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "one head per KV head": {"num_key_value_heads": 4},
    "one KV head": {"num_key_value_heads": 1},
    "wider heads": {"head_dim": 24},
    "narrower heads": {"head_dim": 8},
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "linear rope": {"rope_parameters": _LINEAR},
    "yarn rope": {"rope_parameters": _YARN},
    "longrope": {
        "rope_parameters": {
            **_LONG,
            "long_factor": [*_LONG["long_factor"], 9.0, 11.0],
            "short_factor": [*_LONG["short_factor"], 1.6, 1.7],
        }
    },
    "llama3 rope": {"rope_parameters": _LLAMA3_ROPE},
    "rope base": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "epsilon": {"rms_norm_eps": 1e-2},
    "mistral": {"family": "Mistral", "head_dim": 32, "tie_word_embeddings": False},
    "mistral window": {"family": "Mistral", "sliding_window": 50},
    "qwen2": {"family": "Qwen2"},
    "qwen2 window": {
        "family": "Qwen2",
        **_WINDOW,
        "max_window_layers": 1,
        "num_hidden_layers": 3,
        "tie_word_embeddings": False,
        "rope_parameters": _YARN,
    },
    "qwen3": {"family": "Qwen3", "head_dim": 32},
    "qwen3 window": {
        "family": "Qwen3",
        **_WINDOW,
        "num_hidden_layers": 4,
        "layer_types": [_FULL, _SLIDING, _SLIDING, _FULL],
        "head_dim": 8,
        "attention_bias": True,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "gemma2": {
        "family": "Gemma2",
        "num_hidden_layers": 4,
        "head_dim": 24,
        "query_pre_attn_scalar": 24,
        "sliding_window": 40,
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 6.0,
    },
    "gemma2 other": {
        "family": "Gemma2",
        "num_hidden_layers": 3,
        "head_dim": 16,
        "query_pre_attn_scalar": 7,
        "sliding_window": 33,
        "layer_types": [_SLIDING, _SLIDING, _FULL],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "num_key_value_heads": 1,
        "rope_parameters": _LINEAR,
    },
    "gemma3": {
        "family": "Gemma3",
        "num_hidden_layers": 7,
        "head_dim": 24,
        "query_pre_attn_scalar": 24,
        "sliding_window": 40,
        "rope_parameters": {
            _FULL: {**_LINEAR, "rope_theta": 1e6},
            _SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "gemma3 other": {
        "family": "Gemma3",
        "num_hidden_layers": 4,
        "head_dim": 16,
        "query_pre_attn_scalar": 30,
        "sliding_window": 17,
        "layer_types": [_FULL, _SLIDING, _SLIDING, _FULL],
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": False,
        "rope_parameters": {
            _FULL: {"rope_type": "default", "rope_theta": 5e5},
            _SLIDING: {"rope_type": "default", "rope_theta": 3e3},
        },
    },
    "phi3": {"family": "Phi3", "tie_word_embeddings": False, "sliding_window": None},
    "phi3 longrope": {
        "family": "Phi3",
        "original_max_position_embeddings": 64,
        "sliding_window": 70,
        "rope_parameters": {**_LONG, "partial_rotary_factor": 0.75},
    },
    "granite": {
        "family": "Granite",
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.11,
        "logits_scaling": 0.5,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "smollm3": {"family": "SmolLM3", "num_hidden_layers": 5},
    "smollm3 other": {
        "family": "SmolLM3",
        "num_hidden_layers": 3,
        "no_rope_layers": [1, 0, 1],
        "attention_bias": True,
        "tie_word_embeddings": False,
        **_WINDOW,
    },
    "olmo2": {"family": "Olmo2", "tie_word_embeddings": False, "attention_bias": True},
    "olmo2 plain": {"family": "Olmo2", "num_key_value_heads": 4},
    "olmo3": {
        "family": "Olmo3",
        "num_hidden_layers": 5,
        "sliding_window": 35,
        "rope_parameters": {
            _FULL: _YARN,
            _SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "ministral3": {
        "family": "Ministral3",
        "head_dim": 32,
        "rope_parameters": {
            **_YARN,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.3,
        },
    },
    "mixtral": {"family": "Mixtral", "num_local_experts": 6, "tie_word_embeddings": False},
    "qwen3moe": {
        "family": "Qwen3Moe",
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "head_dim": 24,
    },
    "qwen3moe unnormed": {
        "family": "Qwen3Moe",
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "attention_bias": True,
        **_WINDOW,
    },
    "granitemoe": {
        "family": "GraniteMoe",
        "num_local_experts": 5,
        "num_experts_per_tok": 3,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.11,
        "logits_scaling": 0.5,
    },
    "granitemoeshared": {
        "family": "GraniteMoeShared",
        "num_local_experts": 4,
        "shared_intermediate_size": 128,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.25,
    },
    "gpt-oss": {
        "family": "GptOss",
        "num_hidden_layers": 4,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "head_dim": 16,
        "sliding_window": 40,
        "tie_word_embeddings": False,
        "rope_parameters": {**_YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True},
    },
    "gpt-oss other": {
        "family": "GptOss",
        "num_local_experts": 4,
        "num_experts_per_tok": 3,
        "head_dim": 32,
        "sliding_window": 33,
        "layer_types": [_FULL, _SLIDING],
        "attention_bias": False,
        "rope_parameters": {**_YARN, "truncate": False},
    },
    "lfm2": {
        "family": "Lfm2",
        "num_hidden_layers": 4,
        "layer_types": ["conv", _FULL, "conv", "conv"],
        "conv_L_cache": 4,
        "norm_eps": 1e-3,
        "block_auto_adjust_ff_dim": False,
        "tie_word_embeddings": False,
    },
    "lfm2 other": {
        "family": "Lfm2",
        "num_hidden_layers": 3,
        "layer_types": ["conv", "conv", _FULL],
        "block_multiple_of": 16,
        "block_ffn_dim_multiplier": 1.3,
    },
    "deepseek2": {
        "family": "DeepseekV2",
        **_LATENT,
        "q_lora_rank": 24,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "routed_scaling_factor": 1.7,
        "rope_parameters": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "deepseek2 lite": _LITE,
    # llama.cpp knows models whose queries have no latent by their number of layers.
    "deepseek2 lite deep": {**_LITE, "num_hidden_layers": 26},
    "deepseek3": {
        "family": "DeepseekV3",
        **_LATENT,
        "num_hidden_layers": 3,
        "q_lora_rank": 24,
        "n_routed_experts": 12,
        "num_experts_per_tok": 4,
        "n_group": 4,
        "topk_group": 2,
        "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "deepseek3 gains": {
        "family": "DeepseekV3",
        **_LATENT,
        "num_hidden_layers": 3,
        "q_lora_rank": 24,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "tie_word_embeddings": True,
        "rope_parameters": {**_YARN, "mscale": 0.6, "mscale_all_dim": 1.1},
    },
    "deepseek3 other": {
        "family": "DeepseekV3",
        **_LATENT,
        "q_lora_rank": None,
        "n_shared_experts": 2,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "n_group": 3,
        "topk_group": 2,
        "norm_topk_prob": False,
        "rope_parameters": _YARN,
    },
    "glm4 flash": {
        "family": "Glm4MoeLite",
        **_LATENT,
        "num_hidden_layers": 3,
        "q_lora_rank": 40,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "v_head_dim": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "granitehybrid": {
        "family": "GraniteMoeHybrid",
        "num_hidden_layers": 4,
        "layer_types": ["mamba", "attention", "mamba", "mamba"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 128,
        "mamba_n_heads": 8,
        "mamba_n_groups": 2,
        "mamba_d_state": 40,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.11,
        "logits_scaling": 0.5,
    },
    "granitehybrid dense": {
        "family": "GraniteMoeHybrid",
        "num_hidden_layers": 3,
        "layer_types": ["attention", "mamba", "attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 160,
        "mamba_n_heads": 2,
        "mamba_d_state": 16,
        "mamba_d_conv": 3,
        "mamba_conv_bias": False,
        "attention_multiplier": 0.25,
        "tie_word_embeddings": False,
    },
    "granitehybrid rope": {
        "family": "GraniteMoeHybrid",
        "num_hidden_layers": 2,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 96,
        "position_embedding_type": "rope",
        "mamba_n_heads": 16,
        "mamba_n_groups": 4,
        "mamba_d_state": 32,
        "attention_multiplier": 0.25,
    },
    "granitehybrid attention": {
        "family": "GraniteMoeHybrid",
        "layer_types": ["attention", "attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 160,
        "position_embedding_type": "rope",
        "mamba_n_heads": 2,
        "attention_multiplier": 0.25,
    },
    "qwen35": {"family": "Qwen3_5", **_DELTA},
    "qwen35 other": {
        "family": "Qwen3_5",
        **_DELTA,
        "num_hidden_layers": 5,
        "layer_types": [_FULL, _LINEAR_LAYER, _FULL, _LINEAR_LAYER, _LINEAR_LAYER],
        "linear_num_value_heads": 2,
        "linear_conv_kernel_dim": 3,
        "linear_key_head_dim": 24,
        "linear_value_head_dim": 24,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 1e5,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    },
    "qwen35 wide": {
        "family": "Qwen3_5",
        **_DELTA,
        "linear_num_key_heads": 3,
        "linear_num_value_heads": 6,
        "linear_value_head_dim": 20,
    },
    "qwen35moe": {
        "family": "Qwen3_5Moe",
        **_DELTA,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
    },
    "qwen3next": {
        "family": "Qwen3Next",
        **_DELTA,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "shared_expert_intermediate_size": 32,
    },
    "gemma4 inputs": {  # as E2B
        "family": "Gemma4",
        "num_hidden_layers": 5,
        "layer_types": [_SLIDING, _SLIDING, _FULL, _SLIDING, _FULL],
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 32,
        "head_dim": 16,
        "global_head_dim": 32,
        "sliding_window": 37,
        "final_logit_softcapping": 3.0,
        "rope_parameters": _GEMMA4_ROPE,
    },
    "gemma4": {  # as 31B
        "family": "Gemma4",
        "num_hidden_layers": 4,
        "hidden_size_per_layer_input": 0,
        "head_dim": 16,
        "global_head_dim": 24,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "sliding_window": 33,
        "final_logit_softcapping": 6.0,
        "rope_parameters": _GEMMA4_ROPE,
    },
    "gemma4 experts": {  # as 26B-A4B
        "family": "Gemma4",
        "num_hidden_layers": 3,
        "layer_types": [_SLIDING, _FULL, _FULL],
        "hidden_size_per_layer_input": 0,
        "head_dim": 16,
        "global_head_dim": 32,
        "num_key_value_heads": 4,
        "num_global_key_value_heads": 2,
        "attention_k_eq_v": True,
        "sliding_window": 40,
        "enable_moe_block": True,
        "num_experts": 6,
        "top_k_experts": 3,
        "moe_intermediate_size": 32,
        "rope_parameters": _GEMMA4_ROPE,
    },
    "gemma4 unified": {  # as 12B
        "family": "Gemma4Unified",
        "num_hidden_layers": 4,
        "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL],
        "head_dim": 24,
        "global_head_dim": 16,
        "sliding_window": 31,
        "tie_word_embeddings": False,
        "rope_parameters": {
            _FULL: {"rope_type": "default", "rope_theta": 1e5},
            _SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "gemma4 other": {
        "family": "Gemma4",
        "num_hidden_layers": 5,
        "layer_types": [_FULL, _SLIDING, _SLIDING, _FULL, _FULL],
        "num_kv_shared_layers": 3,
        "hidden_size_per_layer_input": 24,
        "head_dim": 32,
        "global_head_dim": 16,
        "num_key_value_heads": 1,
        "attention_k_eq_v": True,
        "sliding_window": 5,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 1,
        "moe_intermediate_size": 40,
        "tie_word_embeddings": False,
        "rope_parameters": {
            _FULL: {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.5,
                "rope_theta": 1e4,
                "factor": 3.0,
            },
            _SLIDING: {"rope_type": "default", "rope_theta": 1e3},
        },
    },
}


def tokenizer(family: str = "Llama") -> tokenizers.Tokenizer:
    """A byte-level BPE of 300 tokens with GPT-2's rule, the first of which ends a text."""
    # llama.cpp insists on these in whatever calls itself Phi 3.
    more = ["<unk>", "<s>", "</s>"] if family == "Phi3" else []
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", *more],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator([TEXT] * 4, trainer)
    return made


def save_checkpoint(
    folder: Path, variant: dict[str, Any], *, seed: int = 1, dtype: torch.dtype = torch.float32
) -> None:
    """Writes config.json, model.safetensors and tokenizer.json; every weight is random."""
    family = variant.get("family", "Llama")
    words = tokenizer(family)
    options: dict[str, Any] = {
        "vocab_size": words.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "sliding_window": None,
    } | copy.deepcopy(variant)
    options.pop("family", None)
    if family == "Gemma4":
        options["vocab_size_per_layer_input"] = options["vocab_size"]
    inner = family in ("Gemma3", "Gemma4", "Gemma4Unified", "Qwen3_5", "Qwen3_5Moe")
    config = getattr(transformers, f"{family}{'TextConfig' if inner else 'Config'}")
    model: Any = getattr(transformers, f"{family}ForCausalLM")(config(**options))
    # Some norms add 1 to their weights themselves.
    own = ("Gemma2", "Gemma3", "Qwen3_5", "Qwen3_5Moe", "Qwen3Next")
    center = 0.0 if family in own else 1.0
    generator = torch.Generator().manual_seed(seed)
    scalars = [item for item in model.named_buffers() if item[0].endswith("layer_scalar")]
    with torch.no_grad():
        for name, weight in sorted([*model.named_parameters(), *scalars]):
            weight.normal_(generator=generator)
            if name.endswith("linear_attn.A_log"):
                weight.sub_(2.0)  # some heads forget at once, some hardly
            elif name.endswith(".A_log"):
                weight.sub_(3.0)  # a memory of some ten tokens
            elif name.endswith(".bias"):
                weight.mul_(0.3)
            elif name.endswith("linear_attn.norm.weight"):
                weight.mul_(0.2).add_(1.0)
            elif weight.ndim == 1:
                weight.mul_(0.2).add_(center)
            else:
                weight.mul_(1.5 / weight.shape[1] ** 0.5)
        for name, bias in sorted(model.named_buffers()):
            if name.endswith("e_score_correction_bias"):  # sigmoids differ by about as much
                bias.normal_(generator=generator).mul_(0.2)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(dtype).save_pretrained(folder, safe_serialization=True)
    words.save(str(folder / "tokenizer.json"))


def load(folder: Path) -> Any:
    """The checkpoint as transformers runs it, in float32."""
    # Not the fused kernels: they leave out what some models do to scores.
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@torch.no_grad()
def reference_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    """Logits at every position."""
    return model(torch.tensor([tokens])).logits[0]
