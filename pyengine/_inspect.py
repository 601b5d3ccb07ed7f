"""What a model file holds, for people and for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pyengine._file import ModelFile, TensorInfo

# Longer arrays (vocabularies) and tensor lists are cut unless all is asked for.
_SHOWN_ITEMS = 6
_SHOWN_TENSORS = 12
_SHOWN_TEXT = 100


def printable(text: str) -> str:
    """The text with what a terminal would obey, or UTF-8 cannot express, replaced."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def bytes_per_token(tensors: tuple[TensorInfo, ...]) -> int:
    """Weights read to decode one token: all but an embedding that is not the head too."""
    names = {tensor.name for tensor in tensors}
    return sum(
        tensor.n_bytes
        for tensor in tensors
        if tensor.name != "token_embd.weight" or "output.weight" not in names
    )


def summary(file: ModelFile) -> dict[str, Any]:
    """The facts that both forms show; sizes in bytes."""
    types: dict[str, dict[str, int]] = {}
    for tensor in file.tensors:
        row = types.setdefault(tensor.dtype, {"tensors": 0, "bytes": 0})
        row["tensors"] += 1
        row["bytes"] += tensor.n_bytes
    n_weights = sum(int(np.prod(tensor.shape, dtype=object)) for tensor in file.tensors)
    n_bytes = sum(tensor.n_bytes for tensor in file.tensors)
    reason = file.unsupported_reason()
    return {
        "path": file.path,
        "gguf_version": file.version,
        "parts": file.n_parts,
        "bytes": file.n_bytes,
        "architecture": file.metadata.get("general.architecture"),
        "supported": reason is None,
        "unsupported_reason": reason,
        "weights": n_weights,
        "bits_per_weight": round(8 * n_bytes / n_weights, 3) if n_weights else None,
        "bytes_per_token": bytes_per_token(file.tensors),
        "types": types,
    }


def inspect_json(file: ModelFile, *, show_all: bool) -> str:
    """One JSON object: the summary, metadata and tensors.

    NaN and infinities, which JSON lacks, are strings. Long arrays become
    ``{"length": n, "first": [...]}`` unless show_all.
    """
    document = summary(file)
    document["metadata"] = {
        key: _json_value(value, show_all) for key, value in file.metadata.items()
    }
    document["tensors"] = [
        {
            "name": tensor.name,
            "type": tensor.dtype,
            "shape": list(tensor.shape),
            "bytes": tensor.n_bytes,
            "offset": tensor.offset,
            "part": tensor.part,
        }
        for tensor in file.tensors
    ]
    return json.dumps(document, indent=2, allow_nan=False)


def _json_value(value: Any, show_all: bool) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        if not show_all and len(value) > _SHOWN_ITEMS:
            first = [_json_value(item, show_all) for item in value[:_SHOWN_ITEMS]]
            return {"length": len(value), "first": first}
        return [_json_value(item, show_all) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def inspect_text(file: ModelFile, *, show_all: bool) -> str:
    """The same for reading."""
    facts = summary(file)
    verdict = "yes" if facts["supported"] else f"no: {facts['unsupported_reason']}"
    lines = [
        f"{file.path}",
        f"  GGUF version {file.version}, {file.n_parts} part{'s' * (file.n_parts > 1)}, "
        f"{file.n_bytes:,} bytes",
        f"  architecture {facts['architecture']}; runs here: {verdict}",
        f"  {facts['weights']:,} weights, {facts['bits_per_weight']} bits each; "
        f"{facts['bytes_per_token']:,} bytes read per token",
        "",
        "types",
        *_type_lines(facts["types"]),
        "",
        "metadata",
        *(f"  {key} = {_shown(value, show_all)}" for key, value in file.metadata.items()),
        "",
        f"tensors ({len(file.tensors)})",
        *_tensor_lines(file.tensors, show_all),
    ]
    return "\n".join(map(printable, lines))


def _type_lines(types: Mapping[str, Mapping[str, int]]) -> list[str]:
    return [
        f"  {name:<8} {row['tensors']:>6} tensors {row['bytes']:>16,} bytes"
        for name, row in sorted(types.items(), key=lambda item: -item[1]["bytes"])
    ]


def _shown(value: Any, show_all: bool) -> str:
    if isinstance(value, str):
        text = repr(value)
        cut = not show_all and len(text) > _SHOWN_TEXT
        return f"{text[:_SHOWN_TEXT]}... ({len(value):,} characters)" if cut else text
    if isinstance(value, list | np.ndarray):
        items = [_shown(item, show_all) for item in (value if show_all else value[:_SHOWN_ITEMS])]
        rest = "" if len(items) == len(value) else f", ... ({len(value):,} items)"
        return f"[{', '.join(items)}{rest}]"
    if isinstance(value, np.generic):
        value = value.item()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tensor_lines(tensors: tuple[TensorInfo, ...], show_all: bool) -> list[str]:
    shown = tensors if show_all else tensors[:_SHOWN_TENSORS]
    lines = [
        f"  {tensor.name:<32} {tensor.dtype:<7} {'x'.join(map(str, tensor.shape)):>14} "
        f"{tensor.n_bytes:>14,} bytes"
        for tensor in shown
    ]
    if len(shown) < len(tensors):
        lines.append(f"  ... and {len(tensors) - len(shown)} more: --all shows them")
    return lines
