"""The families that embed texts and have no head, as data; see `_families.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from converters._family import ALWAYS, Rule


@dataclass(frozen=True)
class Encoder:
    """What config.json's `architectures` names.

    Attributes:
        model_type: config.json's model_type, used where `architectures` is absent.
        architecture: GGUF's general.architecture.
        rules: The tensors; those with "{}" stand in every layer.
        joined: Tensors that GGUF has as one, below each other: its name to theirs.
        keys: What the sizes are called in config.json: the names that there are for each.
        defaults: What transformers takes for an absent key.
        fixed: Keys that must have one of these values.
        renames: Parts of names in checkpoints of another make, and what they are called here.
        rotates: Whether heads are rotated.
    """

    model_type: str
    architecture: str
    rules: tuple[Rule, ...]
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    defaults: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    fixed: Mapping[str, tuple[object, ...]] = field(default_factory=lambda: MappingProxyType({}))
    renames: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    rotates: bool = False


def _matrix(source: str, target: str, rows: str, columns: str = "width", bias: str = "") -> Rule:
    return Rule(source, target, (rows, columns), bias=bias)


def _norm(source: str, target: str) -> Rule:
    return Rule(source, target, ("width",), bias=ALWAYS)


_TOP = (
    _matrix("embeddings.word_embeddings", "token_embd", "vocab"),
    _matrix("embeddings.token_type_embeddings", "token_types", "types"),
    _norm("embeddings.LayerNorm", "token_embd_norm"),
)
_SIZES = {
    "layers": ("num_hidden_layers",),
    "width": ("hidden_size",),
    "ffn_width": ("intermediate_size",),
    "heads": ("num_attention_heads",),
    "context": ("max_position_embeddings",),
    "epsilon": ("layer_norm_eps",),
}
_BERT_AT, _NOMIC_AT = "encoder.layer.{}.", "layers.{}."

_BERT = Encoder(
    "bert",
    "bert",
    (
        *_TOP[:2],
        _matrix("embeddings.position_embeddings", "position_embd", "context"),
        _TOP[2],
        *(
            _matrix(f"{_BERT_AT}attention.self.{name}", f"blk.{{}}.attn_{name[0]}", "width",
                    bias=ALWAYS)
            for name in ("query", "key", "value")
        ),
        _matrix(f"{_BERT_AT}attention.output.dense", "blk.{}.attn_output", "width", bias=ALWAYS),
        _norm(f"{_BERT_AT}attention.output.LayerNorm", "blk.{}.attn_output_norm"),
        _matrix(f"{_BERT_AT}intermediate.dense", "blk.{}.ffn_up", "ffn_width", bias=ALWAYS),
        _matrix(f"{_BERT_AT}output.dense", "blk.{}.ffn_down", "width", "ffn_width", bias=ALWAYS),
        _norm(f"{_BERT_AT}output.LayerNorm", "blk.{}.layer_output_norm"),
    ),
    keys=_SIZES,
    defaults={"layer_norm_eps": 1e-12, "type_vocab_size": 2},
    fixed={
        "hidden_act": (None, "gelu"),
        "position_embedding_type": (None, "absolute"),
        "is_decoder": (None, False),
        "add_cross_attention": (None, False),
    },
    renames={".gamma": ".weight", ".beta": ".bias"},
)  # fmt: skip

_NOMIC = Encoder(
    "nomic_bert",
    "nomic-bert",
    (
        *_TOP,
        _matrix("", "blk.{}.attn_qkv", "three_widths"),
        _matrix(f"{_NOMIC_AT}self_attn.o_proj", "blk.{}.attn_output", "width"),
        _norm(f"{_NOMIC_AT}post_attention_layernorm", "blk.{}.attn_output_norm"),
        _matrix(f"{_NOMIC_AT}mlp.gate_proj", "blk.{}.ffn_gate", "ffn_width"),
        _matrix(f"{_NOMIC_AT}mlp.up_proj", "blk.{}.ffn_up", "ffn_width"),
        _matrix(f"{_NOMIC_AT}mlp.down_proj", "blk.{}.ffn_down", "width", "ffn_width"),
        _norm(f"{_NOMIC_AT}post_mlp_layernorm", "blk.{}.layer_output_norm"),
    ),
    joined={
        "blk.{}.attn_qkv": tuple(f"{_NOMIC_AT}self_attn.{name}_proj" for name in "qkv"),
    },
    # The second names are those of the model's own code, from before transformers had it.
    keys={
        "layers": (*_SIZES["layers"], "n_layer"),
        "width": (*_SIZES["width"], "n_embd"),
        "ffn_width": (*_SIZES["ffn_width"], "n_inner"),
        "heads": (*_SIZES["heads"], "n_head"),
        "context": (*_SIZES["context"], "max_trained_positions", "n_positions"),
        "epsilon": (*_SIZES["epsilon"], "layer_norm_epsilon"),
    },
    defaults={"type_vocab_size": 2},
    fixed={
        "hidden_act": (None, "silu"),
        "activation_function": (None, "swiglu"),
        "moe_every_n_layers": (None, 0),
        "causal": (None, False),
        "prenorm": (None, False),
        "qkv_proj_bias": (None, False),
        "mlp_fc1_bias": (None, False),
        "mlp_fc2_bias": (None, False),
        "rotary_emb_fraction": (None, 1.0),
        "rotary_emb_interleaved": (None, False),
        "rotary_emb_scale_base": (None,),
        "rotary_scaling_factor": (None,),
    },
    renames={
        "encoder.layers.": "layers.",
        "emb_ln.": "embeddings.LayerNorm.",
        ".attn.out_proj.": ".self_attn.o_proj.",
        ".attn.Wqkv.": ".self_attn.qkv_proj.",
        ".fc11.": ".up_proj.",
        ".fc12.": ".gate_proj.",
        ".fc2.": ".down_proj.",
        ".norm1.": ".post_attention_layernorm.",
        ".norm2.": ".post_mlp_layernorm.",
    },
    rotates=True,
)  # fmt: skip

ENCODERS: Mapping[str, Encoder] = MappingProxyType(
    {
        "BertModel": _BERT,
        "BertForMaskedLM": _BERT,
        "NomicBertModel": _NOMIC,
        "NomicBertForMaskedLM": _NOMIC,
    }
)

# What stands beside the layers in checkpoints and no vector needs.
LEFT_OUT = ("pooler.", "cls.", "lm_head.", "embeddings.position_ids", "rotary_emb.")
PREFIXES = ("bert.", "nomic_bert.")
