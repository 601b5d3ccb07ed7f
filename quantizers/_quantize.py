"""A model's file with its matrices in fewer bits."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from converters._encode import BY_NAME, Q8_0, TensorType
from converters._gguf_writer import Field, choose_names
from converters._types import is_float, kept_at_8_bits, with_whole_blocks
from pyengine import ArgumentError, Engine, ModelFile, ModelFileError
from pyengine import quantize as encode
from pyengine._perplexity import text_windows
from quantizers._algebra import Algebra, Rounded
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
        progress: Called with tensors done, tensors in all and the last one's name.

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
    choose_names(target, 0, overwrite)  # before any work
    if target.exists() and target.samefile(source):
        raise ModelFileError(f"{target}: expected another file than the source, found the same")
    if method == "gptq":
        with Engine(source, n_batch=_WINDOW, resident="off") as engine:
            windows = _windows(engine, calibration, tokens)
            job = _Job(engine.file, target, kind, method, pure, overwrite, progress)
            return job.run(engine, windows)
    with ModelFile(source) as file:
        return _Job(file, target, kind, method, pure, overwrite, progress).run()


class _Job:
    """One file that is made of another."""

    def __init__(
        self,
        file: ModelFile,
        target: Path,
        kind: TensorType,
        method: Method,
        pure: bool,
        overwrite: bool,
        progress: Callable[[int, int, str], None] | None,
    ) -> None:
        self.source = Weights(file)
        self.types = _types(file, kind, pure)
        self.errors: dict[str, float] = {}
        self._target, self._kind, self._method = target, kind, method
        self._overwrite, self._progress = overwrite, progress
        self._n_done = 0

    def run(
        self, engine: Engine | None = None, windows: npt.NDArray[np.uint32] | None = None
    ) -> Report:
        """Makes the file; with a calibration text by the engine's layers."""
        report = {"method": self._method, "type": self._kind.name}
        if windows is not None:
            report["calibration"] = hashlib.sha256(windows.tobytes()).hexdigest()
            report["tokens"] = str(windows.size)
        fields = (
            Field("general.file_type", "u32", self._kind.file_type),
            Field("general.quantization_version", "u32", 2),
            Field("pyengine.quantization", "str", json.dumps(report)),
        )
        names = {name: each.name for name, each in self.types.items()}
        with contextlib.closing(
            WorkingFile(self._target, self.source, self.types, fields, overwrite=self._overwrite)
        ) as working:
            self._working = working
            if engine is None or windows is None:
                for name in names:
                    self._encode(name)
            else:
                blocks = {name: each.name for name, each in self.types.items() if each.quantized}
                with Algebra() as algebra:
                    layerwise = Layerwise(self.source, algebra, blocks, windows, Settings())
                    layerwise.run(engine, working.path, set(names), self._put, self._encode)
            working.finish()
            shapes = [info.shape for info in self.source.file.tensors]
            n_weights = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes)
            n_tokens = windows.size if windows is not None else 0
            n_bits = working.n_bytes * 8
            return Report(working.n_bytes, n_bits / n_weights, names, self.errors, n_tokens)

    def _encode(self, name: str) -> None:
        """Quantizes a tensor by itself."""
        kind = self.types[name]
        how: Literal["plain", "search"] = "search"
        if self._method == "plain" or not kind.quantized:
            how = "plain"
        self._write(name, encode(self.source.floats(name), kind.name, method=how))

    def _put(self, name: str, rounded: Rounded) -> None:
        """Takes a tensor that was rounded with feedback."""
        self.errors[name] = (rounded.error / rounded.norm) ** 0.5 if rounded.norm > 0 else 0.0
        self._write(name, rounded.blocks)

    def _write(self, name: str, blocks: npt.NDArray[np.uint8]) -> None:
        self._working.write(name, blocks)
        self._n_done += 1
        if self._progress is not None:
            self._progress(self._n_done, len(self.types), name)


def _types(file: ModelFile, kind: TensorType, pure: bool) -> dict[str, TensorType]:
    types: dict[str, TensorType] = {}
    for info in file.tensors:
        if is_float(info.name, info.shape):
            continue
        wanted = Q8_0 if not pure and kept_at_8_bits(info.name) else kind
        types[info.name] = with_whole_blocks(wanted, info.shape[-1])
    return types


def _windows(
    engine: Engine, calibration: Sequence[str | os.PathLike[str]], tokens: int
) -> npt.NDArray[np.uint32]:
    """Windows of the calibration text, spread evenly over it."""
    if not calibration:
        raise ArgumentError("calibration: expected a text file or more, found none")
    texts = []
    for path in calibration:
        try:
            texts.append(Path(path).read_text("utf-8", errors="replace"))
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
    window = min(_WINDOW, engine.n_ctx)
    windows = text_windows(engine, "\n".join(texts), window, n_least=_MIN_WINDOWS)
    keep = min(len(windows), max(_MIN_WINDOWS, tokens // window))
    return np.ascontiguousarray(windows[np.linspace(0, len(windows) - 1, keep).astype(np.int64)])
