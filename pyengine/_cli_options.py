"""What several commands share: options of the engine, files, progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import click

from pyengine._engine import Engine

# What a shell reports for a program that Ctrl-C ended: 128 + SIGINT.
INTERRUPTED = 130

# Work that takes longer than this shows its progress.
_QUIET_SECONDS = 1.0

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


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that appears under its name only when it is complete."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that appears only when it is complete."""
    with whole_file(path) as file:
        file.write(text.encode())


class StatusLine:
    """One line on a terminal's stderr that is written over, and taken away in the end."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled and sys.stderr is not None and sys.stderr.isatty()
        self._shown = False

    def show(self, text: str) -> None:
        """Writes the line, over the last one."""
        if self._enabled:
            sys.stderr.write(f"\r{text:<78}")
            sys.stderr.flush()
            self._shown = True

    def clear(self) -> None:
        """Takes the line away."""
        if self._shown:
            sys.stderr.write(f"\r{'':<78}\r")
            sys.stderr.flush()
            self._shown = False


class SlowProgress(StatusLine):
    """Progress of one piece of work, shown when it takes longer than a second.

    Args:
        template: The line, of `done`, `total`, `rate` (done a second) and `left` (seconds).
        enabled: Whether to show it, where there is a terminal.
    """

    def __init__(self, template: str, *, enabled: bool) -> None:
        super().__init__(enabled=enabled)
        self._template = template
        self._started = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Says that so much of it is done."""
        seconds = time.monotonic() - self._started
        if seconds >= _QUIET_SECONDS:
            rate, left = done / seconds, seconds / done * (total - done)
            self.show(self._template.format(done=done, total=total, rate=rate, left=left))
