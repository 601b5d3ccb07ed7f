"""A model's file with its matrices in fewer bits."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from converters._encode import BY_NAME, TensorType
from converters._types import is_float, kept_at_8_bits, with_whole_blocks
from pyengine import ArgumentError, Engine, ModelFile, ModelFileError
from pyengine import quantize as encode
from quantizers._layerwise import Layerwise, Settings
from quantizers._weights import Weights
from quantizers._working_file import WorkingFile

Method = Literal["plain", "search", "gptq"]
_METHODS = ("plain", "search", "gptq")
_WINDOW = 512
_MIN_WINDOWS = 8
_DEFAULT_TOKENS = 65536


@dataclass(frozen=True)
class Report:
    """What was made.

    Attributes:
        n_bytes: Size of the file.
        bits_per_weight: Of all tensors together.
        types: The type of each quantized matrix, by name.
        errors: Of those rounded with feedback, by how much their outputs are off, as a share, root
            of squares over the calibration text.
        n_tokens: Calibration tokens used.
    """

    n_bytes: int
    bits_per_weight: float
    types: Mapping[str, str]
    errors: Mapping[str, float]
    n_tokens: int


def quantize(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: str = "q4_0",
    method: Method = "gptq",
    calibration: Sequence[str | os.PathLike[str]] = (),
    pure: bool = False,
    tokens: int = _DEFAULT_TOKENS,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Report:
    """Writes a GGUF file whose matrices have fewer bits.

    Vectors and routers stay as they are; the token embedding and the output head are kept at
    Q8_0 unless `pure`. Rows that a type's blocks do not divide get one of smaller blocks.

    Args:
        source: A GGUF file, best of F16, BF16 or F32.
        out: The file to write; it appears when it is complete.
        dtype: A type of blocks: "q4_0", "q4_1", "q8_0", "q4_k", ...
        method: "plain" as llama.cpp rounds without an importance matrix, "search" for the scales
            of least error, "gptq" for rounding with error feedback on a calibration text.
        calibration: Text files, for "gptq".
        pure: The same type for embedding and head.
        tokens: At most so many calibration tokens, in windows spread evenly over the text.
        overwrite: Replace a file that is there.
        progress: Called with layers done, layers in all and a tensor's name.

    Raises:
        ArgumentError: An unknown type or method, no calibration text or too little of it.
        ModelFileError: A file cannot be read or written, exists, or the disk is too full.
        NumericError: Weights that are NaN or infinite.
        UnsupportedModelError: The model cannot be run here, or its layers not one by one.
    """
    kind = BY_NAME.get(dtype.lower()) if isinstance(dtype, str) else None
    if kind is None or not kind.quantized:
        known = ", ".join(name for name, each in BY_NAME.items() if each.quantized)
        raise ArgumentError(f"dtype: expected one of {known}, found {dtype!r}")
    if method not in _METHODS:
        raise ArgumentError(f"method: expected one of {', '.join(_METHODS)}, found {method!r}")
    target = Path(out)
    if target.exists() and not overwrite:
        raise ModelFileError(f"{target}: expected no file, found one; --force replaces it")
    if target.exists() and target.samefile(source):
        raise ModelFileError(f"{target}: expected another file than the source, found the same")
    if not target.parent.is_dir():
        raise ModelFileError(f"{target}: expected the folder {target.parent}, found none")
    with ModelFile(source) as file:
        weights = Weights(file)
        types = _types(file, kind, pure)
        if method == "gptq":
            with Engine(source, n_ctx=_WINDOW, n_batch=_WINDOW, resident="off") as engine:
                windows = _windows(engine, calibration, tokens)
                return _run(weights, target, types, kind, method, progress, engine, windows)
        return _run(weights, target, types, kind, method, progress, None, None)


def _run(
    weights: Weights,
    target: Path,
    types: Mapping[str, TensorType],
    kind: TensorType,
    method: Method,
    progress: Callable[[int, int, str], None] | None,
    engine: Engine | None,
    windows: npt.NDArray[np.uint32] | None,
) -> Report:
    report = {"method": method, "type": kind.name}
    if windows is not None:
        report["calibration"] = hashlib.sha256(windows.tobytes()).hexdigest()
        report["tokens"] = str(windows.size)
    names = {name: each.name for name, each in types.items()}
    with WorkingFile(target, weights, types, kind.file_type, json.dumps(report)) as working:
        done: set[str] = set()
        errors: Mapping[str, float] = {}
        if engine is not None and windows is not None:
            job = Layerwise(weights, working, names, windows, Settings())
            tied = "output.weight" not in weights
            head = "token_embd.weight" if tied else "output.weight"
            if not tied:
                _encode_tensor(weights, working, "token_embd.weight", names, method)
            if head in names:
                job.head(engine, head)
            done = {head, "token_embd.weight"} | job.layers(engine, progress)
            errors = job.errors
        for i, name in enumerate(names):
            if name not in done:
                if progress is not None and engine is None:
                    progress(i, len(names), name)
                _encode_tensor(weights, working, name, names, method)
        working.finish()
        n_weights = sum(int(np.prod(t.shape, dtype=np.int64)) for t in weights.file.tensors)
        n_tokens = windows.size if windows is not None else 0
        return Report(working.n_bytes, working.n_bytes * 8 / n_weights, names, errors, n_tokens)


def _encode_tensor(
    weights: Weights, working: WorkingFile, name: str, types: Mapping[str, str], method: Method
) -> None:
    if name not in types:
        return
    how: Literal["plain", "search"] = "plain" if method == "plain" else "search"
    if types[name] in ("F16", "BF16", "F32"):
        how = "plain"
    working.write(name, encode(weights.floats(name), types[name], method=how))


def _types(file: ModelFile, kind: TensorType, pure: bool) -> dict[str, TensorType]:
    types: dict[str, TensorType] = {}
    for info in file.tensors:
        if is_float(info.name, info.shape):
            continue
        wanted = BY_NAME["q8_0"] if not pure and kept_at_8_bits(info.name) else kind
        types[info.name] = with_whole_blocks(wanted, info.shape[-1])
    return types


def _windows(
    engine: Engine, calibration: Sequence[str | os.PathLike[str]], tokens: int
) -> npt.NDArray[np.uint32]:
    if not calibration:
        raise ArgumentError("calibration: expected a text file or more, found none")
    texts = []
    for path in calibration:
        try:
            texts.append(Path(path).read_text("utf-8", errors="replace"))
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
    ids = np.array(engine.tokenize("\n".join(texts)), np.uint32)
    n = len(ids) // _WINDOW
    if n < _MIN_WINDOWS:
        raise ArgumentError(
            f"calibration: expected {_MIN_WINDOWS * _WINDOW} tokens or more, found {len(ids)}"
        )
    windows = ids[: n * _WINDOW].reshape(n, _WINDOW)
    keep = min(n, max(_MIN_WINDOWS, tokens // _WINDOW))
    return np.ascontiguousarray(windows[np.linspace(0, n - 1, keep).astype(np.int64)])
