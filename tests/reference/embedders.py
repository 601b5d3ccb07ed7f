"""Tiny random checkpoints of models that embed texts, saved by transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors

Array = np.ndarray[Any, Any]

# Short ones, one longer than a page of keys and values, one longer than two.
TEXTS = [
    "The cat sat at the window.",
    "a",
    "Caf\u00e9 na\u00efve \u65e5\u672c\u8a9e!",
    checkpoints.TEXT[:150],
    checkpoints.TEXT[:330],
    "In the year 1999",
]

# sentence-transformers' name of each pooling.
_MODES = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
}

VARIANTS: dict[str, dict[str, Any]] = {
    "bert": {"family": "Bert", "pooling": "mean"},
    "bert wide": {
        "family": "Bert",
        "pooling": "cls",
        "hidden_size": 96,
        "num_attention_heads": 3,
        "intermediate_size": 200,
        "layer_norm_eps": 1e-3,
        "type_vocab_size": 3,
    },
    "nomic": {"family": "NomicBert", "pooling": "mean"},
    "nomic base": {
        "family": "NomicBert",
        "pooling": "last",
        "num_attention_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
    },
    "gemma": {
        "family": "Gemma3",
        "pooling": "mean",
        "num_hidden_layers": 3,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "num_key_value_heads": 1,
        "sliding_window": 41,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "use_bidirectional_attention": True,
    },
    "qwen3": {"family": "Qwen3", "pooling": "last", "head_dim": 16, "num_key_value_heads": 2},
    "qwen2 mean": {"family": "Qwen2", "pooling": "mean", "num_key_value_heads": 2},
}


def word_piece() -> tokenizers.Tokenizer:
    """The text's words and letters, with BERT's own tokens around them; no trainer, whose ties
    fall as they like."""
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    text = normalizer.normalize_str(checkpoints.TEXT)
    words = sorted({word for word, _ in splitter.pre_tokenize_str(text)})
    letters = sorted(set("".join(words)))
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [f"##{piece}" for piece in (*letters, "ed", "ing")]
    listed = dict.fromkeys([*names, *letters, *pieces, *words[::2]])
    vocab = {piece: i for i, piece in enumerate(listed)}
    made = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = normalizer
    made.pre_tokenizer = splitter
    made.add_special_tokens(names)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return made


def byte_bpe() -> tokenizers.Tokenizer:
    """As the decoders' own, and it ends a text."""
    made = checkpoints.tokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", pair=None, special_tokens=[("<|endoftext|>", 0)]
    )
    return made


def save_embedder(
    folder: Path, variant: dict[str, Any], *, seed: int = 5, dtype: torch.dtype = torch.float32
) -> None:
    """Writes a sentence-transformers folder; every weight is random."""
    options = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    } | variant
    family, pooling = options.pop("family"), options.pop("pooling")
    is_bert = family.endswith("Bert")
    words = word_piece() if is_bert else byte_bpe()
    options["vocab_size"] = words.get_vocab_size()
    if is_bert:
        options["pad_token_id"] = 0
    else:
        options |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    text = "Text" if family == "Gemma3" else ""
    config = getattr(transformers, f"{family}{text}Config")(**options)
    model: Any = getattr(transformers, f"{family}{text}Model")(config)
    # Gemma's norms add 1 to their weights themselves.
    center = 0.0 if family == "Gemma3" else 1.0
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            weight.normal_(generator=generator)
            if name.endswith(".bias"):
                weight.mul_(0.3)
            elif weight.ndim == 1:
                weight.mul_(0.2).add_(center)
            else:
                weight.mul_(1.5 / weight.shape[1] ** 0.5)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(dtype).save_pretrained(folder, safe_serialization=True)
    if "sliding_window" in variant:  # transformers halves it whenever it reads it
        path = folder / "config.json"
        stated = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps({**stated, "sliding_window": variant["sliding_window"]}))
    words.save(str(folder / "tokenizer.json"))
    names = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
    plain = {"eos": "<|endoftext|>", "pad": "<|endoftext|>"}
    tokens = {f"{role}_token": text for role, text in (names if is_bert else plain).items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    at = "sentence_transformers.models"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{at}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{at}.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{at}.Normalize"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {mode: name == pooling for name, mode in _MODES.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))


def load(folder: Path) -> Any:
    """The checkpoint as transformers runs it, in float32."""
    return transformers.AutoModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@torch.no_grad()
def hidden_states(model: Any, tokens: list[int]) -> Array:
    """What lies behind the last layer, and behind the last norm where there is one."""
    found: Array = model(torch.tensor([tokens])).last_hidden_state[0].numpy()
    return found


def pooled(hidden: Array, pooling: str) -> Array:
    """One vector of length 1, in double precision."""
    rows = hidden.astype(np.float64)
    vector: Array = {"mean": rows.mean(axis=0), "cls": rows[0], "last": rows[-1]}[pooling]
    return vector / np.linalg.norm(vector)
