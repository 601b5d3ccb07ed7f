"""From a checked config.json to metadata and a plan of tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from converters._config import Config
from converters._delta_rows import AS_STORED, NO_DELTA, ORDERS, DeltaShape, Order
from converters._encoders import ENCODERS
from converters._families import FAMILIES, LEFT_OUT_PREFIXES, TEXT_PREFIXES, WRAPPERS
from converters._family import ALWAYS, Family, Rule
from converters._gguf_writer import Field
from converters._latent import is_predictor, latent_fields, latent_sizes
from converters._layers import read_layers
from converters._rope import Rope
from converters._shape import Shape
from converters._source import Floats, TensorEntry
from pyengine._errors import ConversionError

# Buffers that old checkpoints store and that follow from the config.
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"
_OUTPUT_HEAD = "lm_head.weight"
_EMBEDDING = Rule("model.embed_tokens", "token_embd", ("vocab", "width"))


@dataclass(frozen=True)
class Mapped:
    """One tensor to write and where it comes from.

    Attributes:
        target: GGUF's name.
        shape: Slowest dimension first.
        sources: The checkpoint's names: one, or one of each expert, or none where `data` holds
            the values.
        head_rows: Rows of one head if the rows are re-ordered, else 0.
        rule: How values become rows.
        packed: The source is MXFP4: blocks and, beside them, scales.
        front: Rows of each head that are passed over in front of those that are taken.
        behind: And behind.
        order: Which stored rows and columns follow each other.
        data: Computed values.
    """

    target: str
    shape: tuple[int, ...]
    sources: tuple[str, ...] = ()
    head_rows: int = 0
    rule: Rule | None = None
    packed: bool = False
    order: Order = AS_STORED
    data: Floats | None = None
    front: int = 0
    behind: int = 0


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


def _find_family(config: Config) -> tuple[Family, Config]:
    """The family that a config names, and the config of its text model."""
    stated = config.values.get("architectures")
    inner = config.section("text_config")
    if stated is None:
        kind = config.values.get("model_type")
        for family in FAMILIES.values():
            if family.model_type == kind:
                return family, config
        known = ", ".join(sorted({f.model_type for f in FAMILIES.values()}))
        raise config.fail("model_type", f"one of {known}")
    name = stated[0] if isinstance(stated, list) and len(stated) == 1 else None
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name], config
    # A model without its head, which embeds texts.
    whole = name.removesuffix("Model") + "ForCausalLM" if isinstance(name, str) else ""
    if whole in FAMILIES:
        return FAMILIES[whole], config
    if isinstance(name, str) and name in WRAPPERS and inner is not None:
        kind = inner.values.get("model_type")
        for wrapped in WRAPPERS[name]:
            if FAMILIES[wrapped].model_type == kind:
                # Only the outer config says whether the head is tied.
                outer = {k: v for k, v in config.values.items() if k == "tie_word_embeddings"}
                return FAMILIES[wrapped], Config({**outer, **inner.values}, inner.where)
        raise inner.fail("model_type", " or ".join(FAMILIES[w].model_type for w in WRAPPERS[name]))
    raise config.fail("architectures", f"one of {', '.join([*FAMILIES, *WRAPPERS, *ENCODERS])}")


class ModelMapping:
    """A checked config and what follows from it."""

    def __init__(self, values: Mapping[str, object], where: str = "config.json") -> None:
        """Reads and checks config.json.

        Args:
            values: The parsed file.
            where: What error messages call it.

        Raises:
            ConversionError: A value is missing or out of range, or a feature is unsupported.
        """
        self.family, stated = _find_family(Config(values, where))
        if self.family.dense is not None and not stated.values.get("num_local_experts", 1):
            self.family = self.family.dense
        self._config = config = Config({**self.family.defaults, **stated.values}, stated.where)
        self._refuse_features()
        if self.family.adapted is not None:
            adapted = {**config.values, **self.family.adapted(config)}
            self._config = config = Config(adapted, config.where)
        width, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
        latent = latent_sizes(config) if self.family.latent else {}
        stated_head = config.values.get("head_dim") if not latent else None
        if not latent and stated_head is None and width % heads:
            raise ConversionError(
                f"{config.where}: hidden_size: expected a multiple of {heads} heads, found {width}"
            )
        self._explicit_head_width = stated_head is not None
        self.shape = Shape(
            layers=config.integer("num_hidden_layers"),
            width=width,
            ffn_width=self._ffn_width(),
            heads=heads,
            kv_heads=1 if latent else config.integer("num_key_value_heads", heads),
            head_width=latent.get("rotated_width")
            or config.integer("head_dim", width // heads or None),
            vocab=config.integer("vocab_size"),
            **self._expert_sizes(),
            **self._input_sizes(),
            **self._state_sizes(),
            **latent,
            delta=DeltaShape.read(config) if self.family.delta else NO_DELTA,
        )
        if self.shape.head_width % 2:
            raise ConversionError(
                f"{config.where}: head_dim: expected an even number, found {self.shape.head_width}"
            )
        if heads % self.shape.kv_heads:
            raise ConversionError(
                f"{config.where}: num_key_value_heads: expected a divisor of {heads} heads, "
                f"found {self.shape.kv_heads}"
            )
        self.context = config.integer("max_position_embeddings")
        self._epsilon = config.number("rms_norm_eps", 1e-6)
        self.tied = config.flag("tie_word_embeddings", False)
        self._rotated = self._read_rotated()
        self._recurrent = self._read_recurrent()
        if self.family.attention_only and not any(self._recurrent):
            # Readers of that architecture know nothing of recurrent layers.
            extras = tuple(x for x in self.family.extras if not x.target.startswith("ssm."))
            self.family = replace(
                self.family, architecture=self.family.attention_only, extras=extras
            )
        self._window, self._windowed = self._read_windows()
        self._shapes = [self.shape] * self.shape.layers
        local_width = self._read_layers() if self.family.layered else 0
        self._rope = Rope(config, self.family, self.shape.head_width, local_width)

    def _ffn_width(self) -> int:
        """Inner width of a dense layer; 0 where experts have one of their own and it is absent."""
        only_experts = self.family.expert_width not in ("", "intermediate_size")
        absent = self._config.values.get("intermediate_size") is None
        return 0 if only_experts and absent else self._config.integer("intermediate_size")

    def _state_sizes(self) -> dict[str, int]:
        if not self.family.recurrent or self.family.delta:
            return {}
        sizes = {"conv": self._config.integer("conv_width")}
        if self._config.values.get("ssm_heads") is not None:
            keys = ("ssm_inner", "ssm_state", "ssm_heads", "ssm_groups")
            sizes |= {key: self._config.integer(key) for key in keys}
        return sizes

    def _expert_sizes(self) -> dict[str, int]:
        config, key = self._config, self.family.expert_width
        if not key or (self.family.experts_if and not config.flag(self.family.experts_if, False)):
            return {}
        names = ("num_local_experts", "num_experts", "n_routed_experts")
        count = next((n for n in names if config.values.get(n) is not None), names[0])
        used = self.family.experts_used
        self._n_used = config.integer(used)
        experts = config.integer(count)
        if self._n_used > experts:
            raise config.fail(used, f"at most the {experts} experts")
        keys = ("shared_intermediate_size", "shared_expert_intermediate_size")
        shared = next((k for k in keys if config.values.get(k)), None)
        width = config.integer(shared) if shared else 0
        if self.family.latent and config.values.get("n_shared_experts"):
            width = config.integer("n_shared_experts") * config.integer(key)
        return {
            "experts": experts,
            "expert_width": config.integer(key),
            "shared_width": width,
        }

    def _input_sizes(self) -> dict[str, int]:
        config, key = self._config, "hidden_size_per_layer_input"
        if not self.family.model or not config.values.get(key):
            return {}
        if config.integer("vocab_size_per_layer_input") != config.integer("vocab_size"):
            raise config.fail("vocab_size_per_layer_input", "vocab_size")
        return {"input_width": config.integer(key)}

    def _read_layers(self) -> int:
        """Gives each layer its own shape, and the model the last one's; the width of heads in
        windows."""
        layers = read_layers(self._config, self._windowed)
        self._shapes = [replace(self.shape, **vars(layer)) for layer in layers]
        self.shape = replace(self.shape, head_width=layers[-1].head_width)
        self._explicit_head_width = True
        return self._config.integer("head_dim")

    # ---- metadata

    @property
    def by_merges(self) -> bool:
        """Whether readers expect BPE with byte_fallback as merges, not as scores."""
        return self.family.by_merges

    @property
    def architecture(self) -> str:
        """GGUF's general.architecture."""
        return self.family.architecture

    def fields(self) -> list[Field]:
        """The metadata that describes the network."""
        name = self.family.architecture
        return [Field(f"{name}.{f.key}", f.kind, f.value) for f in self._fields()]

    def _fields(self) -> Iterator[Field]:
        shape = self.shape
        yield Field("block_count", "u32", shape.layers)
        yield Field("context_length", "u32", self.context)
        yield Field("embedding_length", "u32", shape.width)
        if shape.ffn_width:
            yield self._each("feed_forward_length", [s.ffn_width for s in self._shapes])
        yield Field("attention.head_count", "u32", shape.heads)
        # Linear attention is told by a key of its own.
        absent = [recurrent and not self.family.delta for recurrent in self._recurrent]
        kv_heads = [0 if gone else s.kv_heads for gone, s in zip(absent, self._shapes, strict=True)]
        yield self._each("attention.head_count_kv", kv_heads)
        yield Field("rope.freq_base", "f32", self._rope.base)
        yield Field("attention.layer_norm_rms_epsilon", "f32", self._epsilon)
        if self._explicit_head_width:
            yield Field("attention.key_length", "u32", shape.head_width)
            yield Field("attention.value_length", "u32", shape.head_width)
        if self._rope.local_dims:
            yield Field("attention.key_length_swa", "u32", self._rope.local_dims)
            yield Field("attention.value_length_swa", "u32", self._rope.local_dims)
        yield Field("vocab_size", "u32", shape.vocab)
        if shape.experts:
            yield Field("expert_count", "u32", shape.experts)
            yield Field("expert_used_count", "u32", self._n_used)
        if self.family.latent:
            yield from latent_fields(self._config, shape)
        yield from self.family.constants
        yield from self._rope.fields()
        yield from self._extra_fields()
        yield from self._window_fields()
        yield from self._rotation_fields()
        yield from self._scale_fields()
        if self.family.delta:
            yield from shape.delta.fields()
            yield Field("attention.recurrent_layers", "bool", self._recurrent)
            period = self._config.integer("full_attention_interval", 4)
            if self._recurrent == [(i + 1) % period != 0 for i in range(shape.layers)]:
                yield Field("full_attention_interval", "u32", period)

    def _each(self, key: str, values: list[int]) -> Field:
        """A number of every layer: one for all where they are alike."""
        return Field(key, "u32", values[0] if len(set(values)) == 1 else values)

    def _extra_fields(self) -> Iterator[Field]:
        for extra in self.family.extras:
            value = self._config.values.get(extra.source)
            if extra.kind == "bool":
                flag = self._config.flag(extra.source, True)
                if extra.required or not flag:
                    yield Field(extra.target, "bool", flag)
            elif not value:
                if extra.required:
                    yield Field(extra.target, extra.kind, 0)
            elif extra.kind == "u32":
                yield Field(extra.target, "u32", self._config.integer(extra.source))
            else:
                yield Field(extra.target, "f32", self._config.number(extra.source))

    def _window_fields(self) -> Iterator[Field]:
        window, layers = self._window, self._windowed
        key = "attention.sliding_window"
        if window and key not in [extra.target for extra in self.family.extras]:
            yield Field(key, "u32", window)
        period = self.family.period
        implied = [period == 0 or (i + 1) % period != 0 for i in range(self.shape.layers)]
        if window and (layers != implied or self.family.layered):
            yield Field("attention.sliding_window_pattern", "bool", layers)

    def _read_windows(self) -> tuple[int, list[bool]]:
        """The window, 0 for none, and which layers have it."""
        config, kind = self._config, self.family.windows
        n = self.shape.layers
        if kind == "none" or config.values.get("sliding_window") is None:
            return 0, [False] * n
        if kind in ("used", "late", "unrotated") and not config.flag("use_sliding_window", False):
            return 0, [False] * n
        window = config.integer("sliding_window")
        if kind in ("all", "used"):
            # A window that no text outgrows is none.
            return (window if window < self.context else 0), [True] * n
        stated = config.values.get("layer_types")
        if stated is not None:
            types = self._layer_types(stated)
            # transformers, too, takes the last layer's window away.
            return window, [*types[:-1], False] if self.family.layered else types
        if kind == "late":
            first = config.values.get("max_window_layers")
            if isinstance(first, bool) or not isinstance(first, int) or first < 0:
                raise config.fail("max_window_layers", "a number of layers")
            return window, [i >= first for i in range(n)]
        if kind == "unrotated":
            return window, [not rotated for rotated in self._rotated]
        period = self.family.period
        if "sliding_window_pattern" in self.family.defaults:
            period = config.integer("sliding_window_pattern")
        windowed = [(i + 1) % period != 0 for i in range(n)]
        return window, [*windowed[:-1], False] if self.family.layered else windowed

    def _layer_types(self, stated: object) -> list[bool]:
        known = {"sliding_attention": True, "full_attention": False}
        if (
            not isinstance(stated, list)
            or len(stated) != self.shape.layers
            or not all(kind in known for kind in stated)
        ):
            raise self._config.fail(
                "layer_types", f"{self.shape.layers} times sliding_attention or full_attention"
            )
        return [known[kind] for kind in stated]

    def _read_recurrent(self) -> list[bool]:
        """Which layers have a state instead of keys and values."""
        kinds, n = self.family.recurrent_types, self.shape.layers
        stated = self._config.values.get("layer_types")
        if not kinds:
            return [False] * n
        if stated is None:
            period = self._config.integer("full_attention_interval", 4) if self.family.delta else 1
            stated = [kinds[0] if (i + 1) % period else "full_attention" for i in range(n)]
        known = {"full_attention": False, "attention": False} | dict.fromkeys(kinds, True)
        right = isinstance(stated, list) and len(stated) == n
        if not right or not all(isinstance(x, str) and x in known for x in stated):
            raise self._config.fail(
                "layer_types", f"{n} times {' or '.join(kinds)} or full_attention"
            )
        found = [known[x] for x in stated]
        if all(found):
            raise self._config.fail("layer_types", "a layer of full_attention")
        return found

    def _read_rotated(self) -> list[bool]:
        """Which layers are rotated."""
        n = self.shape.layers
        if not self.family.rotated_period:
            return [True] * n
        stated = self._config.values.get("no_rope_layers")
        if stated is not None:
            if not isinstance(stated, list) or [x for x in stated if x not in (0, 1)]:
                raise self._config.fail("no_rope_layers", "a list of 0 and 1")
            if len(stated) != n:
                raise self._config.fail("no_rope_layers", f"{n} numbers")
            return [bool(x) for x in stated]
        period = self._config.integer("no_rope_layer_interval")
        return [(i + 1) % period != 0 for i in range(n)]

    def _rotation_fields(self) -> Iterator[Field]:
        period = self.family.rotated_period
        implied = [period == 0 or (i + 1) % period != 0 for i in range(self.shape.layers)]
        if self._rotated != implied:
            yield Field("attention.rope_pattern", "bool", self._rotated)

    def _scale_fields(self) -> Iterator[Field]:
        if self._config.values.get("query_pre_attn_scalar") is None:
            return
        scalar = self._config.number("query_pre_attn_scalar")
        implied = self.shape.head_width
        if self.shape.layers == self.family.scaled_by_width:
            implied = self.shape.width // self.shape.heads
        if scalar != implied:
            yield Field("attention.scale", "f32", 1 / math.sqrt(scalar))

    # ---- tensors

    def tensors(self, stored: Mapping[str, TensorEntry]) -> list[Mapped]:
        """The tensors to write, in file order, each checked against what is stored.

        Args:
            stored: The checkpoint's tensors.

        Returns:
            The plan.

        Raises:
            ConversionError: A tensor is missing, is of another shape or is not known.
        """
        bare = "embed_tokens.weight" in stored
        names = {
            plain_name(f"model.{name}" if bare else name): name
            for name in stored
            if not name.startswith(LEFT_OUT_PREFIXES)
            and not name.endswith(_IGNORED_SUFFIX)
            and not (self.family.latent and is_predictor(name, self.shape.layers))
        }
        # A model without its head gets the embedding for one, as readers do.
        self.tied = self.tied or (bare and _OUTPUT_HEAD not in stored)
        plan: list[Mapped] = []
        used: set[str] = set()
        for rule, layer in self._walk():
            if self._lacks(rule, layer):
                # Checkpoints may have weights of keys and values that no layer uses.
                if rule.needs.startswith("owns_") and not self._shapes[layer].owns_kv:
                    used.add(rule.source.format(layer) + rule.suffix)
                continue
            plan.append(self._mapped(rule, layer, names, stored, used))
        self._refuse_unknown({n for n in set(names) - used if not stored[names[n]].idle})
        for name, values in self._rope.tensors.items():
            plan.insert(1, Mapped(name, values.shape, data=values))
        return plan

    def _lacks(self, rule: Rule, layer: int) -> bool:
        """Whether a layer does without the tensor."""
        return bool(rule.needs) and not self._shapes[layer].size(rule.needs)

    def matrices(self) -> Iterator[Mapped]:
        """What `tensors` plans, for a checkpoint that is not at hand."""
        for rule, layer in self._walk():
            if self._lacks(rule, layer):
                continue
            dims = tuple(map(self._shapes[layer].size, rule.shape))
            head_rows = self.shape.head_width if rule.heads and self.family.paired else 0
            source = rule.source.format(layer, 0) + rule.suffix
            yield Mapped(
                rule.target.format(layer) + rule.target_suffix, dims, (source,), head_rows, rule
            )

    def _mapped(
        self,
        rule: Rule,
        layer: int,
        names: Mapping[str, str],
        stored: Mapping[str, TensorEntry],
        used: set[str],
    ) -> Mapped:
        if rule.or_stacked and rule.or_stacked[0].format(layer) in names:
            source, cut = rule.or_stacked
            rule = replace(rule, source=source, suffix="", experts="stacked", cut=cut)
        dims = tuple(map(self._shapes[layer].size, rule.shape))
        n_sources = self.shape.experts if rule.experts == "each" else 1
        sources = [rule.source.format(layer, i) + rule.suffix for i in range(n_sources)]
        packed = rule.experts == "stacked" and f"{sources[0]}_blocks" in names
        wanted = {source: self._stored_shape(rule, dims) for source in sources}
        if packed:
            experts, rows, columns = self._stored_shape(replace(rule, transposed=False), dims)
            wanted = {
                f"{sources[0]}_blocks": (experts, rows, columns // 32, 16),
                f"{sources[0]}_scales": (experts, rows, columns // 32),
            }
        for source, shape in wanted.items():
            check_tensor(stored.get(names.get(source, "")), source, shape, self._config.where)
        used.update(wanted)
        return Mapped(
            rule.target.format(layer) + rule.target_suffix,
            dims,
            tuple(names[source] for source in wanted),
            self.shape.head_width if rule.heads and self.family.paired else 0,
            rule,
            packed,
            ORDERS[rule.order](self.shape.delta) if rule.order else AS_STORED,
            front=getattr(self.shape, rule.part[0]) if rule.part else 0,
            behind=getattr(self.shape, rule.part[1]) if rule.part else 0,
        )

    def _stored_shape(self, rule: Rule, dims: tuple[int, ...]) -> tuple[int, ...]:
        """What a checkpoint's tensor has, slowest dimension first."""
        if rule.stored:
            return tuple(self.shape.size(name) for name in rule.stored)
        outer, inner = (dims[:1], dims[1:]) if rule.experts else ((), dims)
        if rule.part:
            front, behind = (getattr(self.shape, name) for name in rule.part)
            rows, columns = dims[:0:-1] if rule.transposed else dims[1:]
            return ((front + rows + behind) * dims[0], columns)
        rows, *rest = inner
        whole = (rows * rule.cut[1], *rest)
        if rule.transposed:
            whole = whole[::-1]
        return whole if rule.experts == "each" else (*outer, *whole)

    def _walk(self) -> Iterator[tuple[Rule, int]]:
        yield _EMBEDDING, 0
        for rule in self.family.model:
            if self.shape.input_width:
                yield rule, 0
        for layer in range(self.shape.layers):
            other = "experts" if layer < self.shape.dense_layers else "dense"
            for rule in self.family.recurrent if self._recurrent[layer] else self.family.layer:
                if rule.only == other or not all(map(self._shapes[layer].size, rule.shape)):
                    continue
                yield rule, layer
                if rule.bias == ALWAYS or (rule.bias and self._config.flag(rule.bias, False)):
                    yield (
                        replace(
                            rule,
                            shape=rule.shape[:1],
                            suffix=".bias",
                            target_suffix=".bias",
                            stored=(),
                        ),
                        layer,
                    )
        yield Rule(*self.family.last_norm, ("width",), shift=self.family.norm_shift), 0
        if not self.tied:
            yield Rule("lm_head", "output", ("vocab", "width")), 0
        elif self.family.writes_head:
            yield replace(_EMBEDDING, target="output"), 0

    def _refuse_unknown(self, names: set[str]) -> None:
        # transformers, too, ties the weights and drops a head that is stored all the same.
        unknown = sorted(names - ({_OUTPUT_HEAD} if self.tied else set()))
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise ConversionError(
                f"tensor {unknown[0]!r}: expected only tensors of this architecture, "
                f"found this one{more}"
            )

    # ---- checks

    def _refuse_features(self) -> None:
        config = self._config
        key, value = self.family.activation
        if config.text(key, value) != value:
            raise config.fail(key, repr(value))
        refuse_quantized(config, self.family.quantized)
        for key, allowed in self.family.fixed.items():
            if config.values.get(key) not in allowed:
                raise config.fail(key, " or ".join(map(repr, allowed)))


def check_tensor(entry: TensorEntry | None, source: str, dims: tuple[int, ...], where: str) -> None:
    """Refuses a tensor that is missing or of another shape."""
    if entry is None:
        raise ConversionError(
            f"tensor {source!r}: expected shape {list(dims)}, found no such tensor"
        )
    if entry.shape != dims:
        raise ConversionError(
            f"tensor {source!r}: expected shape {list(dims)} as {where} says, "
            f"found {list(entry.shape)}"
        )


def refuse_quantized(config: Config, methods: tuple[str, ...]) -> None:
    """Refuses weights that are quantized otherwise than by these methods."""
    quantized = config.section("quantization_config")
    method = quantized.values.get("quant_method") if quantized is not None else None
    if quantized is not None and method not in methods:
        raise ConversionError(
            f"{config.where}: quantization_config: expected weights that are not quantized, "
            f"found quant_method {method!r}"
        )


def plain_name(name: str) -> str:
    """The name that a tensor of a wrapped text model has in a text model's own checkpoint."""
    for prefix in TEXT_PREFIXES:
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            return rest if rest.startswith(("model.", "lm_head.")) else "model." + rest
    return name
