"""How Llama-shaped checkpoints map to GGUF: hyperparameters, tensor names, row order.

The conventions (key and tensor names, which rows are permuted) are those that existing GGUF
readers expect of architecture "llama".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from converters._config import Config
from converters._gguf_writer import Field
from converters._source import Floats, TensorEntry
from pyengine._errors import ConversionError

ROPE_FACTORS = "rope_freqs.weight"
# Buffers that old checkpoints store and that follow from the config.
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"
_OUTPUT_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Architecture:
    """One entry of config.json's `architectures`.

    Attributes:
        model_type: config.json's model_type, used where `architectures` is absent.
        kv_heads: What transformers takes for an absent num_key_value_heads; 0 for as many as
            there are heads.
        sliding_window: What transformers takes for an absent sliding_window, in tokens; 0 where
            attention never looks at it.
    """

    model_type: str
    kv_heads: int = 0
    sliding_window: int = 0


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama"),
    "MistralForCausalLM": Architecture("mistral", kv_heads=8, sliding_window=4096),
}


@dataclass(frozen=True)
class Rule:
    """One tensor of a layer, or of the whole model.

    Attributes:
        source: The checkpoint's name without ".weight"; "{}" stands for the layer.
        target: GGUF's name without ".weight"; "{}" stands for the layer.
        shape: Names of attributes of `Shape`, slowest dimension first.
        heads: The attribute of `Shape` that counts the heads whose rows are re-ordered, or "".
        bias: The config flag that says whether a bias stands beside the weight, or "".
    """

    source: str
    target: str
    shape: tuple[str, ...]
    heads: str = ""
    bias: str = ""


_EMBEDDING = Rule("model.embed_tokens", "token_embd", ("vocab", "width"))
_LAYER = tuple(
    Rule(f"model.layers.{{}}.{source}", f"blk.{{}}.{target}", shape, heads, bias)
    for source, target, shape, heads, bias in (
        ("input_layernorm", "attn_norm", ("width",), "", ""),
        ("self_attn.q_proj", "attn_q", ("q_width", "width"), "heads", "attention_bias"),
        ("self_attn.k_proj", "attn_k", ("kv_width", "width"), "kv_heads", "attention_bias"),
        ("self_attn.v_proj", "attn_v", ("kv_width", "width"), "", "attention_bias"),
        ("self_attn.o_proj", "attn_output", ("width", "q_width"), "", "attention_bias"),
        ("post_attention_layernorm", "ffn_norm", ("width",), "", ""),
        ("mlp.gate_proj", "ffn_gate", ("ffn_width", "width"), "", "mlp_bias"),
        ("mlp.up_proj", "ffn_up", ("ffn_width", "width"), "", "mlp_bias"),
        ("mlp.down_proj", "ffn_down", ("width", "ffn_width"), "", "mlp_bias"),
    )
)
_NORM = Rule("model.norm", "output_norm", ("width",))
_HEAD = Rule("lm_head", "output", ("vocab", "width"))


@dataclass(frozen=True)
class Shape:
    """The sizes that the tensors follow; widths count numbers."""

    layers: int
    width: int
    ffn_width: int
    heads: int
    kv_heads: int
    head_width: int
    vocab: int

    @property
    def q_width(self) -> int:
        """Rows of the query projection."""
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        """Rows of the key and of the value projection."""
        return self.kv_heads * self.head_width


@dataclass(frozen=True)
class Mapped:
    """One tensor to write and where it comes from.

    Attributes:
        target: GGUF's name.
        shape: Slowest dimension first.
        source: The checkpoint's name, or "" where `data` holds the values.
        head_rows: Rows of one head if the rows are re-ordered, else 0.
        data: Computed values.
    """

    target: str
    shape: tuple[int, ...]
    source: str = ""
    head_rows: int = 0
    data: Floats | None = None


def pair_rows(rows: Floats, head_rows: int) -> Floats:
    """Re-orders the rows of whole heads from half-split to interleaved rotation pairs.

    The checkpoint rotates row i of a head with row i + half; GGUF's llama graph rotates rows 2i
    and 2i + 1. Other rows, or values instead of keys, come out wrong without any error.

    Args:
        rows: Rows, or elements of a bias, of one or more whole heads.
        head_rows: Rows of one head, an even number.

    Returns:
        A copy in the new order.
    """
    inner = rows.shape[1:]
    split = rows.reshape(-1, 2, head_rows // 2, *inner)
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


class LlamaMapping:
    """A checked config and what follows from it."""

    def __init__(self, values: Mapping[str, object], where: str = "config.json") -> None:
        """Reads and checks config.json.

        Args:
            values: The parsed file.
            where: What error messages call it.

        Raises:
            ConversionError: A value is missing or out of range, or a feature is unsupported.
        """
        self._config = config = Config(values, where)
        architecture = self._architecture()
        self._refuse_features(architecture)
        width, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
        if config.values.get("head_dim") is None and width % heads:
            raise ConversionError(
                f"{where}: hidden_size: expected a multiple of {heads} heads, found {width}"
            )
        self._explicit_head_width = config.values.get("head_dim") is not None
        self.shape = Shape(
            layers=config.integer("num_hidden_layers"),
            width=width,
            ffn_width=config.integer("intermediate_size"),
            heads=heads,
            kv_heads=config.integer("num_key_value_heads", architecture.kv_heads or heads),
            head_width=config.integer("head_dim", width // heads or None),
            vocab=config.integer("vocab_size"),
        )
        if self.shape.head_width % 2:
            raise ConversionError(
                f"{where}: head_dim: expected an even number, found {self.shape.head_width}"
            )
        if heads % self.shape.kv_heads:
            raise ConversionError(
                f"{where}: num_key_value_heads: expected a divisor of {heads} heads, "
                f"found {self.shape.kv_heads}"
            )
        self.context = config.integer("max_position_embeddings")
        self._epsilon = config.number("rms_norm_eps", 1e-6)
        self.tied = config.flag("tie_word_embeddings", False)
        self._read_rope()

    def fields(self) -> list[Field]:
        """The metadata that describes the network."""
        shape = self.shape
        fields = [
            Field("llama.block_count", "u32", shape.layers),
            Field("llama.context_length", "u32", self.context),
            Field("llama.embedding_length", "u32", shape.width),
            Field("llama.feed_forward_length", "u32", shape.ffn_width),
            Field("llama.attention.head_count", "u32", shape.heads),
            Field("llama.attention.head_count_kv", "u32", shape.kv_heads),
            Field("llama.rope.freq_base", "f32", self._rope_base),
            Field("llama.attention.layer_norm_rms_epsilon", "f32", self._epsilon),
        ]
        if self._explicit_head_width:
            fields.append(Field("llama.attention.key_length", "u32", shape.head_width))
            fields.append(Field("llama.attention.value_length", "u32", shape.head_width))
        if self._rope_linear:
            fields.append(Field("llama.rope.scaling.type", "str", "linear"))
            fields.append(Field("llama.rope.scaling.factor", "f32", self._rope_linear))
        fields.append(Field("llama.vocab_size", "u32", shape.vocab))
        fields.append(Field("llama.rope.dimension_count", "u32", shape.head_width))
        return fields

    def tensors(self, stored: Mapping[str, TensorEntry]) -> list[Mapped]:
        """The tensors to write, in file order, each checked against what is stored.

        Args:
            stored: The checkpoint's tensors.

        Returns:
            The plan.

        Raises:
            ConversionError: A tensor is missing, is of another shape or is not known.
        """
        plan: list[Mapped] = []
        for rule, suffix, layer in self._walk():
            source = rule.source.format(layer) + suffix
            dims: tuple[int, ...] = tuple(getattr(self.shape, name) for name in rule.shape)
            if suffix == ".bias":
                dims = dims[:1]
            entry = stored.get(source)
            if entry is None:
                raise ConversionError(
                    f"tensor {source!r}: expected shape {list(dims)}, found no such tensor"
                )
            if entry.shape != dims:
                raise ConversionError(
                    f"tensor {source!r}: expected shape {list(dims)} as {self._config.where} says, "
                    f"found {list(entry.shape)}"
                )
            head_rows = self.shape.head_width if rule.heads else 0
            plan.append(Mapped(rule.target.format(layer) + suffix, dims, source, head_rows))
        self._refuse_unknown(stored, {item.source for item in plan})
        if self._rope_factors is not None:
            factors = self._rope_factors
            plan.insert(1, Mapped(ROPE_FACTORS, factors.shape, data=factors))
        return plan

    def _walk(self) -> Iterator[tuple[Rule, str, int]]:
        yield _EMBEDDING, ".weight", 0
        for layer in range(self.shape.layers):
            for rule in _LAYER:
                yield rule, ".weight", layer
                if rule.bias and self._config.flag(rule.bias, False):
                    yield rule, ".bias", layer
        yield _NORM, ".weight", 0
        if not self.tied:
            yield _HEAD, ".weight", 0

    def _refuse_unknown(self, stored: Mapping[str, TensorEntry], used: set[str]) -> None:
        unknown = sorted(
            name
            for name in stored
            if name not in used
            and not name.endswith(_IGNORED_SUFFIX)
            # transformers, too, ties the weights and drops a head that is stored all the same.
            and not (self.tied and name == _OUTPUT_HEAD)
        )
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise ConversionError(
                f"tensor {unknown[0]!r}: expected only tensors of this architecture, "
                f"found this one{more}"
            )

    def _architecture(self) -> Architecture:
        config = self._config
        stated = config.values.get("architectures")
        if stated is None:
            kind = config.values.get("model_type")
            for architecture in ARCHITECTURES.values():
                if architecture.model_type == kind:
                    return architecture
            known = " or ".join(a.model_type for a in ARCHITECTURES.values())
            raise config.fail("model_type", known)
        if isinstance(stated, list) and len(stated) == 1 and isinstance(stated[0], str):
            found = ARCHITECTURES.get(stated[0])
            if found is not None:
                return found
        raise config.fail("architectures", f"one of {', '.join(ARCHITECTURES)}")

    def _refuse_features(self, architecture: Architecture) -> None:
        config = self._config
        if config.text("hidden_act", "silu") != "silu":
            raise config.fail("hidden_act", "'silu'")
        quantized = config.section("quantization_config")
        if quantized is not None:
            method = quantized.values.get("quant_method")
            raise ConversionError(
                f"{config.where}: quantization_config: expected weights that are not quantized, "
                f"found quant_method {method!r}"
            )
        if config.number("partial_rotary_factor", 1.0) != 1.0:
            raise config.fail("partial_rotary_factor", "1.0")
        # Here, unlike elsewhere, null is a value: it switches the window off.
        if architecture.sliding_window and config.values.get("sliding_window", "") is not None:
            context = config.integer("max_position_embeddings")
            if config.integer("sliding_window", architecture.sliding_window) < context:
                raise config.fail(
                    "sliding_window",
                    f"null or at least the context of {context} tokens "
                    f"(absent means {architecture.sliding_window})",
                )

    def _read_rope(self) -> None:
        """Reads the rotary embedding, in the old spelling or the new."""
        config = self._config
        rope = config.section("rope_parameters") or config.section("rope_scaling")
        self._rope_base = config.number("rope_theta", 10000.0)
        self._rope_linear = 0.0
        self._rope_factors: Floats | None = None
        if rope is None:
            return
        self._rope_base = rope.number("rope_theta", self._rope_base)
        if rope.number("partial_rotary_factor", 1.0) != 1.0:
            raise rope.fail("partial_rotary_factor", "1.0")
        nested = next((k for k, v in rope.values.items() if isinstance(v, dict)), None)
        if nested is not None:
            raise rope.fail(nested, "one setting for all layers")
        key = "rope_type" if rope.values.get("rope_type") is not None else "type"
        kind = rope.text(key, "default")
        if kind == "linear":
            self._rope_linear = rope.number("factor")
        elif kind == "llama3":
            self._rope_factors = self._llama3_factors(rope)
        elif kind != "default":
            raise rope.fail(key, "'default', 'linear' or 'llama3'")

    def _llama3_factors(self, rope: Config) -> Floats:
        """What each rotation frequency is divided by under Llama 3's long-context scaling.

        Wavelengths (tokens per turn) above one bound are stretched by `factor`, those below
        another are kept, and between the two the frequency is interpolated.
        """
        factor, low, high = (
            rope.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor")
        )
        trained = rope.integer("original_max_position_embeddings")
        if low >= high:
            raise rope.fail("low_freq_factor", f"less than high_freq_factor {high:g}")
        width = self.shape.head_width
        wavelength = 2 * np.pi * self._rope_base ** (np.arange(0, width, 2) / width)
        kept = (trained / wavelength - low) / (high - low)
        between = 1 / ((1 - kept) / factor + kept)
        factors = np.where(
            wavelength < trained / high,
            1.0,
            np.where(wavelength > trained / low, factor, between),
        )
        return factors.astype(np.float32)
