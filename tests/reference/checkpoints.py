"""Tiny random checkpoints, made and saved by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

TEXT = """Once upon a time there was a little cat who lived in a small house by the sea.
Every day the cat sat at the window and watched the boats. "One day I will go to the sea, too,"
said the cat. In the year 1999 a café opened at the harbour; it cost 5 € to get in, and 日本語 was
written on the door. The cat didn't mind. It was happy there, and it's happy still.
"""

# What each checkpoint differs in from the smallest grouped-query Llama.
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "one head per KV head": {"num_key_value_heads": 4},
    "one KV head": {"num_key_value_heads": 1},
    "wider heads": {"head_dim": 24},
    "narrower heads": {"head_dim": 8},
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    "llama3 rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 500000.0,
        }
    },
    "rope base": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "epsilon": {"rms_norm_eps": 1e-2},
    "mistral": {"mistral": True, "head_dim": 32, "tie_word_embeddings": False},
}


def tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE of 300 tokens with GPT-2's rule, the first of which ends a text."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator([TEXT] * 4, trainer)
    return made


def save_checkpoint(
    folder: Path, variant: dict[str, Any], *, seed: int = 1, dtype: torch.dtype = torch.float32
) -> None:
    """Writes config.json, model.safetensors and tokenizer.json; every weight is random."""
    words = tokenizer()
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
    } | variant
    if options.pop("mistral", False):
        model: Any = MistralForCausalLM(MistralConfig(sliding_window=None, **options))
    else:
        model = LlamaForCausalLM(LlamaConfig(**options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            weight.normal_(generator=generator)
            if name.endswith(".bias"):
                weight.mul_(0.3)
            elif weight.ndim == 1:
                weight.mul_(0.2).add_(1.0)
            else:
                weight.mul_(1.5 / weight.shape[1] ** 0.5)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(dtype).save_pretrained(folder, safe_serialization=True)
    words.save(str(folder / "tokenizer.json"))


def load(folder: Path) -> Any:
    """The checkpoint as transformers runs it, in float32."""
    kind = (
        MistralForCausalLM
        if "Mistral" in (folder / "config.json").read_text()
        else LlamaForCausalLM
    )
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def reference_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    """Logits at every position."""
    return model(torch.tensor([tokens])).logits[0]
