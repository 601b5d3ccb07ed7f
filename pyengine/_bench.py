"""Speed of one model on this machine: prefill, decode, several sessions, loading."""

from __future__ import annotations

import datetime
import os
import platform
import re
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pyengine
from pyengine._engine import Engine
from pyengine._errors import ArgumentError
from pyengine._session import Session, feed_together

# The bandwidth probe reads this much, far more than any cache holds; each thread its part.
_PROBE_BYTES = 1 << 29
_PROBE_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure; sizes in tokens.

    Attributes:
        threads: Thread counts, each an engine of its own.
        prefill: Prompt lengths.
        decode: Tokens decoded one by one.
        depth: Tokens that a session holds beforehand.
        columns: Sessions that decode together, at depth 0.
        repeat: Times that each figure is measured; the median counts.
        options: Further arguments of :class:`Engine`.
    """

    threads: Sequence[int]
    prefill: Sequence[int]
    decode: int
    depth: Sequence[int]
    columns: Sequence[int]
    repeat: int
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        work: ``"load"``, ``"prefill"``, ``"decode"`` or ``"columns"``.
        tokens_per_second: Of all sessions together; of load, 1 / seconds to a first token.
        seconds: The median; of load, from opening to the first token.
        spread: Slowest over fastest of the repeats, less 1.
        gigabytes_per_second: Weights and keys and values read, of work that reads them once
            per pass; else None.
        share_of_bandwidth: That over what the same threads read from memory at best.
    """

    work: str
    threads: int
    n_tokens: int
    depth: int
    columns: int
    tokens_per_second: float
    seconds: float
    spread: float
    gigabytes_per_second: float | None = None
    share_of_bandwidth: float | None = None


def numbers(text: str, name: str) -> list[int]:
    """``"1,2,8"`` or ``"1..4"`` as integers in order, none twice.

    Raises:
        ArgumentError: Something else, or a number below 0.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\.\.(\d{1,9}))?\s*", part)
        if match is None:
            raise ArgumentError(
                f"{name}: expected numbers such as 1,2,8 or a range such as 1..4, found {text!r}"
            )
        first = int(match[1])
        last = int(match[2] or first)
        if not first <= last < first + 1024:
            raise ArgumentError(f"{name}: expected a rising range of 1024 at most, found {part!r}")
        found += [n for n in range(first, last + 1) if n not in found]
    return found


def read_bandwidth(n_threads: int) -> float:
    """Bytes per second that n_threads read from memory together, the best of a few rounds.

    numpy's maximum of 64-bit integers reads memory as fast as anything here does and
    releases the interpreter lock.
    """
    parts = np.array_split(np.ones(_PROBE_BYTES // 8, np.int64), n_threads)
    best = 0.0
    for _ in range(_PROBE_ROUNDS):
        workers = [threading.Thread(target=part.max) for part in parts]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, _PROBE_BYTES / (time.perf_counter() - started))
    return best


def settle(engine: Engine) -> None:
    """Runs until every page of the file has been read and all weights that move have moved."""
    with engine.session() as session:
        session.feed([0] * 8)
        while (info := engine.info).resident_bytes < info.resident_bytes_goal:
            session.rewind(0)
            session.feed([0])


def describe_machine() -> dict[str, Any]:
    """What the figures hold for."""
    cpu = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
        match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
        cpu = match[1] if match else cpu
    except OSError:
        pass  # not Linux
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu, "architecture": platform.machine(), "usable_cores": cores}


def header(model: str | None, plan: Plan) -> dict[str, Any]:
    """Facts about the version, the machine and the model."""
    with Engine(model, n_threads=plan.threads[0], **plan.options) as engine:
        types = [tensor.dtype for tensor in engine.file.tensors if len(tensor.shape) > 1]
        return {
            "pyengine": pyengine.__version__,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": describe_machine(),
            "model": {
                "path": str(engine.file.path),
                "type": max(set(types), key=types.count),
                **asdict(engine.info),
            },
        }


class Bench:
    """Measures a plan; rows come as they are done, and ``skipped`` says what did not fit."""

    def __init__(self, model: str | None, plan: Plan, status: Callable[[str], None]) -> None:
        self._model = model
        self._plan = plan
        self._status = status
        self.skipped: list[str] = []
        self.bandwidth: dict[int, float] = {}

    def rows(self) -> Iterator[Row]:
        """Every figure of the plan."""
        for threads in self._plan.threads:
            self._status(f"{threads} threads: memory bandwidth")
            self.bandwidth[threads] = read_bandwidth(threads)
            yield self._load(threads)
            with Engine(self._model, n_threads=threads, **self._plan.options) as engine:
                rng = np.random.default_rng(7)
                need = max((*self._plan.prefill, self._plan.decode, 8))
                tokens = rng.integers(0, engine.n_vocab, max(self._plan.depth) + need)
                settle(engine)
                for depth in self._plan.depth:
                    yield from self._at_depth(engine, threads, depth, tokens)
                yield from self._columns(engine, threads, tokens)

    def _load(self, threads: int) -> Row:
        def first_token() -> None:
            with (
                Engine(self._model, n_threads=threads, **self._plan.options) as engine,
                engine.session() as session,
            ):
                session.feed([0])

        return self._row("load", threads, 1, 0, 1, first_token)

    def _at_depth(
        self, engine: Engine, threads: int, depth: int, tokens: np.ndarray[Any, Any]
    ) -> Iterator[Row]:
        if depth >= engine.n_ctx:
            self._skip(f"depth {depth}", engine)
            return
        with engine.session() as past:
            for start in range(0, depth, 256):
                self._status(f"{threads} threads: depth {start} of {depth}")
                past.feed(tokens[start : min(start + 256, depth)], logits="none")
            for n in self._plan.prefill:
                if depth + n > engine.n_ctx:
                    self._skip(f"prefill {n} at depth {depth}", engine)
                    continue

                def feed(session: Session, prompt: Any = tokens[depth : depth + n]) -> None:
                    session.feed(prompt)

                yield self._fork_row("prefill", threads, n, depth, past, feed)
            n = self._plan.decode
            if n and depth + n > engine.n_ctx:
                self._skip(f"decode {n} at depth {depth}", engine)
            elif n:
                # On the average half of the decoded tokens are held, too.
                kv_bytes = engine.info.kv_page_bytes / 32 * (depth + n / 2)

                def step(session: Session, n: int = n) -> None:
                    for i in range(n):
                        session.feed(tokens[i : i + 1])

                n_bytes = n * (engine.info.decode_bytes + kv_bytes)
                yield self._fork_row("decode", threads, n, depth, past, step, n_bytes)

    def _fork_row(
        self,
        work: str,
        threads: int,
        n: int,
        depth: int,
        past: Session,
        body: Callable[[Session], object],
        n_bytes: float | None = None,
    ) -> Row:
        def run() -> float:
            with past.fork() as session:
                started = time.perf_counter()
                body(session)
                return time.perf_counter() - started

        return self._row(work, threads, n, depth, 1, run, n_bytes)

    def _columns(self, engine: Engine, threads: int, tokens: np.ndarray[Any, Any]) -> Iterator[Row]:
        n = min(max(self._plan.decode, 1), engine.n_ctx)
        for columns in self._plan.columns:
            sessions = [engine.session() for _ in range(columns)]

            def run(sessions: list[Session] = sessions) -> float:
                for session in sessions:
                    session.rewind(0)
                started = time.perf_counter()
                for i in range(n):
                    feed_together(engine, sessions, int(tokens[i]))
                return time.perf_counter() - started

            yield self._row(
                "columns", threads, n, 0, columns, run, float(n * engine.info.decode_bytes)
            )
            for session in sessions:
                session.close()

    def _row(
        self,
        work: str,
        threads: int,
        n_tokens: int,
        depth: int,
        columns: int,
        run: Callable[[], float | None],
        n_bytes: float | None = None,
    ) -> Row:
        times = []
        for i in range(self._plan.repeat):
            self._status(
                f"{threads} threads: {work} {n_tokens}, depth {depth}, {columns} sessions, "
                f"{i + 1} of {self._plan.repeat}"
            )
            started = time.perf_counter()
            own = run()
            times.append(time.perf_counter() - started if own is None else own)
        seconds = statistics.median(times)
        rate = n_bytes / seconds if n_bytes is not None else None
        return Row(
            work=work,
            threads=threads,
            n_tokens=n_tokens,
            depth=depth,
            columns=columns,
            tokens_per_second=n_tokens * columns / seconds,
            seconds=seconds,
            spread=max(times) / min(times) - 1.0,
            gigabytes_per_second=None if rate is None else rate / 1e9,
            share_of_bandwidth=None if rate is None else rate / self.bandwidth[threads],
        )

    def _skip(self, what: str, engine: Engine) -> None:
        text = f"{what}: the context holds {engine.n_ctx}"
        if text not in self.skipped:
            self.skipped.append(text)


def peak_bytes() -> int | None:
    """Peak resident memory of this process, the mapped pages of the model included."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def table(head: dict[str, Any], rows: Sequence[Row]) -> str:
    """The figures for reading."""
    model, machine = head["model"], head["machine"]
    lines = [
        f"{model['path']}: {model['type']}, {model['weight_bytes'] / 1e9:.2f} GB, "
        f"{model['isa']} on {machine['cpu']}, KV {model['kv_type']}",
        "",
        f"{'threads':>7}  {'work':<14}{'depth':>6}{'sessions':>9}{'tok/s':>10}{'spread':>8}"
        f"{'GB/s':>8}{'of memory':>11}",
    ]
    for row in rows:
        work = row.work if row.work == "load" else f"{row.work} {row.n_tokens}"
        rate = "" if row.gigabytes_per_second is None else f"{row.gigabytes_per_second:.1f}"
        share = "" if row.share_of_bandwidth is None else f"{row.share_of_bandwidth:.0%}"
        speed = f"{row.seconds:.2f} s" if row.work == "load" else f"{row.tokens_per_second:.1f}"
        lines.append(
            f"{row.threads:>7}  {work:<14}{row.depth:>6}{row.columns:>9}{speed:>10}"
            f"{row.spread:>8.0%}{rate:>8}{share:>11}"
        )
    return "\n".join(lines)


def picture(head: dict[str, Any], rows: Sequence[Row]) -> str:
    """An SVG with one bar for each figure but loading, on a common logarithmic scale."""
    bars = [row for row in rows if row.work != "load"]
    highest = max((row.tokens_per_second for row in bars), default=1.0)
    lowest = min((row.tokens_per_second for row in bars), default=1.0) / 2
    height, left, width = 22, 300, 480
    colors = {"prefill": "#3b7dd8", "decode": "#d8763b", "columns": "#3ba66b"}
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 100}" '
        f'height="{height * (len(bars) + 2)}" font-family="sans-serif" font-size="13" '
        'fill="#808080">',
        f'<text x="8" y="18">{_escape(Path(head["model"]["path"]).name)}, '
        f"{_escape(head['model']['isa'])}: tokens per second (log)</text>",
    ]
    for i, row in enumerate(bars, start=1):
        share = np.log(row.tokens_per_second / lowest) / np.log(highest / lowest)
        label = f"{row.threads} threads, {row.work} {row.n_tokens}, depth {row.depth}"
        label += f", {row.columns} sessions" if row.work == "columns" else ""
        y = height * i
        out.append(f'<text x="{left - 8}" y="{y + 20}" text-anchor="end">{label}</text>')
        out.append(
            f'<rect x="{left}" y="{y + 7}" width="{width * share:.1f}" height="{height - 6}" '
            f'fill="{colors[row.work]}"/>'
        )
        out.append(
            f'<text x="{left + width * share + 6:.1f}" y="{y + 20}">'
            f"{row.tokens_per_second:.1f}</text>"
        )
    return "\n".join([*out, "</svg>\n"])


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
