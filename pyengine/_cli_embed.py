"""`pyengine embed`: texts in, vectors out, as lines, JSON or a NumPy file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from pyengine._engine import Engine
from pyengine._errors import ArgumentError, ModelFileError

# What takes longer than this shows its progress.
_QUIET_SECONDS = 1.0


def read_texts(prompts: Sequence[str], file: Path | None) -> list[str]:
    """The texts of -p; else the lines of a file or of standard input.

    Raises:
        ArgumentError: Both or neither are given.
        ModelFileError: The file cannot be read, or is not UTF-8.
    """
    if prompts and file is not None:
        raise ArgumentError("texts: expected one of -p and --file, found both")
    if prompts:
        return list(prompts)
    if file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise ArgumentError("texts: expected -p, --file or a pipe on standard input, found none")
    name = "standard input" if file is None else str(file)
    try:
        data = sys.stdin.buffer.read() if file is None else file.read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise ModelFileError(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelFileError(
            f"{name}: expected UTF-8 text, found byte 0x{data[error.start]:02x} at {error.start}"
        ) from None
    lines = text.removesuffix("\n").split("\n") if text else []
    return [line.removesuffix("\r") for line in lines]


def run_embed(
    engine: Engine,
    texts: Sequence[str],
    *,
    pooling: Any,
    normalize: bool,
    as_json: bool,
    npy: Path | None,
    quiet: bool,
) -> None:
    """Embeds the texts and writes their vectors, a text a line where nothing else is asked."""
    if npy is not None and pooling == "none":
        raise ArgumentError("--npy: expected a vector for each text, found --pooling none")
    progress = _Progress(enabled=sys.stderr.isatty() and not quiet)
    started = time.monotonic()
    try:
        found = engine.embed(texts, pooling=pooling, normalize=normalize, progress=progress)
    finally:
        progress.clear()
    seconds = time.monotonic() - started
    if npy is not None:
        if not isinstance(found, np.ndarray):
            raise ArgumentError("--npy: expected a vector for each text, found pooling none")
        _write_npy(npy, found)
    elif as_json:
        vectors = [part.tolist() for part in found]
        click.echo(json.dumps({"model": engine.file.path, "embeddings": vectors}))
    else:
        for part in found:
            for row in np.atleast_2d(part):
                click.echo(" ".join(f"{x:.9g}" for x in row))
    if not quiet and sys.stderr.isatty():
        click.echo(f"[{len(texts)} texts in {seconds:.2f} s]", err=True)


def _write_npy(path: Path, found: Any) -> None:
    """Writes a file that appears only when it is complete."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            np.save(file, found)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ModelFileError(f"{path}: {error.strerror}") from error


class _Progress:
    """One line on stderr while many texts are computed."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._started = time.monotonic()
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        seconds = time.monotonic() - self._started
        if not self._enabled or seconds < _QUIET_SECONDS:
            return
        left = seconds / done * (total - done)
        line = f"{done}/{total} texts, {done / seconds:.1f} a second, {left:.0f} s left"
        sys.stderr.write(f"\r{line:<60}")
        sys.stderr.flush()
        self._shown = True

    def clear(self) -> None:
        """Takes the line away."""
        if self._shown:
            sys.stderr.write(f"\r{'':<60}\r")
            sys.stderr.flush()
            self._shown = False
