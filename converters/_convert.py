"""From a checkpoint folder to a GGUF file: the plan first, then the data, a piece at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters import _encode, _hub
from converters._checkpoint import Checkpoint
from converters._encode import TensorType
from converters._family import Rule
from converters._gguf_writer import Field, OutTensor, build_header, write_gguf
from converters._mapping import Mapped, ModelMapping, pair_rows
from converters._source import Array
from converters._summary import Fallback, Summary
from converters._tokenizer_fields import tokenizer_fields
from pyengine._errors import ArgumentError, ConversionError, ModelFileError

# float32 bytes of one piece. A piece lives in up to four forms at once (as read, as float32,
# re-ordered, packed), so peak memory is a few times this whatever the size of the model.
_PIECE_BYTES = 8 << 20
# Where an error of 4 bits costs most: every token's vector, and every logit.
_KEPT_AT_8_BITS = (
    "token_embd.weight",
    "output.weight",
    "per_layer_token_embd.weight",
    "per_layer_model_proj.weight",
)
_QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class _Planned:
    mapped: Mapped
    out: OutTensor


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: str = "q4_0",
    pure: bool = False,
    name: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    overwrite: bool = False,
    self_test: bool = True,
) -> Summary:
    """Converts a Hugging Face checkpoint folder into one GGUF file.

    Norms, biases and rotation factors stay F32. With a 4-bit type the token embedding and the
    output head are kept at Q8_0. The file appears under its name only when it is complete.

    Args:
        source: A folder with config.json, weights and a tokenizer; or ``hf:org/name``, perhaps
            with ``@revision``, which is fetched from the Hugging Face hub.
        out: The file to write.
        dtype: "f32", "f16", "bf16", "q8_0", "q4_0" or "q4_1".
        pure: Use the 4-bit type for the embedding and the output head, too.
        name: What general.name says; by default the checkpoint's own name or its folder's.
        progress: Called with bytes done, bytes in all and the tensor's name.
        overwrite: Replace a file that is there.
        self_test: Store texts with the ids of the original tokenizer, which loading checks.

    Returns:
        What was written.

    Raises:
        ArgumentError: `dtype` is none of those.
        DownloadError: The checkpoint cannot be fetched.
        ConversionError: The checkpoint is broken, incomplete or of an unsupported kind.
        ModelFileError: A file cannot be read or written, or the disk is too full.
    """
    kind = _encode.BY_NAME.get(dtype.lower())
    if kind is None:
        raise ArgumentError(f"dtype: expected one of {', '.join(_encode.BY_NAME)}, found {dtype!r}")
    if isinstance(source, str) and source.startswith(_hub.PREFIX):
        name = _hub.model_name(source) if name is None else name
        source = _hub.fetch(source)
    folder, target = Path(source), Path(out)
    try:
        with Checkpoint(folder) as checkpoint:
            if target.resolve() in checkpoint.files:
                raise ConversionError(
                    f"{target}: expected another file than the checkpoint's own, found the same"
                )
            return _convert(checkpoint, target, kind, pure, name, progress, overwrite, self_test)
    except OSError as error:
        if isinstance(error, ModelFileError):
            raise
        culprit = error.filename if error.filename is not None else folder
        raise ModelFileError(f"{culprit}: {error.strerror or error}") from error


def _convert(
    checkpoint: Checkpoint,
    target: Path,
    kind: TensorType,
    pure: bool,
    name: str | None,
    progress: Callable[[int, int, str], None] | None,
    overwrite: bool,
    self_test: bool,
) -> Summary:
    mapping = ModelMapping(checkpoint.config, str(checkpoint.folder / "config.json"))
    planned, fallbacks = _choose_types(mapping.tensors(checkpoint.entries), kind, pure)
    tokenizer, notes = tokenizer_fields(
        checkpoint.folder,
        checkpoint.config,
        mapping.shape.vocab,
        by_merges=mapping.family.by_merges,
        self_test=self_test,
    )
    fields = [
        Field("general.architecture", "str", mapping.family.architecture),
        Field("general.type", "str", "model"),
        Field("general.name", "str", checkpoint.name if name is None else name),
        *mapping.fields(),
        Field("general.file_type", "u32", kind.file_type),
    ]
    if kind.quantized:
        fields.append(Field("general.quantization_version", "u32", _QUANTIZATION_VERSION))
    outs = [item.out for item in planned]
    by_name = {item.out.name: item for item in planned}
    size = write_gguf(
        target,
        build_header(fields + tokenizer, outs),
        outs,
        lambda tensor: _pieces(checkpoint, by_name[tensor.name]),
        overwrite=overwrite,
        progress=progress,
    )
    types: dict[str, tuple[int, int]] = {}
    for tensor in outs:
        tensors, count = types.get(tensor.kind.name, (0, 0))
        types[tensor.kind.name] = (tensors + 1, count + tensor.bytes)
    weights = sum(tensor.weights for tensor in outs)
    return Summary(target, size, weights, types, tuple(fallbacks), tuple(notes))


def _choose_types(
    mapped: list[Mapped], kind: TensorType, pure: bool
) -> tuple[list[_Planned], list[Fallback]]:
    planned: list[_Planned] = []
    fallbacks: list[Fallback] = []
    for item in mapped:
        wanted = kind
        if _is_float(item):
            wanted = _encode.F32
        elif item.packed:
            wanted = _encode.MXFP4
        elif kind.quantized and not pure and item.target in _KEPT_AT_8_BITS:
            wanted = _encode.Q8_0
        written = wanted
        if item.shape[-1] % wanted.block:
            written = _encode.F16
            reason = f"rows of {item.shape[-1]} weights are not whole blocks of {wanted.block}"
            fallbacks.append(Fallback(item.target, wanted.name, written.name, reason))
        planned.append(_Planned(item, OutTensor(item.target, item.shape, written)))
    return planned, fallbacks


def _is_float(item: Mapped) -> bool:
    """Whether a tensor is read as floats, or is so small that it had better be."""
    return (
        len(item.shape) == 1
        or item.target.endswith(".bias")
        or item.target.endswith(".ffn_gate_inp.weight")
    )


def _pieces(checkpoint: Checkpoint, planned: _Planned) -> Iterator[Array]:
    """The data of one tensor, a run of rows at a time."""
    mapped, kind = planned.mapped, planned.out.kind
    if mapped.data is not None:
        yield _encode.encode(mapped.data, kind, mapped.target)
    elif mapped.rule is not None and mapped.rule.experts == "stacked":
        yield from _expert_pieces(checkpoint, mapped, mapped.rule, kind)
    elif mapped.rule is not None:
        for source in mapped.sources:
            yield from _row_pieces(checkpoint, mapped, mapped.rule, kind, source)


def _row_pieces(
    checkpoint: Checkpoint, mapped: Mapped, rule: Rule, kind: TensorType, source: str
) -> Iterator[Array]:
    rows = mapped.shape[1] if rule.experts else mapped.shape[0]
    step = max(1, _PIECE_BYTES // (4 * math.prod(mapped.shape[2 if rule.experts else 1 :])))
    if mapped.head_rows:
        # Rows change places within their head, so a piece is whole heads.
        step = max(step - step % mapped.head_rows, mapped.head_rows)
    where = f"{source} in {checkpoint.file_of(source)}"
    begin = rule.cut[0] * rows
    for first in range(0, rows, step):
        piece = checkpoint.read_rows(source, begin + first, begin + min(first + step, rows))
        if mapped.head_rows:
            piece = pair_rows(piece, mapped.head_rows)
        if rule.shift:
            piece += np.float32(rule.shift)
        yield _encode.encode(piece, kind, where)


def _expert_pieces(
    checkpoint: Checkpoint, mapped: Mapped, rule: Rule, kind: TensorType
) -> Iterator[Array]:
    """One expert after the other, of which no more than one is in memory."""
    first = mapped.sources[0]
    where = f"{first} in {checkpoint.file_of(first)}"
    for expert in range(mapped.shape[0]):
        if mapped.packed:
            blocks, scales = (
                _cut(checkpoint.read_bytes(name, expert, expert + 1)[0], rule)
                for name in mapped.sources
            )
            yield _encode.pack_mxfp4(blocks, scales)
            continue
        rows = checkpoint.read_rows(first, expert, expert + 1)[0]
        rows = _cut(rows.T if rule.transposed else rows, rule)
        yield _encode.encode(np.ascontiguousarray(rows), kind, where)


def _cut(rows: Array, rule: Rule) -> Array:
    """The part of the rows that the rule takes."""
    part, parts = rule.cut
    if rule.alternates:
        return rows[part::parts]
    size = len(rows) // parts
    return rows[part * size : (part + 1) * size]
