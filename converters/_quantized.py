"""Which of a checkpoint's tensors stand for quantized matrices, whoever quantized them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from converters import (
    _from_awq,
    _from_bitsandbytes,
    _from_compressed_tensors,
    _from_fp8,
    _from_gptq,
)
from converters._config import Config
from converters._encode import BF16, F16, F32, TensorType
from converters._json import read_object
from converters._packed import FLOATS, Packed, Reader, Store
from converters._source import TensorEntry
from pyengine._errors import ConversionError

# Where config.json says it, and the files of checkpoints older than that.
_KEYS = ("quantization_config", "compression_config")
_FILES = MappingProxyType({"quantize_config.json": "gptq", "quant_config.json": "awq"})
# Experts of gpt-oss, which the plan of tensors knows.
_PLANNED = "mxfp4"
_METHODS = ("awq", "bitsandbytes", "compressed-tensors", "fbgemm_fp8", "fp8", "gptq")
_ADVICE = MappingProxyType(
    {
        "torchao": "; its tensors can be read by torchao alone: load the model with transformers, "
        "dequantize it and save it again",
    }
)
# Scales of inputs, outputs and caches, which the engine measures as it runs.
_RUN_TIME = (
    *(".input_scale", ".input_zero_point", ".input_global_scale", ".activation_scale"),
    *(".input_scale_ub", ".output_scale", ".output_zero_point"),
    *(".k_scale", ".v_scale", ".q_scale", ".k_zero_point", ".v_zero_point"),
)
_DTYPES = MappingProxyType({"float32": F32, "float16": F16, "bfloat16": BF16})


@dataclass(frozen=True)
class Quantized:
    """A quantized checkpoint.

    Attributes:
        method: What config.json calls it.
        entries: Its tensors, a matrix in place of what it consists of.
        matrices: Those matrices.
        files: Files that may have been read.
    """

    method: str
    entries: Mapping[str, TensorEntry]
    matrices: Mapping[str, Packed]
    files: tuple[Path, ...] = ()


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as it would be of the same model without quantization.

    What cannot be read as one stays, for others to refuse or to know.
    """
    if _method(_section(Config(config, ""))) not in _METHODS:
        return dict(config)
    plain = {key: value for key, value in config.items() if key not in _KEYS}
    if isinstance(plain.get("text_config"), dict):
        plain["text_config"] = {k: v for k, v in plain["text_config"].items() if k not in _KEYS}
    return plain


def is_quantized(folder: Path) -> bool:
    """Whether a checkpoint says that its weights are of a kind that is read here."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    return _method(_stated(folder, read_object(path))) in _METHODS


def find_quantized(
    folder: Path,
    config: Mapping[str, Any],
    entries: Mapping[str, TensorEntry],
    reader: Reader,
) -> Quantized | None:
    """Looks for quantized matrices.

    Args:
        folder: The checkpoint.
        config: Its config.json.
        entries: What is stored.
        reader: Reads it.

    Returns:
        What there is, or None for a checkpoint that says nothing of it.

    Raises:
        ConversionError: Of an unknown kind, or broken.
    """
    stated = _stated(folder, config)
    method = _method(stated)
    if stated is None or method == _PLANNED:
        return None
    if method not in _METHODS:
        raise ConversionError(
            f"{stated.where}: quant_method: expected weights that are not quantized, or one of "
            f"{', '.join(_METHODS)}, found {method!r}{_ADVICE.get(str(method), '')}"
        )
    store = Store(entries, reader, stated.where)
    rounded = _own_type(config)
    if method == "gptq":
        found: Mapping[str, tuple[Packed, tuple[str, ...]]] = _from_gptq.find(store, stated)
    elif method == "awq":
        found = _from_awq.find(store, stated)
    elif method == "bitsandbytes":
        found = _from_bitsandbytes.find(store, stated)
    elif method == "compressed-tensors":
        found = _from_compressed_tensors.find(store, stated, rounded)
    else:
        found = _from_fp8.find(store, stated, rounded)
    return Quantized(
        method,
        _joined(store, found),
        {name: packed for name, (packed, _) in found.items()},
        tuple(folder / name for name in _FILES),
    )


def _stated(folder: Path, config: Mapping[str, Any]) -> Config | None:
    """What is said of the quantization, and where."""
    found = _section(Config(config, str(folder / "config.json")))
    if found is not None:
        return found
    for name, method in _FILES.items():
        path = folder / name
        if path.is_file():
            return Config({"quant_method": method, **read_object(path)}, str(path))
    return None


def _section(config: Config) -> Config | None:
    nested = isinstance(config.values.get("text_config"), dict)
    inner = config.section("text_config") if nested else None
    for where in (config, inner):
        for key in _KEYS:
            if where is not None and where.section(key) is not None:
                return where.section(key)
    return None


def _method(stated: Config | None) -> object:
    if stated is None:
        return None
    method = stated.values.get("quant_method")
    if method is None and ("config_groups" in stated.values or "format" in stated.values):
        return "compressed-tensors"
    if method is None and (stated.values.get("load_in_8bit") or stated.values.get("load_in_4bit")):
        return "bitsandbytes"
    return method


def _own_type(config: Mapping[str, Any]) -> TensorType:
    """What the model computes in, and what its own library makes of 8-bit floats."""
    inner = config.get("text_config")
    for values in (config, inner if isinstance(inner, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            if values.get(key) in _DTYPES:
                return _DTYPES[values[key]]
    return BF16


def _joined(
    store: Store, found: Mapping[str, tuple[Packed, tuple[str, ...]]]
) -> dict[str, TensorEntry]:
    """The tensors, in the order in which they are stored."""
    at: dict[str, str] = {}
    for name, (_, parts) in found.items():
        if name in store.entries and name not in parts:
            raise ConversionError(
                f"tensor {name!r}: expected it quantized or plain, found both ({parts[0]!r})"
            )
        at.update(dict.fromkeys(parts, name))
    joined: dict[str, TensorEntry] = {}
    for name, entry in store.entries.items():
        if name in at:
            joined[at[name]] = found[at[name]][0].entry
        elif name.endswith(_RUN_TIME):
            continue
        elif name.endswith(".bias") and name.removesuffix("bias") + "weight" in found:
            joined[name] = _bias(store, entry)
        else:
            joined[name] = entry
    return joined


def _bias(store: Store, entry: TensorEntry) -> TensorEntry:
    """Marks a bias that adds nothing: some quantizers give one to every matrix."""
    if entry.dtype not in FLOATS or len(entry.shape) != 1:
        return entry
    return replace(entry, idle=not store.rows(entry.name, 0, entry.shape[0]).any())
