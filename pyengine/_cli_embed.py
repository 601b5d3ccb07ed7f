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

from pyengine._cli_options import SlowProgress, decode, read_text, whole_file
from pyengine._engine import Engine
from pyengine._errors import ArgumentError

_LINE = "{done}/{total} texts, {rate:.1f} a second, {left:.0f} s left"


def read_texts(prompts: Sequence[str], file: Path | None) -> list[str]:
    """The texts of -p; else the lines of a file or of standard input.

    Raises:
        ArgumentError: Both or neither are given.
        click.ClickException: The file cannot be read, or is not UTF-8.
    """
    if prompts and file is not None:
        raise ArgumentError("texts: expected one of -p and --file, found both")
    if prompts:
        return list(prompts)
    if file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise ArgumentError("texts: expected -p, --file or a pipe on standard input, found none")
    text = read_text(file) if file else decode(sys.stdin.buffer.read(), "standard input")
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
    if npy is not None and (pooling or engine.info.pooling) == "none":
        raise ArgumentError("--npy: expected a vector for each text, found pooling none")
    progress = SlowProgress(_LINE, enabled=not quiet)
    started = time.monotonic()
    try:
        found = engine.embed(texts, pooling=pooling, normalize=normalize, progress=progress)
    finally:
        progress.clear()
    seconds = time.monotonic() - started
    if npy is not None:
        with whole_file(npy) as file:
            np.save(file, found)
    elif as_json:
        vectors = [part.tolist() for part in found]
        click.echo(json.dumps({"model": engine.file.path, "embeddings": vectors}))
    else:
        for part in found:
            for row in np.atleast_2d(part):
                click.echo(" ".join(f"{x:.9g}" for x in row))
    if not quiet and sys.stderr.isatty():
        click.echo(f"[{len(texts)} texts in {seconds:.2f} s]", err=True)
