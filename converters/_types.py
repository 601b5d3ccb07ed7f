"""Which type each tensor of a file gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from converters import _encode
from converters._checkpoint import Checkpoint
from converters._encode import TensorType
from converters._gguf_writer import OutTensor
from converters._mapping import Mapped
from converters._packed import BY_DTYPE
from converters._summary import Fallback
from pyengine._errors import ArgumentError, ConversionError

# Where an error of few bits costs most: every token's vectors, and every logit.
_KEPT_AT_8_BITS = (
    "token_embd.weight",
    "output.weight",
    "per_layer_token_embd.weight",
    "per_layer_model_proj.weight",
)
# Read a row a token, and small.
_FLOAT_EMBEDDINGS = ("position_embd.weight", "token_types.weight")
# How names of what is read as floats end, where dimensions do not tell: biases, routers, and what
# recurrent layers compute with by themselves.
_FLOAT_ENDINGS = (
    ".bias",
    ".ffn_gate_inp.weight",
    ".ffn_gate_inp_shexp.weight",
    ".shortconv.conv.weight",
    ".ssm_a",
    ".ssm_conv1d.weight",
    ".ssm_d",
    ".ssm_norm.weight",
)
# Types for rows that are whole blocks of 32, but not of 256: those that llama.cpp takes.
_SMALLER = {
    "Q2_K": _encode.Q4_0,
    "Q3_K": _encode.Q4_0,
    "Q4_K": _encode.Q5_0,
    "Q5_K": _encode.Q5_1,
    "Q6_K": _encode.Q8_0,
    "IQ4_XS": _encode.IQ4_NL,
}

# Types of blocks that hold quantized weights exactly, the smallest first.
_EXACT = (_encode.Q4_0, _encode.Q4_1, _encode.Q5_0, _encode.Q8_0)
# And of those that hold the integers, but not every scale. Not Q4_1, which rounds twice.
_NEAR = (_encode.Q4_0, _encode.Q5_0, _encode.Q8_0)
# What a caller calls the type of each matrix in the checkpoint.
AUTO = "auto"
NAMES = (*_encode.BY_NAME, AUTO)
_Fit = tuple[Mapping[TensorType, bool], TensorType]


@dataclass(frozen=True)
class Planned:
    """A tensor's source and what becomes of it."""

    mapped: Mapped
    out: OutTensor


class Choice:
    """The types that the caller wants."""

    def __init__(self, dtype: str, pure: bool, tensor_types: Mapping[str, str]) -> None:
        """Looks the names up, whatever their case.

        Args:
            dtype: The type of matrices, or "auto".
            pure: Whether it is that of the embedding and the output head, too.
            tensor_types: Types of some matrices by a pattern of their names; the first that fits.

        Raises:
            ArgumentError: A name is no type's.
        """
        auto = isinstance(dtype, str) and dtype.lower() == AUTO
        self._kind = None if auto else _find("dtype", dtype)
        self._pure = pure
        self._patterns = {
            pattern: _find(f"tensor type of {pattern!r}", name)
            for pattern, name in tensor_types.items()
        }

    def file_type(self, planned: list[Planned]) -> int:
        """general.file_type: the type that was asked for, or that most weights have."""
        if self._kind is not None:
            return self._kind.file_type
        weights: dict[TensorType, int] = {}
        for out in (item.out for item in planned if len(item.out.shape) > 1):
            weights[out.kind] = weights.get(out.kind, 0) + out.weights
        return max(weights, key=lambda kind: weights[kind], default=_encode.F32).file_type

    def plan(
        self, mapped: list[Mapped], checkpoint: Checkpoint
    ) -> tuple[list[Planned], list[Fallback]]:
        """Chooses a type for every tensor.

        Args:
            mapped: The tensors.
            checkpoint: Where they come from; the scales of quantized ones are read and checked.

        Raises:
            ConversionError: A pattern fits no matrix, or a scale is no number.
        """
        fits = {
            name: checkpoint.fits(name)
            for item in mapped
            for name in item.sources
            if name in checkpoint.matrices
        }
        planned: list[Planned] = []
        fallbacks: list[Fallback] = []
        unused = dict.fromkeys(self._patterns)
        for item in mapped:
            wanted = self._wanted(item, unused, checkpoint, fits)
            written = with_whole_blocks(wanted, item.shape[-1])
            if written is not wanted:
                reason = f"rows of {item.shape[-1]} weights are not whole blocks of {wanted.block}"
                fallbacks.append(Fallback(item.target, wanted.name, written.name, reason))
            planned.append(Planned(item, OutTensor(item.target, item.shape, written)))
        for pattern in unused:
            raise ConversionError(
                f"tensor type of {pattern!r}: expected a pattern that fits a matrix, found none "
                f"such as {_example(mapped)!r}"
            )
        return planned, fallbacks

    def _wanted(
        self,
        item: Mapped,
        unused: dict[str, None],
        checkpoint: Checkpoint,
        fits: Mapping[str, _Fit],
    ) -> TensorType:
        if _is_float(item):
            return _encode.F32
        if item.packed:
            return _encode.MXFP4
        fitting = [pattern for pattern in self._patterns if _fits(pattern, item.target)]
        for pattern in fitting:
            unused.pop(pattern, None)
        if fitting:
            return self._patterns[fitting[0]]
        if self._kind is None:
            return _kept(item, checkpoint, fits)
        if self._kind.quantized and not self._pure and item.target in _KEPT_AT_8_BITS:
            return _encode.Q8_0
        return self._kind


def _kept(item: Mapped, checkpoint: Checkpoint, fits: Mapping[str, _Fit]) -> TensorType:
    """The smallest type that holds what is stored, or of those that are near."""
    found = [fits[name] for name in item.sources if name in fits]
    if len(found) < len(item.sources) or not found:
        stored = {checkpoint.entries[name].dtype for name in item.sources}
        return BY_DTYPE.get(stored.pop(), _encode.F32) if len(stored) == 1 else _encode.F32
    if _moves_columns(item):
        found = [({}, rounded) for _, rounded in found]
    for kind in _EXACT:
        if all(kinds.get(kind, False) for kinds, _ in found):
            return kind
    for kind in _NEAR:
        if all(kind in kinds for kinds, _ in found):
            return kind
    return max((rounded for _, rounded in found), key=lambda kind: kind.quantized)


def _moves_columns(item: Mapped) -> bool:
    """Whether the blocks of stored rows are not those of written rows."""
    runs = item.order.columns or ()
    rule = item.rule
    turned = rule is not None and (
        rule.transposed or rule.shift != 0 or bool(rule.stored and not item.order.rows)
    )
    return turned or any(begin % 32 or end % 32 for begin, end in runs)


def _find(what: str, name: str) -> TensorType:
    kind = _encode.BY_NAME.get(name.lower()) if isinstance(name, str) else None
    if kind is None:
        names = ", ".join(NAMES if what == "dtype" else _encode.BY_NAME)
        raise ArgumentError(f"{what}: expected one of {names}, found {name!r}")
    return kind


def _fits(pattern: str, target: str) -> bool:
    return fnmatchcase(target, pattern) or fnmatchcase(target.removesuffix(".weight"), pattern)


def _example(mapped: list[Mapped]) -> str:
    return next((item.target for item in reversed(mapped) if not _is_float(item)), "")


def kept_at_8_bits(name: str) -> bool:
    """Whether a tensor is one where few bits cost most."""
    return name in _KEPT_AT_8_BITS


def with_whole_blocks(kind: TensorType, columns: int) -> TensorType:
    """The type, or one of smaller blocks where rows are not whole blocks of it."""
    for candidate in (kind, _SMALLER.get(kind.name, kind)):
        if columns % candidate.block == 0:
            return candidate
    return _encode.F16


def is_float(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of a file is read as floats, or is so small that it had better be."""
    return len(shape) == 1 or name.endswith(_FLOAT_ENDINGS) or name in _FLOAT_EMBEDDINGS


def _is_float(item: Mapped) -> bool:
    return is_float(item.target, item.shape) or (item.rule is not None and item.rule.exact)
