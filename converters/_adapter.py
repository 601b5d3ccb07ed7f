"""From a PEFT adapter's folder to the GGUF file that llama.cpp loads beside a model."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters import _encode
from converters._checkpoint import has_weights
from converters._encode import TensorType
from converters._gguf_writer import Field, OutTensor, build_header, write_gguf
from converters._json import read_object
from converters._lora import CONFIG_NAME, Adapter, Delta
from converters._mapping import Mapped, ModelMapping, pair_rows
from converters._quantized import plain_config
from converters._source import Array, Floats
from converters._summary import Summary
from pyengine._errors import ArgumentError, ConversionError, ModelFileError

TYPES = ("f32", "f16", "bf16")


def is_adapter(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (Path(folder) / CONFIG_NAME).is_file() and not has_weights(Path(folder))


def convert_adapter(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: str = "f32",
    name: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    overwrite: bool = False,
) -> Summary:
    """Converts a LoRA adapter, as PEFT saves it, into the GGUF file of an adapter.

    llama.cpp loads it beside the base's file; to run it here, merge it: ``convert(..., lora=)``.
    Scales that are not lora_alpha / rank (rsLoRA, patterns) go into B.

    Args:
        source: A folder with adapter_config.json and adapter_model.safetensors or .bin.
        out: The file to write.
        base: The folder of the base's config.json, whose weights are not needed; by default what
            adapter_config.json names, if that is a folder here, else the adapter's own, where
            some trainers leave a copy.
        dtype: "f32", "f16" or "bf16".
        name: What general.name says; by default the folder's name.
        progress: Called with bytes done, bytes in all and the tensor's name.
        overwrite: Replace a file that is there.

    Returns:
        What was written.

    Raises:
        ArgumentError: `dtype` is none of those.
        ConversionError: The adapter is broken, of an unsupported kind or not the base's.
        ModelFileError: A file cannot be read or written, or the disk is too full.
    """
    if not isinstance(dtype, str) or dtype.lower() not in TYPES:
        raise ArgumentError(f"dtype: expected one of {', '.join(TYPES)}, found {dtype!r}")
    target = Path(out)
    try:
        with Adapter(Path(source)) as adapter:
            if target.resolve() in adapter.paths:
                raise ConversionError(
                    f"{target}: expected another file than the adapter's own, found the same"
                )
            mapping = _read_base(adapter, None if base is None else Path(base))
            halves = list(_plan(adapter, mapping, _encode.BY_NAME[dtype.lower()]))
            outs = [half.out for half in halves]
            fields = [
                Field("general.architecture", "str", mapping.family.architecture),
                Field("general.type", "str", "adapter"),
                Field("general.name", "str", adapter.name if name is None else name),
                Field("adapter.type", "str", "lora"),
                Field("adapter.lora.alpha", "f32", adapter.alpha),
                Field("general.file_type", "u32", _encode.BY_NAME[dtype.lower()].file_type),
            ]
            by_name = {half.out.name: half for half in halves}
            size = write_gguf(
                target,
                build_header(fields, outs),
                outs,
                lambda tensor: _data(adapter, by_name[tensor.name]),
                overwrite=overwrite,
                progress=progress,
            )
    except OSError as error:
        if isinstance(error, ModelFileError):
            raise
        culprit = error.filename if error.filename is not None else source
        raise ModelFileError(f"{culprit}: {error.strerror or error}") from error
    kinds = {t.kind.name: sum(o.bytes for o in outs if o.kind is t.kind) for t in outs}
    types = {kind: (sum(o.kind.name == kind for o in outs), kinds[kind]) for kind in kinds}
    return Summary(target, size, sum(o.weights for o in outs), types)


@dataclass(frozen=True)
class _Half:
    """A or B of one matrix of the base's file."""

    delta: Delta
    mapped: Mapped
    out: OutTensor
    is_b: bool


def _read_base(adapter: Adapter, base: Path | None) -> ModelMapping:
    folder = adapter.base if base is None else base
    if folder is None:
        raise ConversionError(
            f"{adapter.folder / CONFIG_NAME}: base_model_name_or_path: expected a folder with the "
            "base's config.json, found none; --base names it"
        )
    path = folder / "config.json"
    if not path.is_file():
        raise ConversionError(f"{folder}: expected a folder with config.json, found none")
    return ModelMapping(plain_config(read_object(path)), str(path))


def _plan(adapter: Adapter, mapping: ModelMapping, kind: TensorType) -> Iterator[_Half]:
    if adapter.replaced:
        name = min(adapter.replaced)
        raise ConversionError(
            f"{adapter.file.path}: tensor {name!r}: expected pairs of LoRA alone, found a whole "
            "tensor (bias or modules_to_save), which a GGUF adapter cannot hold; merge it (--lora)"
        )
    left = dict(adapter.deltas)
    for mapped in mapping.matrices():
        delta = left.pop(mapped.sources[0], adapter.deltas.get(mapped.sources[0]))
        if delta is None:
            continue
        rule = mapped.rule
        assert rule is not None
        if rule.experts or len(mapped.shape) != 2 or (delta.embedding and mapping.tied):
            raise ConversionError(
                f"{adapter.file.path}: tensor {delta.a!r}: expected an adapter of other matrices, "
                "found one of experts or of an embedding that is the output head, too; merge it "
                "(--lora)"
            )
        rows, columns = mapped.shape
        adapter.check(delta, rows * rule.cut[1], columns)
        # Readers look an embedding's rows up in A, so both halves lie the other way round.
        shapes = ((rows, delta.rank), (columns, delta.rank))
        if not delta.embedding:
            shapes = ((delta.rank, columns), (rows, delta.rank))
        for is_b, shape in enumerate(shapes):
            name = f"{mapped.target}.lora_{'ab'[is_b]}"
            yield _Half(delta, mapped, OutTensor(name, shape, kind), bool(is_b))
    if left:
        raise ConversionError(
            f"{adapter.file.path}: tensor {min(left)!r}: expected a matrix of the base "
            f"({mapping.family.architecture}), found none of that name"
        )


def _data(adapter: Adapter, half: _Half) -> Iterator[Array]:
    delta, mapped = half.delta, half.mapped
    name = delta.b if half.is_b else delta.a
    values = adapter.file.read_rows(name, 0, adapter.file.entries[name].shape[0])
    if half.is_b:
        values = _of_target(values, delta, mapped)
        # What a reader multiplies by is alpha / rank.
        factor = delta.scale / (adapter.alpha / delta.rank)
        if not math.isclose(factor, 1.0, rel_tol=1e-12):
            values = values * np.float32(factor)
    elif delta.embedding:
        values = np.ascontiguousarray(values.T)
    yield _encode.encode(values, half.out.kind, f"{name} in {adapter.file.path}")


def _of_target(b: Floats, delta: Delta, mapped: Mapped) -> Floats:
    """B's rows as the base's own rows lie in its file."""
    rule = mapped.rule
    if rule is None or delta.embedding:
        return b
    part, parts = rule.cut
    rows = mapped.shape[0]
    b = b[part::parts] if rule.alternates else b[part * rows : (part + 1) * rows]
    return pair_rows(b, mapped.head_rows) if mapped.head_rows else b
