"""What several commands share: options of the engine, reading and writing of texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pyengine._engine import Engine

# What a shell reports for a program that Ctrl-C ended: 128 + SIGINT.
INTERRUPTED = 130

Command = Callable[..., Any]


def stacked(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


kernel_options = stacked(
    click.option(
        "--kv-type", type=click.Choice(["auto", "f32", "f16", "q8_0", "q4_0"]), default="auto"
    ),
    click.option(
        "--resident",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        help="Keep weights interleaved in memory.  [default: where it helps and fits]",
    ),
    click.option(
        "--isa",
        type=click.Choice(["scalar", "avx2", "avx_vnni", "avx512", "neon", "dotprod", "i8mm"]),
        help="Force an instruction set.",
    ),
)
engine_options = stacked(
    click.option(
        "-c",
        "--ctx-size",
        "n_ctx",
        type=int,
        help="Context in tokens; default: as the model was trained for.",
    ),
    click.option("-t", "--threads", "n_threads", type=int, help="Default: usable cores."),
    click.option(
        "-b", "--batch-size", "n_batch", type=int, help="Prompt tokens per pass.  [default: 256]"
    ),
    kernel_options,
)
_ENGINE_NAMES = ("n_ctx", "n_threads", "n_batch", "kv_type", "resident", "isa")


def open_engine(path: Path | None, options: dict[str, Any]) -> Engine:
    """Opens a model as options say, and takes out of them what they say of that."""
    return Engine(path, **{name: options.pop(name) for name in _ENGINE_NAMES})


def read_text(path: Path) -> str:
    """The whole text of a file."""
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from error


def decode(data: bytes, name: str) -> str:
    """The text that bytes from a file or a pipe of that name stand for."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.ClickException(
            f"{name}: expected UTF-8 text, found byte 0x{data[error.start]:02x} at {error.start}"
        ) from error


def write_whole(path: Path, text: str) -> None:
    """Writes a file that appears only when it is complete."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise click.ClickException(f"{path}: {error.strerror}") from error
