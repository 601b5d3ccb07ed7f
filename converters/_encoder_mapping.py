"""From an encoder's checked config.json to metadata and a plan of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from converters._config import Config
from converters._encoders import ENCODERS, LEFT_OUT, PREFIXES, Encoder
from converters._family import Rule
from converters._gguf_writer import Field
from converters._mapping import Mapped, check_tensor, refuse_quantized
from converters._source import TensorEntry
from pyengine._errors import ConversionError

_JOINED = ".self_attn.qkv_proj.weight"


@dataclass(frozen=True)
class EncoderShape:
    """The sizes that the tensors follow."""

    layers: int
    width: int
    ffn_width: int
    heads: int
    context: int
    vocab: int
    types: int

    @property
    def three_widths(self) -> int:
        """Rows of queries, keys and values in one tensor."""
        return 3 * self.width


def is_encoder(values: Mapping[str, object]) -> bool:
    """Whether a config.json describes one."""
    stated = values.get("architectures")
    if stated is None:
        return values.get("model_type") in [e.model_type for e in ENCODERS.values()]
    return isinstance(stated, list) and len(stated) == 1 and stated[0] in list(ENCODERS)


class EncoderMapping:
    """A checked config and what follows from it; as `ModelMapping`."""

    def __init__(self, values: Mapping[str, object], where: str = "config.json") -> None:
        """Reads and checks config.json.

        Args:
            values: The parsed file, of which `is_encoder` is true.
            where: What error messages call it.

        Raises:
            ConversionError: A value is missing or out of range, or a feature is unsupported.
        """
        self.family = _find(values)
        self._config = config = Config({**self.family.defaults, **values}, where)
        refuse_quantized(config, ())
        for key, allowed in self.family.fixed.items():
            if config.values.get(key) not in allowed:
                expected = [repr(value) for value in allowed if value is not None]
                raise config.fail(key, " or ".join(expected) or "nothing")
        sizes = {name: config.integer(self._key(name)) for name in _size_names()}
        self.shape = EncoderShape(
            vocab=config.integer("vocab_size"), types=config.integer("type_vocab_size"), **sizes
        )
        if self.shape.width % self.shape.heads or self.shape.width // self.shape.heads % 2:
            raise config.fail(
                self._key("width"), f"an even number for each of {self.shape.heads} heads"
            )
        head_width = self.shape.width // self.shape.heads
        if config.values.get("head_dim") not in (None, head_width):
            raise config.fail("head_dim", str(head_width))

    def _key(self, name: str) -> str:
        """What a size is called in this file; the first name where it is absent."""
        names = self.family.keys[name]
        return next((key for key in names if self._config.values.get(key) is not None), names[0])

    @property
    def by_merges(self) -> bool:
        """As in `ModelMapping`; no encoder's tokenizer is such BPE."""
        return False

    @property
    def architecture(self) -> str:
        """GGUF's general.architecture."""
        return self.family.architecture

    # ---- metadata

    def fields(self) -> list[Field]:
        """The metadata that describes the network."""
        name, shape = self.family.architecture, self.shape
        fields = [
            Field(f"{name}.block_count", "u32", shape.layers),
            Field(f"{name}.context_length", "u32", shape.context),
            Field(f"{name}.embedding_length", "u32", shape.width),
            Field(f"{name}.feed_forward_length", "u32", shape.ffn_width),
            Field(f"{name}.attention.head_count", "u32", shape.heads),
            Field(
                f"{name}.attention.layer_norm_epsilon",
                "f32",
                self._config.number(self._key("epsilon")),
            ),
            Field(f"{name}.attention.causal", "bool", False),
            Field("tokenizer.ggml.token_type_count", "u32", shape.types),
        ]
        if self.family.rotates:
            fields.append(Field(f"{name}.rope.freq_base", "f32", self._rope_base()))
        return fields

    def _rope_base(self) -> float:
        config = self._config
        rope = config.section("rope_parameters")
        if rope is None:
            return config.number("rotary_emb_base", config.number("rope_theta", 1000.0))
        if rope.text("rope_type", "default") != "default":
            raise rope.fail("rope_type", "'default'")
        return rope.number("rope_theta", 1000.0)

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
        names = {self._plain_name(name): name for name in stored}
        names = {name: real for name, real in names.items() if not name.startswith(LEFT_OUT)}
        used: set[str] = set()
        plan = [self._mapped(rule, names, stored, used) for rule in self._walk()]
        unknown = sorted(names.keys() - used)
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise ConversionError(
                f"tensor {unknown[0]!r}: expected only tensors of this architecture, "
                f"found this one{more}"
            )
        return plan

    def _walk(self) -> Iterator[Rule]:
        layers = [rule for rule in self.family.rules if "{}" in rule.target]
        for rule in self.family.rules:
            if rule not in layers:
                yield from _with_bias(rule)
        for i in range(self.shape.layers):
            for rule in layers:
                at = replace(rule, source=rule.source.format(i), target=rule.target.format(i))
                yield from _with_bias(at)

    def _mapped(
        self,
        rule: Rule,
        names: Mapping[str, str],
        stored: Mapping[str, TensorEntry],
        used: set[str],
    ) -> Mapped:
        dims = tuple(getattr(self.shape, name) for name in rule.shape)
        sources = [rule.source + rule.suffix]
        if not rule.source:
            sources = self._parts(rule.target, names)
        rows, *columns = dims
        for source in sources:
            entry = stored.get(names.get(source, ""))
            check_tensor(entry, source, (rows // len(sources), *columns), self._config.where)
        used.update(sources)
        return Mapped(
            rule.target + rule.target_suffix,
            dims,
            tuple(names[source] for source in sources),
            rule=rule,
        )

    def _parts(self, target: str, names: Mapping[str, str]) -> list[str]:
        """What is stored of a tensor that may be stored in parts."""
        layer = target.split(".")[1]
        whole = f"layers.{layer}{_JOINED}"
        if whole in names:
            return [whole]
        parts = self.family.joined[target.replace(f".{layer}.", ".{}.")]
        return [f"{part.format(layer)}.weight" for part in parts]

    def _plain_name(self, name: str) -> str:
        """The name that transformers' own class gives a tensor today."""
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        for old, new in self.family.renames.items():
            name = name.replace(old, new)
        return name


def _with_bias(rule: Rule) -> Iterator[Rule]:
    yield rule
    if rule.bias:
        yield replace(rule, shape=rule.shape[:1], suffix=".bias", target_suffix=".bias")


def _size_names() -> tuple[str, ...]:
    return ("layers", "width", "ffn_width", "heads", "context")


def _find(values: Mapping[str, object]) -> Encoder:
    stated = values.get("architectures")
    if isinstance(stated, list):
        return ENCODERS[stated[0]]
    return next(e for e in ENCODERS.values() if e.model_type == values.get("model_type"))
